//! What the table of attacks (`corpus`) cannot say: limits that are set low, what is left of dropped attributes, contents.

use crate::arena::{Arena, ways};
use crate::tape::{Entry, FILE, Tape};
use shakedown_runtime::native::image::{Limits, UnpackOptions};
use std::fs;

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

/// 90 (CVE-2025-62518): the PAX size counts, so a second archive in a file's data stays data.
#[test]
fn a_smuggled_archive_stays_data() {
    let smuggled = Tape::default().file("smuggled", "").bytes;
    let size = smuggled.len().to_string();
    let carrier = Entry::new(FILE, "carrier").hidden_data(&smuggled);
    let layer = Tape::default().pax(&[("size", size.as_bytes())]).entry(carrier).file("after", "").done();
    for options in ways() {
        let arena = Arena::new();
        arena.unpack(&layer, &options).unwrap();
        assert!(!arena.target().join("smuggled").exists());
        assert_eq!(fs::read(arena.target().join("carrier")).unwrap(), smuggled);
    }
}
