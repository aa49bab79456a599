//! Which files of Debian packages are left out of images: what only the building machine, a boot, a package manager or
//! a reader needs.

/// Left out of every image, each with all that is beneath it. `*` stands for any characters, `/` too.
pub(super) const DROPPED: &[&str] = &[
    // Of the machine that builds: where its packages come from, its name, its name servers. And what the runtime makes.
    "etc/apt",
    "etc/hostname",
    "etc/hosts",
    "etc/resolv.conf",
    "etc/machine-id",
    "dev/*",
    "proc/*",
    "run/*",
    "sys/*",
    "tmp/*",
    "var/cache/*",
    "var/log/*",
    "var/tmp/*",
    // Package management. The list of installed packages stays: scanners of images read it.
    "etc/dpkg",
    "etc/debconf.conf",
    "usr/bin/deb-systemd*",
    "usr/bin/debconf*",
    "usr/bin/dpkg*",
    "usr/bin/ucf*",
    "usr/sbin/*update-rc.d",
    "usr/sbin/dpkg*",
    "usr/share/debconf",
    "usr/share/dpkg",
    "usr/share/keyrings",
    "usr/share/ucf",
    "usr/lib/dpkg",
    "var/lib/apt",
    "var/lib/dpkg/*-old",
    "var/lib/dpkg/alternatives",
    "var/lib/dpkg/info/*",
    "var/lib/dpkg/lock*",
    "var/lib/dpkg/triggers",
    "var/lib/dpkg/updates",
    "var/lib/ucf",
    // Making users. The lists of users stay, without their backups.
    "etc/.pwd.lock",
    "etc/*-",
    "etc/adduser.conf",
    "etc/deluser.conf",
    "usr/sbin/addgroup",
    "usr/sbin/delgroup",
    // Perl serves the package tools; the scripts in it go with it, see `Tree::from_tar`.
    "etc/perl",
    "usr/bin/perl*",
    "usr/lib/*/libperl*",
    "usr/lib/*/perl*",
    "usr/share/perl*",
    // Boot and services.
    "etc/cron*",
    "etc/default",
    "etc/fstab",
    "etc/init.d",
    "etc/logrotate.d",
    "etc/rc*.d",
    "etc/systemd",
    "usr/lib/init",
    "usr/lib/systemd/system*",
    "usr/lib/sysusers.d",
    "usr/lib/tmpfiles.d",
    "usr/lib/udev",
    "usr/share/initramfs-tools",
    "var/lib/systemd",
    // For readers; licences stay.
    "etc/alternatives/*.gz",
    "usr/share/apport",
    "usr/share/bash-completion",
    "usr/share/bug",
    "usr/share/doc-base",
    "usr/share/gcc",
    "usr/share/gdb",
    "usr/share/gtk-doc",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/man",
    "usr/share/zsh",
    // Languages: C.UTF-8 is in the C library, and `usr/lib/locale` stays.
    "usr/lib/*/gconv",
    "usr/share/i18n",
    "usr/share/locale",
    // Time that counts leap seconds.
    "usr/share/zoneinfo/right",
    // For compiling against a library.
    "usr/include",
    "usr/lib/*/cmake",
    "usr/lib/*/pkgconfig",
    // Administration of a whole machine.
    "etc/security",
    "usr/games",
    "usr/sbin/fdisk",
    "usr/sbin/fsck*",
    "usr/sbin/mkfs*",
    "usr/sbin/sfdisk",
    "usr/sbin/cfdisk",
];

/// Whether the file of this path (relative, without a leading `./`) belongs in an image.
pub(super) fn keeps(path: &str, dropped: &[&str]) -> bool {
    if let Some(document) = path.strip_prefix("usr/share/doc/") {
        return !document.contains('/') || document.ends_with("/copyright");
    }
    let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
    let mut beginnings = ends.map(|end| &path[..end]);
    !beginnings.any(|beginning| DROPPED.iter().chain(dropped).any(|pattern| matches(pattern, beginning)))
}

/// Whether a file with these contents is a script in Perl: without Perl it is of no use.
pub(super) fn is_perl_script(contents: &[u8]) -> bool {
    let line = contents.split(|&byte| byte == b'\n').next().unwrap_or_default();
    line.starts_with(b"#!") && line.windows(4).any(|word| word == b"perl")
}

/// Whether the text is of the form of the pattern, in which each `*` stands for any characters.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, rest)) => text.strip_prefix(head).is_some_and(|tail| {
            let mut starts = (0..=tail.len()).filter(|&start| tail.is_char_boundary(start));
            starts.any(|start| matches(rest, &tail[start..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image with the name servers or package sources of the machine that built it would work only there.
    #[test]
    fn leaves_out_what_belongs_to_the_building_machine() {
        for path in ["etc/resolv.conf", "etc/apt/sources.list", "var/lib/apt/lists/x", "dev/null"] {
            assert!(!keeps(path, &[]), "{path}");
        }
        for path in ["dev", "etc/passwd", "usr/share/doc/bash/copyright", "usr/lib/locale/C.utf8/LC_CTYPE"] {
            assert!(keeps(path, &[]), "{path}");
        }
    }

    /// Pruning by pattern must reach files below a directory, and only those.
    #[test]
    fn a_pattern_covers_what_is_beneath() {
        assert!(!keeps("usr/lib/postgresql/15/lib/bitcode/postgres/x.bc", &["usr/lib/postgresql/*/bitcode"]));
        assert!(keeps("usr/lib/postgresql/15/lib/bitcode2", &["usr/lib/postgresql/*/bitcode"]));
    }
}
