//! On which terms an image that the daemon has is taken: its age, its digest, its platform.

use super::DockerDriver;
use crate::driver::{Progress, Result};
use crate::native::image::{Bundled, bundled};
use crate::wanted::{BINFMT_MISC, Runs, Wanted};
use bollard::models::ImageInspect;
use bollard::query_parameters::TagImageOptionsBuilder;
use shakedown_spec::{Failure, FailureKind, ImageReference, ImageSource, Platform, PullPolicy};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// The repository under which images of a bundle are known by their digest: a daemon that is given an image as a file
/// does not know which digest a registry has for it.
pub(super) const BUNDLED: &str = "shakedown-bundle";

impl DockerDriver {
    /// The daemon's image, if it has one that may be used without asking the registry.
    pub(super) async fn usable(
        &self,
        reference: &ImageReference,
        wanted: &Wanted,
    ) -> Result<Option<ImageInspect>> {
        let Some(found) = self.here(reference).await? else { return Ok(None) };
        let stays = wanted.offline || wanted.policy == PullPolicy::Never;
        let kind = platform_of(&found);
        if let (Some(kind), Some(asked)) = (&kind, &wanted.platform)
            && !same(asked, kind)
        {
            return if stays { Err(other_platform(reference, asked, kind)) } else { Ok(None) };
        }
        if stays {
            return Ok(Some(found));
        }
        // What is named by its digest cannot have changed.
        if reference.digest.is_none() && is_stale(wanted.policy, &found) {
            return Ok(None);
        }
        Ok(Some(found))
    }

    /// What the daemon has under this reference.
    pub(super) async fn here(&self, reference: &ImageReference) -> Result<Option<ImageInspect>> {
        let Some(digest) = &reference.digest else { return self.find(&reference.to_string()).await };
        if let Some(found) = self.find(&format!("{}@{digest}", reference.name())).await? {
            return Ok(Some(found));
        }
        self.find(&format!("{BUNDLED}:{}", digest.trim_start_matches("sha256:"))).await
    }

    /// Gives the daemon the images of a bundle, under their names, and so that they are found by their digests.
    pub(super) async fn take_bundle(&self, file: &Path, progress: &Progress) -> Result<Vec<Bundled>> {
        let images = bundled(file).await?;
        for Bundled { name, digest } in &images {
            let source = ImageSource::OciArchive { path: file.to_owned(), tag: Some(name.to_string()) };
            let taken = self.loaded(&source, progress).await?;
            let id = taken.id.unwrap_or_default();
            let bundled = digest.trim_start_matches("sha256:");
            let named = (name.name(), name.tag.as_deref().unwrap_or("latest"));
            for (repository, tag) in [(named.0.as_str(), named.1), (BUNDLED, bundled)] {
                let options = TagImageOptionsBuilder::new().repo(repository).tag(tag).build();
                self.inner.docker.tag_image(&id, Some(options)).await.map_err(|error| {
                    let title = format!("image {} could not be named in the daemon", name.familiar());
                    super::daemon_failure(FailureKind::Other, title, &error)
                })?;
            }
        }
        Ok(images)
    }

    /// Notes in the daemon that the registry was asked for this image just now: it keeps the time of the last tag, and
    /// only that of its own pulls. Giving an image the tag that it has changes nothing else.
    pub(super) async fn asked(&self, reference: &ImageReference) {
        let Some(tag) = &reference.tag else { return };
        let options = TagImageOptionsBuilder::new().repo(&reference.name()).tag(tag).build();
        // Where this fails the registry is asked once more than needed.
        let _ = self.inner.docker.tag_image(&reference.to_string(), Some(options)).await;
    }

    pub(super) async fn stored_digests(&self, reference: &ImageReference) -> Result<Vec<String>> {
        let Some(found) = self.here(reference).await? else { return Ok(Vec::new()) };
        let repository = reference.name();
        let of_registry = found.repo_digests.iter().flatten().filter_map(|name| {
            let named: ImageReference = name.parse().ok()?;
            named.digest.filter(|_| format!("{}/{}", named.registry, named.repository) == repository)
        });
        let bundled =
            found.repo_tags.iter().flatten().filter_map(|name| {
                Some(format!("sha256:{}", name.strip_prefix(BUNDLED)?.strip_prefix(':')?))
            });
        let mut digests: Vec<_> = of_registry.chain(bundled).collect();
        if digests.is_empty() {
            digests.extend(found.id);
        }
        Ok(digests)
    }

    pub(super) async fn current_digest(&self, reference: &ImageReference) -> Result<Option<String>> {
        let name = reference.to_string();
        match self
            .inner
            .docker
            .inspect_registry_image(&name, super::transfer::credentials(reference).await)
            .await
        {
            Ok(known) => Ok(known.descriptor.digest),
            // No such image, no such request (Podman), or no right to know: no answer.
            Err(error) if super::failures::status(&error).is_some_and(|code| code < 500) => Ok(None),
            Err(error) => Err(super::daemon_failure(
                FailureKind::Other,
                format!("the daemon does not learn what {} means now", reference.familiar()),
                &error,
            )),
        }
    }

    /// The kind of the daemon's machine.
    pub(super) fn platform(&self) -> Option<Platform> {
        let info = &self.inner.info;
        let (system, processor) = (info.os_type.as_deref()?, info.architecture.as_deref()?);
        Some(Platform::new(system, processor, None))
    }

    pub(super) fn verdict(&self, platform: &Platform) -> Runs {
        let Some(here) = self.platform() else { return Runs::Natively };
        match Runs::on(&here, platform, Path::new(BINFMT_MISC)) {
            Runs::Not(_) if !self.is_on_this_kernel() => {
                Runs::Emulated(format!("emulated, if the daemon's machine of kind {here} can do it"))
            }
            verdict => verdict,
        }
    }

    /// A daemon in a virtual machine has handlers of its own.
    fn is_on_this_kernel(&self) -> bool {
        let release = rustix::system::uname();
        self.inner.info.kernel_version.as_deref() == release.release().to_str().ok()
    }
}

/// Whether the policy asks the registry about an image that the daemon has.
fn is_stale(policy: PullPolicy, found: &ImageInspect) -> bool {
    let age = match policy {
        PullPolicy::Always => return true,
        PullPolicy::Missing | PullPolicy::Never => return false,
        PullPolicy::OlderThan(age) => age,
    };
    let asked = found.metadata.as_ref().and_then(|metadata| {
        // As it was sent: what type it is here depends on which features of `bollard` others have asked for.
        let sent = serde_json::to_value(metadata).ok()?;
        instant(sent.get("LastTagTime")?.as_str()?)
    });
    asked.is_none_or(|asked| asked.elapsed().unwrap_or(Duration::ZERO) >= age)
}

pub(super) fn platform_of(image: &ImageInspect) -> Option<Platform> {
    let (system, processor) = (image.os.as_deref()?, image.architecture.as_deref()?);
    let known = !system.is_empty() && !processor.is_empty();
    known.then(|| Platform::new(system, processor, image.variant.as_deref()))
}

/// Whether an image of kind `found` is what was asked for; who names no level takes any.
fn same(asked: &Platform, found: &Platform) -> bool {
    let level = asked.variant.is_none() || asked.variant == found.variant;
    asked.os == found.os && asked.architecture == found.architecture && level
}

fn other_platform(reference: &ImageReference, asked: &Platform, found: &Platform) -> Failure {
    let title = format!("image {} is not in the daemon's store for {asked}", reference.familiar());
    Failure::new(FailureKind::ImageNotFound, title)
        .fact("there", found.to_string())
        .fact("reason", "nothing may be pulled")
}

/// Reads a time of RFC 3339, to the second. The year 1 is how Go writes none.
fn instant(text: &str) -> Option<SystemTime> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let zone = text.get(19..)?.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let offset = match zone.split_at_checked(1)? {
        ("Z", "") => 0,
        (sign, rest) => {
            let (hours, minutes) = rest.split_once(':')?;
            let seconds = hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60;
            if sign == "-" { -seconds } else { seconds }
        }
    };
    // Days since 1970, counted in years that begin in March (Howard Hinnant, "days_from_civil").
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second - offset;
    u64::try_from(seconds).ok().map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How old an image is, is read from what daemons write.
    #[test]
    fn times_are_read() {
        let seconds = |text: &str| {
            instant(text).map(|time| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs())
        };
        assert_eq!(seconds("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(seconds("2024-02-29T12:34:56.789012345Z"), Some(1_709_210_096));
        assert_eq!(seconds("2024-02-29T13:34:56+01:00"), Some(1_709_210_096));
        assert_eq!(seconds("2024-02-29T11:04:56.1-01:30"), Some(1_709_210_096));
        assert_eq!(seconds("0001-01-01T00:00:00Z"), None);
        assert_eq!(seconds("yesterday"), None);
    }
}
