//! Brings images from a registry into the store: verified, once for all processes.

use super::digest::{Digest, Hasher};
use super::disk::Disk;
use super::failures::{self, not_found, unusable, wrong_digest, wrong_size};
use super::files::{for_this_machine, parse};
use super::manifest::{Descriptor, Document, LARGEST_DOCUMENT, Manifest};
use super::registry::{BlobStream, Reason, Registry, RegistryError};
use super::unpacker::Blob;
use crate::driver::Progress;
use shakedown_spec::{Failure, ImageReference, ImageSource};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

/// How deep indexes may nest.
const DEEPEST_INDEX: usize = 4;
/// How many near tags a message shows.
const NEAR_TAGS: usize = 8;

/// One image at one registry.
#[derive(Clone)]
pub(crate) struct Fetch {
    pub(crate) disk: Disk,
    pub(crate) registry: Arc<Registry>,
    pub(crate) source: ImageSource,
    pub(crate) image: ImageReference,
    pub(crate) progress: Progress,
}

impl Fetch {
    /// The manifest for this machine, and the digest of what the reference means (an index, usually).
    pub(crate) async fn manifest(&self) -> Result<(Manifest, Digest), Failure> {
        let mut selector = self.image.selector().to_owned();
        let mut top = None;
        for _ in 0..DEEPEST_INDEX {
            let fetched = match self.registry.manifest(&self.image, &selector).await {
                Ok(fetched) => fetched,
                Err(error) => return Err(self.refused(&error).await),
            };
            top.get_or_insert(fetched.digest);
            self.keep(fetched.digest, &fetched.bytes)?;
            match parse(&self.source, &format!("manifests/{selector}"), &fetched.bytes)? {
                Document::Manifest(manifest) => return Ok((manifest, top.unwrap_or(fetched.digest))),
                Document::Index(entries) => {
                    selector = for_this_machine(&self.source, &entries)?.digest.to_string();
                }
            }
        }
        Err(unusable(&self.source, "cannot be used: its indexes are nested too deep"))
    }

    /// Which manifest the reference means now, if the registry says so. A refusal is no answer here: the request for
    /// the manifest itself is refused with words, this one without.
    pub(crate) async fn current(&self) -> Result<Option<Digest>, Failure> {
        match self.registry.current(&self.image).await {
            Ok(digest) => Ok(digest),
            Err(RegistryError { reason: Reason::Status { .. }, .. }) => Ok(None),
            Err(error) => Err(self.refused(&error).await),
        }
    }

    /// The image's configuration.
    pub(crate) async fn config(&self, config: &Descriptor) -> Result<Vec<u8>, Failure> {
        let blob = self.blob(config, "the configuration").await?;
        if blob.length > LARGEST_DOCUMENT {
            return Err(wrong_size(&self.source, "the configuration", config.size, blob.length));
        }
        let read = || {
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut blob.reader(), &mut bytes).map(|_| bytes)
        };
        read().map_err(|error| self.storing(&error))
    }

    /// A blob: from the store, else from the registry, for all processes once.
    pub(crate) async fn blob(&self, wanted: &Descriptor, what: &str) -> Result<Blob, Failure> {
        if let Some(blob) = self.stored(wanted) {
            return Ok(blob);
        }
        let lock = format!("blob-{}", wanted.digest.hex());
        let _lock = self.disk.lock(&lock).await.map_err(|error| self.storing(&error))?;
        if let Some(blob) = self.stored(wanted) {
            return Ok(blob);
        }
        let scratch = self.disk.scratch().map_err(|error| self.storing(&error))?;
        let path = scratch.path().join("blob");
        let result = self.download(wanted, what, &path).await;
        let result = result.and_then(|()| {
            std::fs::rename(&path, self.disk.blob(wanted.digest)).map_err(|error| self.storing(&error))
        });
        if result.is_err() {
            // Its space is needed by whoever tries next; should this fail too, the next sweep does it.
            let _ = std::fs::remove_file(&path);
        }
        result?;
        self.stored(wanted)
            .ok_or_else(|| unusable(&self.source, "could not be stored: another process removed it"))
    }

    fn stored(&self, wanted: &Descriptor) -> Option<Blob> {
        let blob = Blob::whole(File::open(self.disk.blob(wanted.digest)).ok()?).ok()?;
        (blob.length == wanted.size).then_some(blob)
    }

    async fn download(&self, wanted: &Descriptor, what: &str, path: &Path) -> Result<(), Failure> {
        let mut file = File::create_new(path).map_err(|error| self.storing(&error))?;
        let stream = self.registry.blob(&self.image, wanted.digest).await;
        let mut stream = match stream {
            Ok(stream) => stream,
            Err(error) => return Err(self.refused(&error).await),
        };
        let (actual, received) = self.receive(&mut stream, wanted, what, &mut file).await?;
        if received != wanted.size {
            return Err(wrong_size(&self.source, what, wanted.size, received));
        }
        if actual != wanted.digest {
            return Err(wrong_digest(&self.source, what, wanted.digest, actual));
        }
        Ok(())
    }

    async fn receive(
        &self,
        stream: &mut BlobStream,
        wanted: &Descriptor,
        what: &str,
        file: &mut File,
    ) -> Result<(Digest, u64), Failure> {
        let (mut hasher, mut received) = (Hasher::new(), 0);
        loop {
            let piece = match stream.next().await {
                Ok(Some(piece)) => piece,
                Ok(None) => return Ok((hasher.finish(), received)),
                Err(error) => {
                    return Err(self.refused(&error).await.fact("received", amount(received, wanted.size)));
                }
            };
            received += piece.len() as u64;
            if received > wanted.size {
                return Err(wrong_size(&self.source, what, wanted.size, received));
            }
            hasher.update(&piece);
            file.write_all(&piece).map_err(|error| self.storing(&error))?;
            (self.progress)(&format!("fetch {}", &wanted.digest.hex()[..12]), received, wanted.size);
        }
    }

    fn keep(&self, digest: Digest, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.disk.blob(digest);
        if path.exists() {
            return Ok(());
        }
        self.disk.write(&path, bytes).map_err(|error| self.storing(&error))
    }

    fn storing(&self, error: &io::Error) -> Failure {
        failures::store(&self.source, self.disk.root(), error)
    }

    /// What the registry's refusal means to the user.
    async fn refused(&self, error: &RegistryError) -> Failure {
        let RegistryError { registry, request, reason } = error;
        match reason {
            Reason::Status { code: code @ 404, words, .. } if request.contains("/manifests/") => {
                let failure = not_found(&self.source).fact("registry", registry.clone());
                self.near_tags(with_words(failure, *code, words)).await
            }
            Reason::Status { code: code @ (401 | 403), words, authenticated: false } => {
                let failure = not_found(&self.source).fact("registry", registry.clone());
                let login = if self.image.registry == "docker.io" {
                    String::new()
                } else {
                    format!(" {}", self.image.registry)
                };
                with_words(failure, *code, words).hint(format!(
                    "check the name, or log in with `docker login{login}` if the repository is private"
                ))
            }
            Reason::Status { code, words, authenticated } => {
                let failure =
                    unusable(&self.source, "could not be fetched").fact("registry", registry.clone());
                let failure = with_words(failure.fact("request", request.clone()), *code, words);
                if matches!(code, 429 | 500..) {
                    return failure.hint("the registry cannot answer at the moment; try again later");
                }
                if *authenticated && matches!(code, 401 | 403) {
                    return failure.hint("the password for this registry in Docker's `config.json` does not open this repository");
                }
                failure
            }
            Reason::Connection { reason, refused } => {
                let failure = unusable(&self.source, "could not be fetched")
                    .fact("registry", registry.clone())
                    .fact("reason", reason.clone());
                if *refused && self.image.is_loopback() {
                    return failure
                        .hint(format!("nothing listens on {}; start the registry", self.image.registry));
                }
                failure
            }
            Reason::Silent => unusable(&self.source, "could not be fetched")
                .fact("registry", registry.clone())
                .fact("request", request.clone())
                .fact("reason", "the registry said nothing for 30 s"),
            Reason::Protocol(reason) => unusable(&self.source, "could not be fetched")
                .fact("registry", registry.clone())
                .fact("request", request.clone())
                .fact("reason", reason.clone()),
        }
    }

    async fn near_tags(&self, failure: Failure) -> Failure {
        let tags = self.registry.tags(&self.image).await;
        let near = nearest(tags, self.image.tag.as_deref().unwrap_or_default());
        if near.is_empty() { failure } else { failure.fact("tags there", near.join(", ")) }
    }
}

fn with_words(failure: Failure, code: u16, words: &str) -> Failure {
    let answer = if words.is_empty() { format!("status {code}") } else { format!("status {code}, {words}") };
    failure.fact("answer", answer)
}

fn amount(received: u64, of: u64) -> String {
    format!("{received} of {of} bytes")
}

/// The tags that look most like the wanted one, in natural order.
fn nearest(mut tags: Vec<String>, wanted: &str) -> Vec<String> {
    tags.sort_by_cached_key(|tag| (distance(tag, wanted), tag.clone()));
    tags.truncate(NEAR_TAGS);
    tags.sort_by_cached_key(|tag| natural(tag));
    tags
}

/// How many letters have to be changed, put in or left out (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other = other.as_bytes();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (number, letter) in one.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], number + 1);
        for column in 0..other.len() {
            let changed = diagonal + usize::from(other[column] != letter);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

/// Numbers by value: 8 stands before 10.
fn natural(tag: &str) -> Vec<(u64, String)> {
    let parts = tag.split(['.', '-', '_']);
    parts.map(|part| (part.parse().unwrap_or(u64::MAX), part.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mistyped tag is answered with those that were meant.
    #[test]
    fn near_tags_come_first_and_in_order() {
        let tags = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(nearest(tags("10 8 7 8.1"), "9"), tags("7 8 8.1 10"));
        let many = (0..50).map(|n| format!("2024-{n}")).chain(["17.5".to_owned()]).collect();
        assert!(nearest(many, "17.6").contains(&"17.5".to_owned()));
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
