//! Which image is wanted, and on which terms it may be obtained; what a machine does with an image for another one.

use crate::native::image::RegistriesConfig;
use shakedown_spec::{ImageSource, Platform, PullPolicy};
use std::path::Path;

/// A question to the stage *resolve*.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Where the image comes from. A digest in a reference is the one that the image has to have.
    pub source: ImageSource,
    /// When a registry is asked.
    pub policy: PullPolicy,
    /// What kind of machine the image is for; the kind of the machine that runs the containers when unset.
    pub platform: Option<Platform>,
    /// Whether no network may be used, that of this machine itself included.
    pub offline: bool,
    /// What is declared about registries. An engine with settings of its own goes by those instead.
    pub registries: RegistriesConfig,
}

impl Wanted {
    /// An image for the machine at hand, from wherever it is.
    #[must_use]
    pub fn new(source: ImageSource, policy: PullPolicy) -> Self {
        let (platform, registries) = (None, RegistriesConfig::default());
        Self { source, policy, platform, offline: false, registries }
    }
}

/// What a machine does with the programs of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Runs {
    /// It runs them, as far as can be told.
    Natively,
    /// It emulates their processor, slowly: by what.
    Emulated(String),
    /// It does not run them: why.
    Not(String),
}

/// Where the kernel shows what else it runs (Documentation/admin-guide/binfmt-misc.rst).
pub(crate) const BINFMT_MISC: &str = "/proc/sys/fs/binfmt_misc";

impl Runs {
    /// What a machine of kind `here`, with these handlers of binfmt_misc, does with an image for `image`.
    ///
    /// A processor that is not known is not judged: there are images that call themselves `all`.
    pub(crate) fn on(here: &Platform, image: &Platform, handlers: &Path) -> Self {
        if here.fit(image).is_some() || image.os.is_empty() {
            return Self::Natively;
        }
        if here.os == image.os && here.architecture == image.architecture {
            // Of a higher level than this was compiled for, which the processor may well have.
            return Self::Natively;
        }
        if here.os != image.os {
            return Self::Not(format!("a machine of kind {here} has no {} programs", image.os));
        }
        let Some(qemu) = emulator(&image.architecture) else { return Self::Natively };
        let names = [qemu.to_owned(), format!("{qemu}-static"), "rosetta".to_owned()];
        let rosetta = image.architecture == "amd64";
        let names = &names[..if rosetta { 3 } else { 2 }];
        match names.iter().find_map(|name| Some((name, std::fs::read_to_string(handlers.join(name)).ok()?))) {
            None => Self::Not(format!(
                "a machine of kind {here} needs an emulator, and binfmt_misc has no handler `{qemu}`"
            )),
            Some((name, text)) if !text.starts_with("enabled") => {
                Self::Not(format!("the handler `{name}` of binfmt_misc is disabled"))
            }
            // Without `F` the kernel looks for the emulator in the container's own file system.
            Some((name, text)) if !has_flag(&text, 'F') => Self::Not(format!(
                "the handler `{name}` of binfmt_misc lacks the flag F, so containers do not find it"
            )),
            Some((name, _)) => Self::Emulated(format!("emulated by `{name}`, which is several times slower")),
        }
    }
}

fn has_flag(handler: &str, flag: char) -> bool {
    handler.lines().filter_map(|line| line.strip_prefix("flags:")).any(|flags| flags.contains(flag))
}

/// How QEMU's handler for a processor is called by all who install it.
fn emulator(architecture: &str) -> Option<&'static str> {
    Some(match architecture {
        "amd64" => "qemu-x86_64",
        "386" => "qemu-i386",
        "arm64" => "qemu-aarch64",
        "arm" => "qemu-arm",
        "ppc64le" => "qemu-ppc64le",
        "s390x" => "qemu-s390x",
        "riscv64" => "qemu-riscv64",
        "loong64" => "qemu-loongarch64",
        "mips64le" => "qemu-mips64el",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image for another processor is refused with the reason, before it is downloaded; one that can be emulated is
    /// run, with a note why it is slow.
    #[test]
    fn foreign_images_are_judged_by_the_handlers() {
        let handlers = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(handlers.path().join(name), text).unwrap();
        put("qemu-aarch64", "enabled\ninterpreter /usr/bin/qemu-aarch64\nflags: POCF\noffset 0\n");
        put("qemu-riscv64", "enabled\ninterpreter /usr/bin/qemu-riscv64\nflags: OC\n");
        put("qemu-s390x", "disabled\ninterpreter /usr/bin/qemu-s390x\nflags: F\n");
        let judged = |image: &str| {
            let here: Platform = "linux/amd64".parse().unwrap();
            match Runs::on(&here, &image.parse().unwrap(), handlers.path()) {
                Runs::Natively => "runs".to_owned(),
                Runs::Emulated(how) | Runs::Not(how) => how,
            }
        };
        let all = ["amd64", "386", "amd64/v4", "any", "arm64/v8", "riscv64", "s390x", "arm/v7"];
        let all: Vec<_> =
            all.iter().map(|kind| format!("{kind}: {}", judged(&format!("linux/{kind}")))).collect();
        insta::assert_snapshot!(all.join("\n"), @r"
        amd64: runs
        386: runs
        amd64/v4: runs
        any: runs
        arm64/v8: emulated by `qemu-aarch64`, which is several times slower
        riscv64: the handler `qemu-riscv64` of binfmt_misc lacks the flag F, so containers do not find it
        s390x: the handler `qemu-s390x` of binfmt_misc is disabled
        arm/v7: a machine of kind linux/amd64 needs an emulator, and binfmt_misc has no handler `qemu-arm`
        ");
        insta::assert_snapshot!(judged("windows/amd64"), @"a machine of kind linux/amd64 has no windows programs");
    }
}
