//! Layers that try to get out, to lie, or to fill the machine. Numbers are those of `docs/security` where known; each
//! attack runs with and without the kernel's help in resolving paths, keeping owners (as root) and not.

use crate::tape::{CHAR, DIR, Entry, FIFO, FILE, HARD, SYMLINK, Tape};
use shakedown_runtime::native::image::{
    Limits, Owners, Resolver, UnpackError, UnpackOptions, Unpacked, unpack,
};
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// A directory to unpack into, with things around it that must not change.
pub(crate) struct Arena {
    outer: tempfile::TempDir,
}

type Look = BTreeMap<PathBuf, (u32, u64, u64, i64, i64, Vec<u8>)>;

impl Arena {
    pub(crate) fn new() -> Self {
        let outer = tempfile::tempdir().unwrap();
        fs::create_dir(outer.path().join("target")).unwrap();
        fs::create_dir(outer.path().join("canary")).unwrap();
        fs::create_dir(outer.path().join("target-sibling")).unwrap();
        fs::write(outer.path().join("canary/file"), "alive").unwrap();
        fs::write(outer.path().join("target-sibling/file"), "alive").unwrap();
        symlink("file", outer.path().join("canary/link")).unwrap();
        fs::set_permissions(outer.path().join("canary"), fs::Permissions::from_mode(0o751)).unwrap();
        Self { outer }
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.outer.path().join("target")
    }

    pub(crate) fn canary(&self) -> String {
        self.outer.path().join("canary").to_str().unwrap().to_owned()
    }

    /// Everything outside of the target: type and mode, links, times, content.
    fn look(&self) -> Look {
        let mut seen = Look::new();
        let mut todo = vec![self.outer.path().to_owned()];
        while let Some(directory) = todo.pop() {
            for entry in fs::read_dir(&directory).unwrap() {
                let path = entry.unwrap().path();
                if path == self.target() {
                    continue;
                }
                let stat = fs::symlink_metadata(&path).unwrap();
                if stat.is_dir() {
                    todo.push(path.clone());
                }
                let content = if stat.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
                let own = (stat.mode(), stat.nlink(), stat.ino(), stat.mtime(), stat.ctime_nsec(), content);
                seen.insert(path, own);
            }
        }
        seen
    }

    /// Unpacks and proves that nothing outside was touched.
    #[track_caller]
    pub(crate) fn unpack(&self, layer: &[u8], options: &UnpackOptions) -> Result<Unpacked, UnpackError> {
        let before = self.look();
        let target = fs::File::open(self.target()).unwrap();
        let result = unpack(layer, target.as_fd(), options);
        assert_eq!(self.look(), before, "something outside of the target changed");
        result
    }
}

/// The options that can be tried here: owners are kept by root alone.
pub(crate) fn ways() -> Vec<UnpackOptions> {
    let root = rustix::process::geteuid().is_root();
    let owners = if root { vec![Owners::Keep, Owners::Squash] } else { vec![Owners::Squash] };
    let with = |owners: Owners| {
        [Resolver::Auto, Resolver::Walk].map(|resolver| UnpackOptions {
            owners,
            userxattr: owners == Owners::Squash,
            resolver,
            ..UnpackOptions::default()
        })
    };
    owners.into_iter().flat_map(with).collect()
}

/// The layer is unpacked; the paths (and nothing else that matters) are there.
#[track_caller]
fn confined(layer: impl Fn(&str) -> Tape, there: &[&str]) {
    for options in ways() {
        let arena = Arena::new();
        let result = arena.unpack(&layer(&arena.canary()).done(), &options);
        assert!(result.is_ok(), "{options:?}: {}", result.unwrap_err());
        for path in there {
            let path = arena.target().join(path.replace("CANARY", arena.canary().trim_start_matches('/')));
            assert!(fs::symlink_metadata(&path).is_ok(), "{} is not there with {options:?}", path.display());
        }
    }
}

/// The layer is refused with this reason.
#[track_caller]
fn refused(layer: impl Fn(&str) -> Tape, reason: &str) {
    refused_bytes(|canary| layer(canary).done(), reason);
}

#[track_caller]
fn refused_bytes(layer: impl Fn(&str) -> Vec<u8>, reason: &str) {
    for options in ways() {
        let arena = Arena::new();
        let error =
            arena.unpack(&layer(&arena.canary()), &options).expect_err("the layer was accepted").to_string();
        assert!(error.contains(reason), "{error}");
    }
}

/// 01–05: names that lead up are refused, absolute ones are inside.
#[test]
fn names_that_lead_out() {
    refused(|_| Tape::default().file("../canary/file", "dead"), "contains `..`");
    refused(|_| Tape::default().file("/../canary/file", "dead"), "contains `..`");
    refused(|_| Tape::default().file("a/../../canary/file", "dead"), "contains `..`");
    refused(|_| Tape::default().dir(".."), "contains `..`");
    confined(|canary| Tape::default().file(&format!("{canary}/file"), "dead"), &["CANARY/file"]);
}

/// 07–10, 24, 30–32: whatever is written through a symlink stays inside, also through two.
#[test]
fn writing_through_symlinks() {
    confined(|canary| Tape::default().symlink("out", canary).file("out/file", "dead"), &["CANARY/file"]);
    confined(|_| Tape::default().symlink("out", "../canary").file("out/file", "dead"), &["canary/file"]);
    confined(|canary| Tape::default().symlink("out", canary).dir("out/made"), &["CANARY/made"]);
    confined(|canary| Tape::default().symlink("out", canary).symlink("out/link", "/"), &["CANARY/link"]);
    confined(
        |canary| {
            let chain = Tape::default()
                .symlink("one", canary)
                .symlink("two", "one/..")
                .symlink("three", "two/canary");
            chain.file("three/file", "dead")
        },
        &["three"],
    );
    confined(
        |canary| {
            let fifo = Entry::new(FIFO, "out/fifo");
            Tape::default()
                .symlink("out", canary)
                .entry(fifo)
                .entry(Entry::new(CHAR, "out/null").device(1, 3))
        },
        &["CANARY/fifo"],
    );
    confined(
        |canary| Tape::default().symlink("file", &format!("{canary}/file")).file("file", "dead"),
        &["file"],
    );
    confined(
        |_| Tape::default().symlink("magic", "/proc/self/cwd").file("magic/x", ""),
        &["proc/self/cwd/x"],
    );
    refused(|_| Tape::default().symlink("a", "b").symlink("b", "a").file("a/x", ""), "go in a circle");
    refused(|_| Tape::default().file("file", "").file("file/x", ""), "a file stands where its directory");
}

/// 11–14, 26, 27: hard links lead to files of the image or nowhere.
#[test]
fn hard_links_out() {
    refused(|_| Tape::default().hard("link", "../canary/file"), "contains `..`");
    refused(|_| Tape::default().dir("d").hard("link", "d"), "the directory `d`");
    refused(|_| Tape::default().hard("link", "link"), "itself");
    refused(|_| Tape::default().file("link", "x").hard("link", "./link"), "itself");
    refused(|_| Tape::default().hard("link", "/"), "the root directory");
    for options in ways() {
        let arena = Arena::new();
        let absolute = format!("{}/file", arena.canary());
        let through =
            Tape::default().symlink("s", &arena.canary()).hard("link", "s/file").file("link", "dead");
        let sibling = Tape::default().hard("link", "../target-sibling/file");
        let symlinked = Tape::default().symlink("s", &absolute).hard("link", "s").file("link", "dead");
        arena.unpack(&Tape::default().hard("link", &absolute).file("link", "dead").done(), &options).unwrap();
        arena.unpack(&through.done(), &options).unwrap();
        arena.unpack(&sibling.done(), &options).unwrap_err();
        arena.unpack(&symlinked.done(), &options).unwrap();
    }
}

/// Hard links to nothing: without the layers below it is unsettled, with them it is refused.
#[test]
fn hard_links_to_nothing() {
    for options in ways() {
        let layer = Tape::default().hard("link", "etc/shadow").done();
        assert_eq!(Arena::new().unpack(&layer, &options).unwrap().unsettled.len(), 1);
        let knowing = UnpackOptions { lower: Some(Vec::new()), ..options };
        let error = Arena::new().unpack(&layer, &knowing).unwrap_err().to_string();
        assert!(error.contains("neither this layer nor one below has"), "{error}");
    }
}

/// 17, 18 (CVE-2026-33056): a directory entry over a symlink does not change what it points at.
#[test]
fn chmod_through_symlinks() {
    let entry = || Entry::new(DIR, "d").mode(0o777).owner(12, 34);
    confined(|canary| Tape::default().symlink("d", canary).entry(entry()), &["d"]);
    confined(|canary| Tape::default().entry(entry()).symlink("d", canary), &["d"]);
    confined(
        |canary| Tape::default().dir("d").symlink("d", canary).entry(Entry::new(DIR, "d/.").mode(0o777)),
        &["d"],
    );
}

/// 20–23 (CVE-2021-29136): the root cannot be replaced by a symlink.
#[test]
fn a_symlink_in_place_of_the_root() {
    for name in ["", ".", "/", "./", "//."] {
        refused(
            |canary| Tape::default().symlink(name, canary).file("file", "dead"),
            "only a directory can be the root",
        );
    }
    refused(|canary| Tape::default().symlink("..", canary), "contains `..`");
    refused(|_| Tape::default().symlink("link", ""), "a symlink to nowhere");
}

/// 45–50, 56: deletions that delete nothing with a name, or something elsewhere.
#[test]
fn deletions_that_lead_out() {
    refused(|_| Tape::default().file(".wh.", ""), "deletes nothing");
    refused(|_| Tape::default().file("d/.wh..", ""), "deletes nothing");
    refused(|_| Tape::default().file("d/.wh...", ""), "deletes nothing");
    refused(|_| Tape::default().file(".wh.d/file", ""), "marked as deleted");
    confined(|canary| Tape::default().symlink("out", canary).file("out/.wh.file", ""), &[]);
    confined(|canary| Tape::default().symlink("out", canary).file("out/.wh..wh..opq", ""), &[]);
    refused(|_| Tape::default().entry(Entry::new(CHAR, "gone").device(0, 0)), "overlayfs marks a deletion");
}

/// 64, 65: a layer cannot speak to overlayfs in its own attributes.
#[test]
fn attributes_of_overlayfs_are_dropped() {
    for options in ways() {
        let arena = Arena::new();
        let redirect: &[(&str, &[u8])] = &[
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.kept", b"yes"),
        ];
        arena.unpack(&Tape::default().pax(redirect).dir("d").done(), &options).unwrap();
        let mut names = vec![0; 4096];
        let length = rustix::fs::listxattr(arena.target().join("d"), &mut names[..]).unwrap();
        assert_eq!(names[..length].escape_ascii().to_string(), "user.kept\\x00");
    }
}

/// 67–69: owners that `chown` would read as something else.
#[test]
fn owners_out_of_range() {
    let base256 = |value: i64| {
        let mut field = value.to_be_bytes();
        field[0] |= 0x80;
        field
    };
    for wrong in [-1, i64::from(u32::MAX), (1 << 32) + 5] {
        refused(|_| Tape::default().entry(Entry::new(FILE, "f").put_in(108, base256(wrong))), "its uid");
        refused(|_| Tape::default().entry(Entry::new(FILE, "f").put_in(116, base256(wrong))), "its gid");
        let text = wrong.to_string();
        refused(|_| Tape::default().pax(&[("uid", text.as_bytes())]).file("f", ""), "its uid");
    }
    confined(|_| Tape::default().pax(&[("uid", b"2147483647")]).file("f", ""), &["f"]);
}

/// 80–88: long and strange names arrive as they are, or not at all.
#[test]
fn strange_names() {
    let long = "d/".repeat(120) + "file";
    confined(
        |_| Tape::default().entry(Entry::new(b'L', "././@LongLink").data(&long)).file("cut", ""),
        &[&long],
    );
    confined(|_| Tape::default().pax(&[("path", long.as_bytes())]).file("cut", ""), &[&long]);
    confined(
        |_| Tape::default().entry(Entry::new(FILE, "file").put_in(345, "prefix/dir")),
        &["prefix/dir/file"],
    );
    confined(|_| Tape::default().file("line\nfeed", "").file("\u{e9}", ""), &["line\nfeed", "\u{e9}"]);
    let component = "x".repeat(256);
    refused(
        |_| Tape::default().pax(&[("path", component.as_bytes())]).file("cut", ""),
        "longer than 255 bytes",
    );
    refused(|_| Tape::default().pax(&[("path", b"a\0b")]).file("cut", ""), "NUL byte");
    let deep = "d/".repeat(3000);
    refused(|_| Tape::default().pax(&[("path", deep.as_bytes())]).file("cut", ""), "bytes in a path");
    let both =
        || Tape::default().entry(Entry::new(b'L', "././@LongLink").data("one")).pax(&[("path", b"two")]);
    refused(|_| both().file("cut", ""), "two long names");
}

/// 90, 91 (CVE-2025-62518): the PAX size counts, so no second archive hides in a file's data.
#[test]
fn sizes_that_disagree() {
    let smuggled = Tape::default().file("smuggled", "").bytes;
    let size = smuggled.len().to_string();
    let layer = |_: &str| {
        let carrier = Entry::new(FILE, "carrier").hidden_data(&smuggled);
        Tape::default().pax(&[("size", size.as_bytes())]).entry(carrier).file("after", "")
    };
    confined(layer, &["carrier", "after"]);
    for options in ways() {
        let arena = Arena::new();
        arena.unpack(&layer("").done(), &options).unwrap();
        assert!(!arena.target().join("smuggled").exists());
        assert_eq!(fs::read(arena.target().join("carrier")).unwrap(), smuggled);
    }
}

/// 92–97: headers that lie about their length, or want all the memory.
#[test]
fn extended_headers_that_lie() {
    for record in ["99 path=x\n", "3 \n", "x path=y\n", "-5 path=y\n", "10 path=y"] {
        refused(|_| Tape::default().entry(Entry::new(b'x', "p").data(record)).file("f", ""), "malformed");
    }
    for kind in [b'x', b'g', b'L', b'K'] {
        let huge = Entry::new(kind, "p").octal(124, 12, 0o77777777777);
        refused(|_| Tape::default().entry(huge.clone()), "bytes in an extended header");
    }
    let mut negative = [0xff; 12];
    negative[11] = 0xf0;
    refused(|_| Tape::default().entry(Entry::new(FILE, "f").put_in(124, negative)), "negative size");
    refused(|_| Tape::default().pax(&[("size", b"-1")]).file("f", ""), "negative size");
    refused(|_| Tape::default().pax(&[("size", b"4611686018427387904")]).file("f", ""), "bytes in one entry");
    refused(|_| Tape::default().pax(&[("path", b"f")]), "ends after an extended header");
    let global = Entry::new(b'g', "p").data(crate::tape::records_of(&[("path", b"x")]));
    refused(|_| Tape::default().entry(global.clone()).file("f", ""), "for all entries");
}

/// 98–A1: archives that end too early, or go on after their end.
#[test]
fn archives_that_are_cut() {
    let whole = Tape::default().file("f", &"x".repeat(2000)).bytes;
    refused_bytes(|_| whole[..1500].to_vec(), "inside of an entry's data");
    refused_bytes(|_| whole[..300].to_vec(), "inside of a header");
    for options in ways() {
        let arena = Arena::new();
        arena.unpack(&whole, &options).expect("two blocks of zeros may be missing");
        arena.unpack(&Tape { bytes: whole.clone() }.raw(&[0; 1024]).raw(b"garbage").bytes, &options).unwrap();
    }
    let mut wrong_sum = whole.clone();
    wrong_sum[0] = b'g';
    refused_bytes(|_| wrong_sum.clone(), "checksum");
    refused(|_| Tape::default().entry(Entry::new(b'Z', "f")), "unknown type");
}

/// A3, A4: files whose size nobody backs.
#[test]
fn sparse_files() {
    refused(|_| Tape::default().entry(Entry::new(b'S', "f")), "sparse");
    let sparse: &[(&str, &[u8])] = &[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"1099511627776")];
    refused(|_| Tape::default().pax(sparse).file("f", ""), "sparse");
}

/// Limits hold for entries, bytes and what is compressed a thousandfold.
#[test]
fn bombs() {
    let check = |limits: Limits, layer: &[u8], reason: &str| {
        for options in ways() {
            let error =
                Arena::new().unpack(layer, &UnpackOptions { limits, ..options }).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    };
    let many = (0..20).fold(Tape::default(), |tape, n| tape.file(&format!("f{n}"), "")).done();
    check(Limits { entries: 10, ..Limits::default() }, &many, "more than 10 entries");
    check(Limits { bytes: 4096, ..Limits::default() }, &many, "more than 4096 uncompressed bytes");
    let zeros = Tape::default().entry(Entry::new(FILE, "f").data(vec![0; 8 << 20])).done();
    let bomb = zstd::encode_all(&zeros[..], 3).unwrap();
    check(
        Limits { ratio_from: 1 << 20, ..Limits::default() },
        &bomb,
        "more than 250 bytes for each compressed byte",
    );
}

/// A hard link's data is none, as Go reads it; nothing is hidden in it.
#[test]
fn links_have_no_data() {
    let layer = |_: &str| {
        let inner = Tape::default().file("seen", "").bytes;
        let link = Entry::new(HARD, "link").link("f").octal(124, 12, 512).hidden_data(inner);
        Tape::default().file("f", "x").entry(link)
    };
    confined(layer, &["link", "seen"]);
    let symlink = Entry::new(SYMLINK, "s").link("f").octal(124, 12, 512);
    confined(|_| Tape::default().entry(symlink.clone()).file("after", ""), &["after"]);
}

/// The helper itself: a changed canary is noticed.
#[test]
fn the_canary_sings() {
    let arena = Arena::new();
    let before = arena.look();
    fs::write(Path::new(&arena.canary()).join("file"), "dead").unwrap();
    assert_ne!(arena.look(), before);
}
