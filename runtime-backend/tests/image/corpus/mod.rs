//! The corpus: one table of layers and images that try to get out, to lie, to fill the machine, or are only odd.
//!
//! Each case is a layer (or a damaged image) with the verdict it must get. Numbers group them: 01–32 paths and links,
//! 40–58 deletions, 60–89 owners, attributes and names, 90–A9 archives, B0–BF whole images. `arena` runs them where
//! nothing outside may change; `judge` asks other tools about the same images.

mod archives;
mod deletions;
mod documents;
mod entries;
mod links;
mod paths;

use crate::images::Parts;
use crate::tape::{DIR, Entry, Tape};
use std::path::Path;

/// One hostile or odd image.
pub(crate) struct Case {
    /// Its number in the table of attacks, and what it does.
    pub(crate) name: &'static str,
    pub(crate) content: Content,
    pub(crate) verdict: Verdict,
    /// Why it is refused although umoci, containerd and podman agree to take it.
    pub(crate) stricter: Option<&'static str>,
    /// Why the files are not those that the others agree on.
    pub(crate) differs: Option<&'static str>,
}

/// What an image of the corpus has that honest ones do not.
pub(crate) enum Content {
    /// A layer, and the layers it needs below.
    Layer { below: Vec<Vec<u8>>, layer: Vec<u8> },
    /// A change to an honest image, before or after its layout is written to the path.
    Image(Box<Change>),
}

pub(crate) type Change = dyn Fn(&mut Parts, &Path) + Send + Sync;

/// What must come of it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Verdict {
    /// It is unpacked inside of the target; these paths are there, those after `!` are not. `CANARY` stands for the
    /// path of the directory outside that the case aims at.
    Taken(&'static [&'static str]),
    /// It is refused, with this reason.
    Refused(&'static str),
}

impl Case {
    pub(crate) fn new(name: &'static str, content: Content, verdict: Verdict) -> Self {
        Self { name, content, verdict, stricter: None, differs: None }
    }

    pub(crate) fn on(mut self, lower: Tape) -> Self {
        if let Content::Layer { below, .. } = &mut self.content {
            below.push(lower.done());
        }
        self
    }

    pub(crate) fn stricter(self, reason: &'static str) -> Self {
        Self { stricter: Some(reason), ..self }
    }

    pub(crate) fn differs(self, reason: &'static str) -> Self {
        Self { differs: Some(reason), ..self }
    }

    /// Writes an OCI layout with the image, tagged `1`: the layers by themselves, or between honest ones.
    pub(crate) fn write(&self, directory: &Path, form: Form) {
        match &self.content {
            Content::Layer { below, layer } => {
                let own = below.iter().chain([layer]).cloned();
                let layers: Vec<_> = match form {
                    Form::Alone => own.collect(),
                    Form::Between => [base(self.name)].into_iter().chain(own).chain([top()]).collect(),
                };
                of_this_machine(&layers).layout(directory, "1");
            }
            Content::Image(change) => {
                let mut parts = match form {
                    Form::Alone => of_this_machine(&[base(self.name)]),
                    Form::Between => of_this_machine(&[
                        base(self.name),
                        Tape::default().dir("srv").file("srv/shop", "orders").done(),
                        top(),
                    ]),
                };
                std::fs::create_dir_all(directory).unwrap();
                change(&mut parts, directory);
                if !directory.join("index.json").exists() {
                    parts.layout(directory, "1");
                }
            }
        }
    }
}

/// Where the hostile layer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Nothing is below but what it needs.
    Alone,
    /// Honest layers are below and above.
    Between,
}

/// All cases, aimed at the directory `canary`.
pub(crate) fn cases(canary: &str) -> Vec<Case> {
    let mut all =
        vec![taken("00-honest", Tape::default().dir("srv").file("srv/orders", "1"), &["srv/orders"])];
    all.extend(paths::cases(canary));
    all.extend(links::cases(canary));
    all.extend(deletions::cases(canary));
    all.extend(entries::cases());
    all.extend(archives::cases());
    all.extend(documents::cases());
    all
}

/// An image that other tools take for one of this machine.
fn of_this_machine(layers: &[Vec<u8>]) -> Parts {
    let mut parts = Parts::of(layers);
    parts.config["architecture"] = match std::env::consts::ARCH {
        "x86_64" => "amd64".into(),
        "aarch64" => "arm64".into(),
        other => other.into(),
    };
    parts.describe();
    parts
}

/// An honest layer below: what images have. It is no other case's, for whom a tool has it already it need not be read.
fn base(name: &str) -> Vec<u8> {
    let tape = Tape::default().file("case", name);
    let tape = tape.dir("etc").file("etc/passwd", "root:x:0:0::/:/bin/sh\n").dir("usr").dir("usr/bin");
    let tape =
        tape.file("usr/bin/true", "#!").symlink("bin", "usr/bin").entry(Entry::new(DIR, "tmp").mode(0o1777));
    tape.dir("srv").dir("var").dir("var/lib").file("var/lib/state", "kept").done()
}

/// An honest layer above.
fn top() -> Vec<u8> {
    Tape::default().dir("srv").file("srv/catalogue", "items").done()
}

fn case(name: &'static str, layer: Vec<u8>, verdict: Verdict) -> Case {
    Case::new(name, Content::Layer { below: Vec::new(), layer }, verdict)
}

/// A layer that is unpacked.
fn taken(name: &'static str, tape: Tape, there: &'static [&'static str]) -> Case {
    case(name, tape.done(), Verdict::Taken(there))
}

/// A layer that is refused.
fn refused(name: &'static str, tape: Tape, reason: &'static str) -> Case {
    case(name, tape.done(), Verdict::Refused(reason))
}

/// Every case has a number and a name of its own, and there are enough of them to speak of a corpus.
#[test]
fn names_are_unique() {
    let mut names: Vec<_> = cases("/canary").into_iter().map(|case| case.name).collect();
    let all = names.len();
    assert!(all > 150, "{all}");
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
    assert!(names.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')));
}
