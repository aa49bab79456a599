//! Volumes: made for the first container that mounts one.

use super::{DockerDriver, daemon_failure};
use crate::driver::Result;
use bollard::models::VolumeCreateRequest;
use bollard::query_parameters::RemoveVolumeOptionsBuilder;
use shakedown_spec::{Container, FailureKind, MountSource, Volume};

impl DockerDriver {
    /// What the daemon knows a volume by.
    pub(super) fn volume_name(&self, key: &str) -> String {
        self.network_name(key)
    }

    /// Makes the volumes that a container mounts. One that is there is left as it is.
    pub(super) async fn make_volumes(&self, container: &Container) -> Result<()> {
        for mount in &container.mounts {
            if let MountSource::Volume { volume } = &mount.source {
                self.make_volume(volume).await?;
            }
        }
        Ok(())
    }

    async fn make_volume(&self, volume: &Volume) -> Result<()> {
        let mut labels = self.labels();
        labels.extend(volume.labels.clone());
        let name = Some(self.volume_name(&volume.key));
        let request = VolumeCreateRequest { name, labels: Some(labels), ..VolumeCreateRequest::default() };
        let made = self.inner.docker.create_volume(request).await;
        let title = || format!("volume `{}` could not be made", volume.key);
        made.map(drop).map_err(|error| daemon_failure(FailureKind::LaunchFailed, title(), &error))
    }

    /// Removes a volume; one that is not there is no error.
    pub(super) async fn drop_volume(&self, key: &str) -> Result<()> {
        let options = RemoveVolumeOptionsBuilder::new().build();
        match self.inner.docker.remove_volume(&self.volume_name(key), Some(options)).await {
            Err(error) if !super::failures::is_gone(&error) => {
                let title = format!("volume `{key}` could not be removed");
                Err(daemon_failure(FailureKind::Other, title, &error))
            }
            _ => Ok(()),
        }
    }
}
