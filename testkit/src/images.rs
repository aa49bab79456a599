//! Images as a whole: brought in and named, saved to files and loaded from them.
//!
//! A test needs none of it to start a container: the declaration names its image, and the driver finds it. These are
//! for tests about images, and for images that a test makes.
//!
//! ```no_run
//! # async fn orders() -> shakedown::Result {
//! shakedown::images::load("target/orders.tar").await?;
//! shakedown::images::tag("orders:7", "orders:latest").await?;
//! # Ok(()) }
//! ```

pub use crate::substitute::substitute;

use crate::session::share;
use crate::{Failure, FailureKind, ListedImage, LoadedImage, NewImage, Pending, PullPolicy};
use futures::stream::{self, TryStreamExt};
use shakedown_server::api::{ImageName, ImageTag, ImagesToSave};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// How much of a file is read at once.
const CHUNK: usize = 256 << 10;

/// The images that are there.
#[track_caller]
pub fn list() -> Pending<Vec<ListedImage>> {
    Pending::spawn(async { share().await?.keeper().images().await })
}

/// Brings an image in, if it is not there or `policy` says so: a reference, or a source such as `docker-daemon:redis:7`.
/// Gives its id.
///
/// # Errors
///
/// It is nowhere, or cannot be used.
#[track_caller]
pub fn pull(image: impl Into<String>, policy: PullPolicy) -> Pending<String> {
    let image = image.into();
    Pending::spawn(async move {
        let share = share().await?;
        let lease = share.granted().lease.clone();
        Ok(share.keeper().image(&ImageName { lease, image, policy }).await?.id)
    })
}

/// Gives an image a further name.
///
/// # Errors
///
/// The image is nowhere, or the name is none.
#[track_caller]
pub fn tag(image: impl Into<String>, name: impl Into<String>) -> Pending<()> {
    let (image, name) = (image.into(), name.into());
    Pending::spawn(async move {
        let share = share().await?;
        share.keeper().tag(&with_name(share.granted().lease.clone(), image, name)).await
    })
}

/// Sends an image to a registry under a name such as `registry.example/orders:7`.
///
/// # Errors
///
/// The image is nowhere, or the registry refuses it.
#[track_caller]
pub fn push(image: impl Into<String>, name: impl Into<String>) -> Pending<()> {
    let (image, name) = (image.into(), name.into());
    Pending::spawn(async move {
        let share = share().await?;
        share.keeper().push(&with_name(share.granted().lease.clone(), image, name)).await
    })
}

fn with_name(lease: String, image: String, name: String) -> ImageTag {
    ImageTag { image: ImageName { lease, image, policy: PullPolicy::Missing }, name }
}

/// Takes a name from an image, and removes the image with its last name; by its id, the image.
///
/// # Errors
///
/// It is not there, or is in use.
#[track_caller]
pub fn remove(image: impl Into<String>) -> Pending<()> {
    let image = image.into();
    Pending::spawn(async move { share().await?.keeper().remove_image(&image).await })
}

/// Writes images to one file, as `docker save` does.
///
/// # Errors
///
/// One is nowhere, or the file cannot be written.
#[track_caller]
pub fn save<S: Into<String>>(images: impl IntoIterator<Item = S>, file: impl AsRef<Path>) -> Pending<()> {
    let images = images.into_iter().map(Into::into).collect();
    let file = std::path::absolute(file.as_ref());
    Pending::spawn(async move {
        let file = file.map_err(|error| failed(Path::new(""), &error))?;
        let share = share().await?;
        let lease = share.granted().lease.clone();
        let asked = ImagesToSave { lease, images, form: Default::default() };
        let mut chunks = share.keeper().save(&asked).await?;
        let mut out = File::create(&file).map_err(|error| failed(&file, &error))?;
        while let Some(chunk) = chunks.try_next().await.map_err(|error| failed(&file, &error))? {
            out.write_all(&chunk).map_err(|error| failed(&file, &error))?;
        }
        Ok(())
    })
}

/// Takes all images of a file: of `docker save`, or an OCI archive, compressed or not.
///
/// # Errors
///
/// The file cannot be read, or is broken.
#[track_caller]
pub fn load(file: impl AsRef<Path>) -> Pending<Vec<LoadedImage>> {
    let file = file.as_ref().to_owned();
    Pending::spawn(async move {
        let content = content(&file)?;
        share().await?.keeper().load(content).await
    })
}

/// Makes an image of a root file system: a tar file, compressed or not. Gives its id.
///
/// # Errors
///
/// The file cannot be read, or is broken, or a change is no instruction.
#[track_caller]
pub fn import(file: impl AsRef<Path>, image: impl Into<NewImage>) -> Pending<String> {
    let (file, image) = (file.as_ref().to_owned(), image.into());
    Pending::spawn(async move {
        let content = content(&file)?;
        Ok(share().await?.keeper().import(content, &image).await?.id)
    })
}

/// A file as it is read.
fn content(
    path: &Path,
) -> Result<impl stream::Stream<Item = io::Result<Vec<u8>>> + Send + Sync + use<>, Failure> {
    let path: PathBuf = path.to_owned();
    let file = File::open(&path).map_err(|error| failed(&path, &error))?;
    Ok(stream::iter(std::iter::from_fn({
        let mut file = file;
        move || {
            let mut chunk = vec![0; CHUNK];
            match file.read(&mut chunk) {
                Ok(0) => None,
                Ok(read) => {
                    chunk.truncate(read);
                    Some(Ok(chunk))
                }
                Err(error) => Some(Err(error)),
            }
        }
    })))
}

fn failed(file: &Path, error: &io::Error) -> Failure {
    Failure::new(FailureKind::Other, "the archive could not be read or written")
        .fact("file", file.display().to_string())
        .fact("reason", error.to_string())
}
