//! 60–89: owners, attributes, devices, duplicates and names.

use super::{Case, refused, taken};
use crate::tape::{BLOCK, CHAR, DIR, Entry, FIFO, FILE, SYMLINK, Tape};

pub(super) fn cases() -> Vec<Case> {
    let mut all = attributes();
    all.extend(owners());
    all.extend(duplicates());
    all.extend(names());
    all
}

fn tape() -> Tape {
    Tape::default()
}

fn attributes() -> Vec<Case> {
    let capability: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let xattr = |name: &str, value: &[u8]| tape().pax(&[(&format!("SCHILY.xattr.{name}"), value)]);
    vec![
        taken("60-setuid", tape().entry(Entry::new(FILE, "su").mode(0o4755).data("#!")), &["su"]),
        taken(
            "60a-all-mode-bits",
            tape().entry(Entry::new(FILE, "x").mode(0o7777)).entry(Entry::new(DIR, "d").mode(0o7777)),
            &["x", "d"],
        ),
        taken(
            "60b-mode-with-file-type",
            tape().entry(Entry::new(FILE, "x").octal(100, 8, 0o10_0644)),
            &["x"],
        ),
        taken(
            "61-devices",
            tape().entry(Entry::new(CHAR, "null").device(1, 3)).entry(Entry::new(BLOCK, "disk").device(8, 0)),
            &[],
        ),
        taken("61a-fifo", tape().entry(Entry::new(FIFO, "fifo").mode(0o640)), &["fifo"]),
        taken(
            "61b-device-with-data",
            tape().entry(Entry::new(CHAR, "null").device(1, 3).octal(124, 12, 512)).file("after", ""),
            &["after"],
        ),
        taken("62-user-attribute", xattr("user.origin", b"here").file("f", ""), &["f"]),
        taken("63-capability", xattr("security.capability", capability).file("ping", "x"), &["ping"]),
        taken("64-overlay-redirect", xattr("trusted.overlay.redirect", b"/etc").dir("d"), &["d"]),
        taken("64a-overlay-opaque", xattr("trusted.overlay.opaque", b"y").dir("d"), &["d"]),
        taken("64b-overlay-metacopy", xattr("trusted.overlay.metacopy", b"").file("f", ""), &["f"]),
        taken("65-user-overlay-opaque", xattr("user.overlay.opaque", b"y").dir("d"), &["d"]),
        taken("65a-user-overlay-whiteout", xattr("user.overlay.whiteout", b"y").file("f", ""), &["f"]),
        taken(
            "65b-escaped-overlay-attribute",
            xattr("trusted.overlay.overlay.opaque", b"y").dir("d"),
            &["d"],
        ),
        taken("65c-attribute-of-symlink", xattr("user.x", b"y").symlink("s", "/etc/passwd"), &["s"]),
        refused("66-attribute-too-long", xattr("user.long", &[b'x'; 70_000]).file("f", ""), "attribute"),
        refused("66a-attribute-without-name", xattr("", b"x").file("f", ""), "attribute"),
        refused(
            "66b-attribute-name-too-long",
            xattr(&format!("user.{}", "x".repeat(300)), b"x").file("f", ""),
            "attribute",
        ),
    ]
}

fn owners() -> Vec<Case> {
    let base256 = |value: i64| {
        let mut field = value.to_be_bytes();
        field[0] |= 0x80;
        field
    };
    let uid = |value: i64| tape().entry(Entry::new(FILE, "f").put_in(108, base256(value)));
    let gid = |value: i64| tape().entry(Entry::new(FILE, "f").put_in(116, base256(value)));
    let why = "chown takes -1 for `leave it` and the number modulo 2^32: the file would be root's, or another user's";
    vec![
        taken("67-uid-2-31-minus-1", tape().pax(&[("uid", b"2147483647")]).file("f", ""), &["f"]),
        refused("68-uid-minus-1", uid(-1), "its uid").stricter(why),
        refused("68a-gid-minus-1", gid(-1), "its gid").stricter(why),
        refused("68b-uid-2-32-minus-1", uid(i64::from(u32::MAX)), "its uid").stricter(why),
        refused("68c-pax-uid-minus-1", tape().pax(&[("uid", b"-1")]).file("f", ""), "its uid").stricter(why),
        refused("69-uid-2-32-plus-5", uid((1 << 32) + 5), "its uid").stricter(why),
        refused("69a-gid-2-32-plus-5", gid((1 << 32) + 5), "its gid").stricter(why),
        refused("69b-pax-uid-2-32", tape().pax(&[("uid", b"4294967296")]).file("f", ""), "its uid")
            .stricter(why),
        refused("69c-pax-uid-no-number", tape().pax(&[("uid", b"0x10")]).file("f", ""), "not a number"),
        refused(
            "69d-uid-not-octal",
            tape().entry(Entry::new(FILE, "f").put_in(108, b"9999999\0")),
            "not a number",
        ),
    ]
}

fn duplicates() -> Vec<Case> {
    vec![
        taken("74-file-twice", tape().file("a", "old").file("a", "new"), &["a"]),
        taken("75-file-over-directory", tape().dir("b").file("b/x", "").file("b", "file"), &["b"]),
        taken("75a-directory-over-file", tape().file("c", "").dir("c").file("c/y", ""), &["c/y"]),
        taken(
            "76-directory-twice",
            tape().dir("d").file("d/x", "").entry(Entry::new(DIR, "d").mode(0o711)),
            &["d/x"],
        ),
        taken(
            "76a-same-name-spelt-twice",
            tape().file("a", "old").file("./a", "new").file("/a", "last"),
            &["a"],
        ),
        taken(
            "76b-symlink-over-fifo",
            tape().entry(Entry::new(FIFO, "p")).symlink("p", "/etc/passwd"),
            &["p"],
        ),
    ]
}

fn names() -> Vec<Case> {
    let long = "d/".repeat(120) + "file";
    let pax = |name: &[u8]| tape().pax(&[("path", name)]).file("cut", "");
    let gnu = |name: &str| tape().entry(Entry::new(b'L', "././@LongLink").data(name)).file("cut", "");
    let gnu_magic = |entry: Entry| entry.put_in(257, b"ustar  \0");
    vec![
        taken("80-gnu-long-name", gnu(&long), &["d/d/d/d", "!cut"]),
        taken("81-pax-long-name", pax(long.as_bytes()), &["d/d/d/d", "!cut"]),
        taken(
            "82-ustar-prefix",
            tape().entry(Entry::new(FILE, "file").put_in(345, "prefix/dir")),
            &["prefix/dir/file"],
        ),
        // go-archive TestUstarGnuConflict: Go before 1.8 wrote a prefix behind GNU's magic.
        taken(
            "82a-prefix-behind-gnu-magic",
            tape().entry(gnu_magic(Entry::new(FILE, "file").put_in(345, "prefix/dir"))),
            &["prefix/dir/file"],
        ),
        taken(
            "82b-times-behind-gnu-magic",
            tape().entry(gnu_magic(Entry::new(FILE, "file").octal(345, 12, 1_000_000_000).octal(
                357,
                12,
                1_000_000_000,
            ))),
            &["file"],
        ),
        refused("83-component-of-256-bytes", pax("x".repeat(256).as_bytes()), "longer than 255 bytes"),
        taken("83a-component-of-255-bytes", pax("x".repeat(255).as_bytes()), &["!cut"]),
        refused("84-nul-in-pax-name", pax(b"a\0b"), "NUL byte"),
        refused("84a-nul-in-pax-owner-name", tape().pax(&[("uname", b"a\0b")]).file("f", ""), "NUL byte"),
        taken("84b-nul-in-short-name", tape().entry(Entry::new(FILE, b"one\0two")), &["one"]),
        taken("85-not-utf-8", tape().entry(Entry::new(FILE, b"\xff\xfe")), &[]),
        taken("86-line-feed", tape().file("line\nfeed", "").file("\u{1b}[2J", ""), &["line\nfeed"]),
        taken(
            "86a-unicode",
            tape().file("\u{e9}", "1").file("e\u{301}", "2").file("\u{202e}txt", ""),
            &["\u{e9}", "e\u{301}"],
        ),
        refused("87-path-of-6000-bytes", pax("d/".repeat(3000).as_bytes()), "bytes in a path"),
        refused(
            "87a-link-of-5000-bytes",
            tape().pax(&[("linkpath", &[b'x'; 5000])]).entry(Entry::new(SYMLINK, "s").link("x")),
            "bytes in a path",
        ),
        taken(
            "87b-link-of-3000-bytes",
            tape().pax(&[("linkpath", &[b'x'; 3000])]).entry(Entry::new(SYMLINK, "s").link("x")),
            &["s"],
        ),
        refused(
            "88-two-long-names",
            tape().entry(Entry::new(b'L', "L").data("one")).pax(&[("path", b"two")]).file("cut", ""),
            "two long names",
        )
        .stricter("readers disagree on which of the names counts"),
        taken("88a-pax-path-empty", tape().pax(&[("path", b"")]).file("short", ""), &["short"]),
        taken("89-deep-tree", pax(("a/".repeat(1000) + "leaf").as_bytes()), &["a/a/a/a/a"]),
    ]
}
