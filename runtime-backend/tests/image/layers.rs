//! What an honest layer says arrives: owners, rights, times, links, deletions in overlayfs's form.

use crate::arena::{Arena, ways};
use crate::tape::{CHAR, DIR, Entry, FIFO, FILE, SYMLINK, Tape};
use shakedown_runtime::native::image::{Owners, UnpackOptions, Unpacked, Unsettled};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;

/// Unpacks in every way and hands each result to `look`, with the options it was made with.
#[track_caller]
fn check(layer: &Tape, look: impl Fn(PathBuf, &UnpackOptions, &Unpacked)) {
    for options in ways() {
        let arena = Arena::new();
        let unpacked = arena.unpack(&layer.clone().done(), &options).unwrap();
        look(arena.target(), &options, &unpacked);
    }
}

fn opaque(path: &std::path::Path, options: &UnpackOptions) -> bool {
    let name = if options.userxattr { "user.overlay.opaque" } else { "trusted.overlay.opaque" };
    let mut value = [0; 8];
    rustix::fs::getxattr(path, name, &mut value[..]).is_ok_and(|length| &value[..length] == b"y")
}

fn whiteout(path: &std::path::Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|stat| stat.file_type().is_char_device() && stat.rdev() == 0)
}

/// Files have their owner, rights (set-user-id included), time and content.
#[test]
fn files_arrive_as_they_were() {
    let setuid = Entry::new(FILE, "bin/su").mode(0o4755).owner(12, 34).data("#!");
    let layer = Tape::default().entry(Entry::new(DIR, "bin").mode(0o1777)).entry(setuid);
    let layer = layer
        .pax(&[("mtime", b"1234567890.5")])
        .file("dated", "x")
        .entry(Entry::new(FIFO, "fifo").mode(0o640));
    check(&layer, |target, options, unpacked| {
        let su = fs::metadata(target.join("bin/su")).unwrap();
        assert_eq!((su.mode() & 0o7777, su.mtime(), su.len()), (0o4755, 1_000_000_000, 2));
        if options.owners == Owners::Keep {
            assert_eq!((su.uid(), su.gid()), (12, 34));
        }
        let bin = fs::metadata(target.join("bin")).unwrap();
        assert_eq!((bin.mode() & 0o7777, bin.mtime()), (0o1777, 1_000_000_000));
        let dated = fs::metadata(target.join("dated")).unwrap();
        assert_eq!((dated.mtime(), dated.mtime_nsec()), (1_234_567_890, 500_000_000));
        let fifo = fs::metadata(target.join("fifo")).unwrap();
        assert!(fifo.file_type().is_fifo());
        assert_eq!(fifo.mode() & 0o7777, 0o640);
        assert_eq!(unpacked.entries, 4);
    });
}

/// A read-only directory is filled all the same, and ends read-only.
#[test]
fn closed_directories_are_filled() {
    let closed = |name: &str| Entry::new(DIR, name).mode(0o500);
    let layer = Tape::default().entry(closed("a")).entry(closed("a/b")).file("a/b/file", "x");
    check(&layer, |target, _, _| {
        assert_eq!(fs::metadata(target.join("a/b")).unwrap().mode() & 0o777, 0o500);
        assert_eq!(fs::read(target.join("a/b/file")).unwrap(), b"x");
        for path in ["a/b", "a"] {
            fs::set_permissions(target.join(path), fs::Permissions::from_mode(0o700)).unwrap();
        }
    });
}

/// Links: hard ones share a file, symbolic ones keep their text, whatever it says.
#[test]
fn links_arrive() {
    let layer =
        Tape::default().file("a", "x").hard("b", "a").symlink("c", "/nowhere/../else").hard("d", "/c");
    check(&layer, |target, _, _| {
        let ino = |name: &str| fs::symlink_metadata(target.join(name)).unwrap().ino();
        assert_eq!((ino("a"), ino("c")), (ino("b"), ino("d")));
        assert_eq!(fs::read_link(target.join("c")).unwrap().to_str(), Some("/nowhere/../else"));
    });
}

/// 60–63: attributes and devices, as far as this user may set them; what may not be set is told.
#[test]
fn attributes_and_devices_arrive_where_permitted() {
    let capability: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let xattrs: &[(&str, &[u8])] =
        &[("SCHILY.xattr.user.origin", b"here"), ("SCHILY.xattr.security.capability", capability)];
    let layer = Tape::default()
        .pax(xattrs)
        .file("ping", "x")
        .entry(Entry::new(CHAR, "null").device(1, 3).mode(0o666));
    check(&layer, |target, options, unpacked| {
        let mut value = [0; 64];
        let length = rustix::fs::getxattr(target.join("ping"), "user.origin", &mut value[..]).unwrap();
        assert_eq!(&value[..length], b"here");
        let (device, noted) =
            (target.join("null").exists(), unpacked.notes.join("\n").contains("device nodes"));
        assert_ne!(device, noted);
        if options.owners == Owners::Squash {
            assert!(noted, "{:?}", unpacked.notes);
        }
        if rustix::process::geteuid().is_root() {
            rustix::fs::getxattr(target.join("ping"), "security.capability", &mut value[..]).unwrap();
        }
    });
}

/// 40–44: deletions become character devices 0:0, opaque directories an attribute.
#[test]
fn deletions_take_overlayfs_form() {
    let layer = Tape::default().dir("etc").file("etc/.wh.passwd", "").dir("var").file("var/.wh..wh..opq", "");
    let layer = layer.file("var/new", "x").file(".wh.top", "");
    check(&layer, |target, options, unpacked| {
        assert!(whiteout(&target.join("etc/passwd")));
        assert!(whiteout(&target.join("top")));
        assert!(opaque(&target.join("var"), options));
        assert!(!opaque(&target.join("etc"), options));
        assert!(target.join("var/new").exists());
        assert!(!unpacked.opaque);
    });
}

/// 43, 51–53: a deletion is of the layers below, never of this one, wherever it stands.
#[test]
fn deletions_spare_their_own_layer() {
    let first =
        Tape::default().file(".wh.file", "").file("file", "new").file("d/.wh..wh..opq", "").file("d/x", "");
    let last =
        Tape::default().file("file", "new").file(".wh.file", "").file("d/x", "").file("d/.wh..wh..opq", "");
    for layer in [first, last] {
        check(&layer, |target, options, _| {
            assert_eq!(fs::read(target.join("file")).unwrap(), b"new");
            assert!(target.join("d/x").exists());
            assert!(opaque(&target.join("d"), options));
        });
    }
    // A new directory of a deleted name: what was in the old one stays deleted.
    check(&Tape::default().dir("d").file("d/x", "").file(".wh.d", ""), |target, options, _| {
        assert!(opaque(&target.join("d"), options));
    });
}

/// 58: a layer that deletes everything below says so, since overlayfs has no sign for it.
#[test]
fn a_whole_layer_can_be_opaque() {
    check(&Tape::default().file(".wh..wh..opq", "").file("x", ""), |_, _, unpacked| assert!(unpacked.opaque));
}

/// 74–76: of two entries of one name the last one counts, whatever they are.
#[test]
fn the_last_entry_counts() {
    let layer = Tape::default().file("a", "old").file("a", "new").dir("b").file("b/x", "").file("b", "file");
    let layer = layer.symlink("c", "a").dir("c").file("c/y", "").file("d", "").symlink("d", "a");
    let layer =
        layer.dir("e").entry(Entry::new(DIR, "e").mode(0o711)).file("f", "1").hard("g", "f").file("f", "2");
    check(&layer, |target, _, _| {
        assert_eq!(fs::read(target.join("a")).unwrap(), b"new");
        assert_eq!(fs::read(target.join("b")).unwrap(), b"file");
        assert!(target.join("c/y").exists());
        assert!(fs::symlink_metadata(target.join("d")).unwrap().is_symlink());
        assert_eq!(fs::metadata(target.join("e")).unwrap().mode() & 0o777, 0o711);
        assert_eq!(fs::read(target.join("g")).unwrap(), b"1", "the other name keeps the old file");
    });
}

/// A directory that was open when a symlink took its place is not written to any more.
#[test]
fn a_replaced_directory_is_forgotten() {
    let layer = Tape::default().dir("d").file("d/one", "").dir("e").symlink("d", "e").file("d/two", "");
    check(&layer, |target, _, _| {
        assert!(target.join("e/two").exists());
        assert!(!target.join("e/one").exists());
    });
}

/// Layers by unusual writers lean on what is below; with it they come out right.
#[test]
fn what_depends_on_lower_layers_is_told_and_then_right() {
    let layer =
        Tape::default().hard("usr/bin/vi", "usr/bin/vim").file("gone/.wh.x", "").file("tmp/.wh.y", "").done();
    for options in ways() {
        let below = Arena::new();
        let tmp = Entry::new(DIR, "tmp").mode(0o1777);
        let lower = Tape::default().file("usr/bin/vim", "editor").entry(tmp).symlink("gone", "usr").done();
        below.unpack(&lower, &options).unwrap();
        let first = Arena::new().unpack(&layer, &options).unwrap();
        let tmp_whiteout = Unsettled::Whiteout(b"tmp".to_vec());
        assert!(first.unsettled.contains(&Unsettled::Link(b"usr/bin/vim".to_vec())), "{:?}", first.unsettled);
        assert!(
            first.unsettled.contains(&tmp_whiteout)
                && first.unsettled.contains(&Unsettled::Directory(b"tmp".to_vec()))
        );
        let arena = Arena::new();
        let knowing = UnpackOptions { lower: Some(vec![below.target()]), ..options };
        let second = arena.unpack(&layer, &knowing).unwrap();
        assert!(second.unsettled.is_empty());
        assert_eq!(fs::read(arena.target().join("usr/bin/vi")).unwrap(), b"editor");
        assert_eq!(fs::metadata(arena.target().join("usr/bin/vim")).unwrap().nlink(), 2);
        assert_eq!(fs::metadata(arena.target().join("tmp")).unwrap().mode() & 0o7777, 0o1777);
        assert!(whiteout(&arena.target().join("tmp/y")));
        assert!(
            !arena.target().join("gone").exists(),
            "a mark where nothing is below shows as a file that is not there"
        );
    }
}

/// gzip (of several members, as `pigz` and `stargz` write it), zstd and nothing are told apart by content.
#[test]
fn compressions() {
    let plain = Tape::default().file("a", &"x".repeat(100_000)).done();
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let members = [gzip(&plain[..700]), gzip(&plain[700..])].concat();
    let zstd =
        [zstd::encode_all(&plain[..900], 1).unwrap(), zstd::encode_all(&plain[900..], 1).unwrap()].concat();
    for options in ways() {
        let digests = [&plain, &gzip(&plain), &members, &zstd].map(|layer| {
            let arena = Arena::new();
            let unpacked = arena.unpack(layer, &options).unwrap();
            assert_eq!(fs::metadata(arena.target().join("a")).unwrap().len(), 100_000);
            (unpacked.diff_id, unpacked.bytes)
        });
        assert!(digests.iter().all(|digest| *digest == digests[0]));
        let cut = &members[..members.len() - 20];
        let garbage = [&members[..], b"garbage"].concat();
        for wrong in [cut, &garbage] {
            let error = Arena::new().unpack(wrong, &options).unwrap_err().to_string();
            assert!(error.contains("cannot be decompressed"), "{error}");
        }
    }
}

/// A symlink gets its own owner and time, not those of what it points at.
#[test]
fn symlinks_have_their_own_time() {
    let link = Entry::new(SYMLINK, "link").link("file").owner(7, 8).octal(136, 12, 77);
    check(&Tape::default().file("file", "").entry(link), |target, options, _| {
        let stat = fs::symlink_metadata(target.join("link")).unwrap();
        assert_eq!(stat.mtime(), 77);
        if options.owners == Owners::Keep {
            assert_eq!((stat.uid(), stat.gid()), (7, 8));
        }
        assert_eq!(fs::metadata(target.join("file")).unwrap().mtime(), 1_000_000_000);
    });
}
