//! Images of the daemon as a whole: listed, named, pushed, saved and loaded, and made from containers and files.

use super::{DockerDriver, SESSION_LABEL, daemon_failure};
use crate::changes::{self, Layer};
use crate::credentials::{Credential, Credentials};
use crate::driver::{Image, Progress, Result};
use crate::image_files::blob::Blob;
use crate::image_files::digest::{Digest, Hasher};
use crate::image_files::failures::{plain, unusable};
use crate::image_files::manifest::{Descriptor, LAYER};
use crate::image_files::read::{self, Files};
use crate::image_files::spool::{inflate, seekable, unnamed};
use crate::image_files::write::{Outgoing, OutgoingLayer};
use crate::image_files::{ArchiveForm, write};
use crate::pipe::written;
use crate::transfer::{ByteStream, ListedImage, LoadedImage, NewImage, SavedImage};
use crate::wanted::Wanted;
use bollard::auth::DockerCredentials;
use bollard::models::ContainerConfig;
use bollard::query_parameters::{
    CommitContainerOptionsBuilder, ListImagesOptionsBuilder, PushImageOptionsBuilder,
    RemoveImageOptionsBuilder, TagImageOptionsBuilder,
};
use futures_util::StreamExt;
use shakedown_spec::{DebianSource, Failure, FailureKind, ImageReference, ImageSource, PullPolicy};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use tokio_util::io::SyncIoBridge;

/// The labels that would make containers of a committed image look like this session's.
const OWN_LABELS: [&str; 3] = [SESSION_LABEL, "org.testcontainers", "org.testcontainers.lang"];
/// What archives that came as a stream are called in messages.
const STREAM: &str = "-";

impl DockerDriver {
    pub(super) async fn list_images(&self) -> Result<Vec<ListedImage>> {
        let listed = self.inner.docker.list_images(Some(ListImagesOptionsBuilder::new().build())).await;
        let listed = listed.map_err(|error| {
            daemon_failure(FailureKind::Other, "the daemon does not list its images", &error)
        })?;
        let one = |image: bollard::models::ImageSummary| ListedImage {
            id: image.id,
            names: image.repo_tags.into_iter().filter(|name| !name.starts_with("<none>")).collect(),
            created: Some(crate::image_files::created::rfc3339(image.created.unsigned_abs())),
            size: image.size.unsigned_abs(),
        };
        Ok(listed.into_iter().map(one).collect())
    }

    pub(super) async fn delete_image(&self, image: &ImageSource) -> Result<()> {
        let options = RemoveImageOptionsBuilder::new().build();
        let removed = self.inner.docker.remove_image(&image.to_string(), Some(options), None).await;
        removed.map(drop).map_err(|error| {
            let kind = match super::failures::status(&error) {
                Some(404) => FailureKind::ImageNotFound,
                Some(409) => FailureKind::ImageUnusable,
                _ => FailureKind::Other,
            };
            daemon_failure(kind, format!("image {} could not be removed", shown(image)), &error)
        })
    }

    pub(super) async fn name_image(&self, image: &Image, name: &ImageReference) -> Result<()> {
        let repo = format!("{}/{}", name.registry, name.repository);
        let options = TagImageOptionsBuilder::new().repo(&repo).tag(name.selector()).build();
        self.inner.docker.tag_image(&image.id, Some(options)).await.map_err(|error| {
            let title = format!("image {} could not be called {}", image.reference, name.familiar());
            daemon_failure(FailureKind::Other, title, &error)
        })
    }

    pub(super) async fn push_image(
        &self,
        image: &Image,
        to: &ImageReference,
        progress: Progress,
    ) -> Result<()> {
        self.name_image(image, to).await?;
        let repo = format!("{}/{}", to.registry, to.repository);
        let options = PushImageOptionsBuilder::new().tag(to.selector()).build();
        let credentials = credentials(to).await;
        let mut push = Box::pin(self.inner.docker.push_image(&repo, Some(options), credentials));
        while let Some(step) = push.next().await {
            let step = step.map_err(|error| {
                let title = format!("image {} could not be pushed", to.familiar());
                daemon_failure(FailureKind::ImageUnusable, title, &error)
                    .fact("registry", to.registry.clone())
            })?;
            let detail = step.progress_detail.unwrap_or_default();
            let amount = |amount: Option<i64>| amount.unwrap_or(0).unsigned_abs();
            progress(step.status.as_deref().unwrap_or("push"), amount(detail.current), amount(detail.total));
        }
        Ok(())
    }

    pub(super) async fn save_images(&self, images: &[SavedImage], form: ArchiveForm) -> Result<ByteStream> {
        // By name where there is one: the daemon writes the names it was asked for.
        let named = |saved: &SavedImage| match &saved.name {
            Some(name) => name.to_string(),
            None => saved.image.id.clone(),
        };
        for saved in images {
            if let Some(name) = &saved.name
                && self.image_id(&name.to_string()).await?.as_ref() != Some(&saved.image.id)
            {
                self.name_image(&saved.image, name).await?;
            }
        }
        let names: Vec<_> = images.iter().map(named).collect();
        let exported = self.export(&names);
        if form == ArchiveForm::Docker {
            return Ok(exported);
        }
        let images = archive(exported).await?;
        Ok(written(move |out| write::archive(&images, form, out, &|_, _, _| {})))
    }

    pub(super) async fn load_images(
        &self,
        stream: ByteStream,
        progress: Progress,
    ) -> Result<Vec<LoadedImage>> {
        // Read here, not by the daemon: it may be one that loads no OCI archives, and checks less.
        let mut images = archive(stream).await?;
        for image in images.iter_mut().filter(|image| image.names.is_empty()) {
            image.names = import_name(&image.config).into_iter().collect();
        }
        let names: Vec<_> = images.iter().map(|image| image.names.clone()).collect();
        self.upload_images(&source(), images, progress).await?;
        let mut loaded = Vec::new();
        for names in names {
            let texts: Vec<_> = names.iter().map(ImageReference::familiar).collect();
            let id = match names.first() {
                Some(name) => self.image_id(&name.to_string()).await?,
                None => None,
            };
            let id =
                id.ok_or_else(|| unusable(&source(), "was taken by the daemon, which does not know it"))?;
            loaded.push(LoadedImage { id, names: texts });
        }
        Ok(loaded)
    }

    pub(super) async fn import_image(&self, tar: ByteStream, new: &NewImage) -> Result<Image> {
        let name = new.reference()?;
        changes::check(&new.changes)?;
        let (blob, diff_id) = plain_tar(tar).await?;
        let said = Layer {
            diff_id: diff_id.to_string(),
            created_by: "import",
            message: new.message.as_deref(),
            author: new.author.as_deref(),
        };
        let document = changes::apply(&changes::empty(), &new.changes, said)?;
        let config = serde_json::to_vec(&document).map_err(|error| broken(&error.into()))?;
        let descriptor = Descriptor::new(LAYER, diff_id, blob.length);
        let layers = vec![OutgoingLayer { diff_id, descriptor, blob }];
        let known = name.clone().or_else(|| import_name(&config));
        let names = known.iter().cloned().collect();
        self.upload_images(&source(), vec![Outgoing { config, manifest: None, layers, names }], quiet())
            .await?;
        self.made_image(known.map(|name| name.to_string()).unwrap_or_default(), name.as_ref()).await
    }

    pub(super) async fn commit_container(&self, id: &str, new: &NewImage) -> Result<Image> {
        let instance = self.instance(id)?;
        let name = new.reference()?;
        changes::check(&new.changes)?;
        let mut options = CommitContainerOptionsBuilder::new().container(&instance.name).pause(false);
        let changed = new.changes.join("\n");
        let repo = name.as_ref().map(|name| format!("{}/{}", name.registry, name.repository));
        if let (Some(repo), Some(name)) = (&repo, &name) {
            options = options.repo(repo).tag(name.selector());
        }
        if !changed.is_empty() {
            options = options.changes(&changed);
        }
        if let Some(message) = &new.message {
            options = options.comment(message);
        }
        if let Some(author) = &new.author {
            options = options.author(author);
        }
        // The daemon lays this over the container's configuration. A label can be emptied, not taken away.
        let labels: HashMap<_, _> = OWN_LABELS.map(|label| (label.to_owned(), String::new())).into();
        let config = ContainerConfig { labels: Some(labels), ..ContainerConfig::default() };
        let made = self.inner.docker.commit_container(options.build(), config).await.map_err(|error| {
            let title = format!("no image could be made of {}", instance.service);
            daemon_failure(FailureKind::Other, title, &error)
        })?;
        self.made_image(made.id, name.as_ref()).await
    }

    async fn made_image(&self, id: String, name: Option<&ImageReference>) -> Result<Image> {
        let source = match (name, id.parse()) {
            (Some(name), _) => ImageSource::Registry(name.clone()),
            (None, Ok(source)) => source,
            (None, Err(_)) => ImageSource::Id(id),
        };
        let wanted = Wanted::new(source, PullPolicy::Never);
        let image = self.obtain_image(&wanted, quiet()).await?;
        let reference = name.map_or_else(|| image.id.clone(), ImageReference::familiar);
        Ok(Image { reference, ..image })
    }

    /// An image of packages that was built before: packages come over the network.
    pub(super) async fn packages_here(&self, source: &ImageSource) -> Result<bollard::models::ImageInspect> {
        self.find(&packages_tag(source)).await?.ok_or_else(|| {
            crate::image_files::failures::not_found(source)
                .fact("reason", "it was not built here before, and no packages are fetched offline")
        })
    }

    /// An image of packages: the one that is there already, else built here and given to the daemon.
    pub(super) async fn of_packages(
        &self,
        source: &ImageSource,
        debian: &DebianSource,
        policy: PullPolicy,
        progress: &Progress,
    ) -> Result<bollard::models::ImageInspect> {
        let tag = packages_tag(source);
        let _one_at_a_time = self.inner.uploads.lock().await;
        if policy != PullPolicy::Always
            && let Some(found) = self.find(&tag).await?
        {
            return Ok(found);
        }
        progress("mmdebstrap", 0, 0);
        let (packages, place) = (debian.clone(), source.clone());
        let work = tokio::task::spawn_blocking(move || {
            let failed =
                |error: io::Error| unusable(&place, "could not be built").fact("reason", plain(&error));
            let spool = unnamed(&std::env::temp_dir()).map_err(failed)?;
            let mut hashing = Hashing { file: spool, hasher: Hasher::new() };
            let (out, diff_id) = crate::debian::build(&packages, &mut hashing)?;
            out.flush().map_err(failed)?;
            let config =
                crate::debian::configuration(&packages, diff_id).map_err(|error| failed(error.into()))?;
            let blob = Blob::whole(hashing.file).map_err(failed)?;
            let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
            let descriptor = Descriptor::new(kind, hashing.hasher.finish(), blob.length);
            let layers = vec![OutgoingLayer { diff_id, descriptor, blob }];
            Ok::<_, Failure>(Outgoing { config, manifest: None, layers, names: Vec::new() })
        });
        let mut image = work.await.map_err(|error| broken(&io::Error::other(error)))??;
        image.names = tag.parse().into_iter().collect();
        self.upload_images(source, vec![image], progress.clone()).await?;
        self.find(&tag)
            .await?
            .ok_or_else(|| unusable(source, "was taken by the daemon, which does not know it"))
    }
}

/// Under which the daemon has an image of packages.
fn packages_tag(source: &ImageSource) -> String {
    format!("shakedown-debian:{}", Digest::of(source.to_string().as_bytes()).hex())
}

/// What `docker login` knows of the registry.
pub(super) async fn credentials(image: &ImageReference) -> Option<DockerCredentials> {
    let found = Credentials::of_environment().find(&image.registry, &image.repository).await;
    let serveraddress = Some(image.registry.clone());
    let empty = DockerCredentials { serveraddress, ..DockerCredentials::default() };
    Some(match found.credential? {
        Credential::Password { user, password } => {
            DockerCredentials { username: Some(user), password: Some(password), ..empty }
        }
        Credential::IdentityToken(token) => DockerCredentials { identitytoken: Some(token), ..empty },
        Credential::RegistryToken(token) => DockerCredentials { registrytoken: Some(token), ..empty },
    })
}

/// The images of an archive that comes as a stream, of either kind, compressed or not.
async fn archive(stream: ByteStream) -> Result<Vec<Outgoing>> {
    let bridge = SyncIoBridge::new(stream);
    let work = tokio::task::spawn_blocking(move || {
        let spool = std::env::temp_dir();
        let files = spooled(bridge).and_then(|file| seekable(file, &spool)).and_then(Files::archive);
        let files = files.map_err(|error| broken(&error))?;
        let outgoing = |(found, names)| read::outgoing(&files, &source(), found, names);
        read::find_all(&files, &source())?.into_iter().map(outgoing).collect()
    });
    work.await.map_err(|error| broken(&io::Error::other(error)))?
}

/// A root file system as a stream, compressed or not: the plain archive and its digest.
async fn plain_tar(stream: ByteStream) -> Result<(Blob, Digest)> {
    let bridge = SyncIoBridge::new(stream);
    let work = tokio::task::spawn_blocking(move || {
        let mut out = Hashing { file: unnamed(&std::env::temp_dir())?, hasher: Hasher::new() };
        inflate(bridge, &mut out)?;
        Ok((Blob::whole(out.file)?, out.hasher.finish()))
    });
    work.await.map_err(io::Error::other).and_then(|result| result).map_err(|error: io::Error| broken(&error))
}

fn spooled(mut stream: impl Read) -> io::Result<File> {
    let mut file = unnamed(&std::env::temp_dir())?;
    io::copy(&mut stream, &mut file).map(|_| file)
}

struct Hashing {
    file: File,
    hasher: Hasher,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The name by which an image without one is found again.
fn import_name(config: &[u8]) -> Option<ImageReference> {
    format!("shakedown-import:{}", Digest::of(config).hex()).parse().ok()
}

fn source() -> ImageSource {
    ImageSource::DockerArchive { path: STREAM.into(), reference: None }
}

fn broken(error: &io::Error) -> Failure {
    unusable(&source(), "could not be read").fact("reason", plain(error))
}

fn shown(image: &ImageSource) -> String {
    crate::image_files::failures::name(image)
}

fn quiet() -> Progress {
    std::sync::Arc::new(|_, _, _| {})
}
