//! 90–A9: archives whose parts contradict each other, end early, or want all there is.

use super::{Case, Verdict, case, refused, taken};
use crate::images::gzip;
use crate::tape::{CHAR, DIR, Entry, FILE, SYMLINK, Tape, records_of};

const NO_SPARSE: &str = "a sparse file's size is backed by nobody; image-spec: SHOULD NOT";

pub(super) fn cases() -> Vec<Case> {
    let mut all = sizes();
    all.extend(extended_headers());
    all.extend(ends());
    all.extend(types());
    all.extend(bombs());
    all
}

fn tape() -> Tape {
    Tape::default()
}

/// An entry that must stay data.
fn smuggled() -> Vec<u8> {
    tape().file("smuggled", "").bytes
}

fn sizes() -> Vec<Case> {
    let carrier = || Entry::new(FILE, "carrier").hidden_data(smuggled());
    let with_pax = |size: &[u8], entry: Entry| tape().pax(&[("size", size)]).entry(entry).file("after", "");
    let negative = || {
        let mut field = [0xff; 12];
        field[11] = 0xf0;
        field
    };
    let slash = |kind: u8| Entry::new(kind, "x/").data(smuggled());
    vec![
        // CVE-2025-62518.
        taken("90-pax-size-over-zero", with_pax(b"512", carrier()), &["carrier", "after", "!smuggled"]),
        taken(
            "91-pax-size-under-ustar",
            with_pax(b"0", Entry::new(FILE, "carrier").octal(124, 12, 512)),
            &["carrier", "after"],
        ),
        taken("91a-pax-size-of-directory", with_pax(b"512", Entry::new(DIR, "d")), &["d", "after"]),
        taken(
            "91b-size-of-directory",
            tape().entry(Entry::new(DIR, "d").octal(124, 12, 512)).file("after", ""),
            &["d", "after"],
        ),
        taken(
            "91c-size-of-symlink",
            tape().entry(Entry::new(SYMLINK, "s").link("f").octal(124, 12, 512)).file("after", ""),
            &["s", "after"],
        ),
        taken(
            "91d-file-with-slash-and-data",
            tape().entry(slash(b'0')).file("after", ""),
            &["x", "after", "!smuggled"],
        ),
        refused(
            "91e-old-directory-with-data",
            tape().entry(slash(0)).file("after", ""),
            "is a directory with data",
        )
        .stricter("tar programs disagree on whether such data is skipped or read as entries"),
        refused(
            "96-negative-size",
            tape().entry(Entry::new(FILE, "f").put_in(124, negative())),
            "negative size",
        ),
        refused("96a-negative-pax-size", tape().pax(&[("size", b"-1")]).file("f", ""), "negative size"),
        refused(
            "97-size-2-62",
            tape().pax(&[("size", b"4611686018427387904")]).file("f", ""),
            "bytes in one entry",
        ),
        refused(
            "97a-size-beyond-64-bits",
            tape().pax(&[("size", b"99999999999999999999")]).file("f", ""),
            "not a number",
        ),
        refused(
            "97b-size-not-octal",
            tape().entry(Entry::new(FILE, "f").put_in(124, b"0000000008\0")),
            "not a number",
        ),
        refused(
            "97c-size-base256-beyond-64-bits",
            tape().entry(Entry::new(FILE, "f").put_in(124, [0xbf; 12])),
            "not a number",
        ),
    ]
}

fn extended_headers() -> Vec<Case> {
    let record = |text: &str| tape().entry(Entry::new(b'x', "p").data(text)).file("f", "");
    let huge = |kind: u8| tape().entry(Entry::new(kind, "p").octal(124, 12, 0o77777777777));
    let global = |records: &[(&str, &[u8])]| tape().entry(Entry::new(b'g', "p").data(records_of(records)));
    let global_why = "Go ignores global records and GNU tar obeys them";
    let lost = "Go forgets what stands before a global header, others do not";
    let wrong = "malformed";
    vec![
        refused("92-record-too-long", record("99 path=x\n"), wrong),
        refused("92a-record-too-short", record("3 \n"), wrong),
        refused("92b-record-length-no-number", record("x path=y\n"), wrong),
        refused("92c-record-length-negative", record("-5 path=y\n"), wrong),
        refused("92d-record-without-line-feed", record("10 path=yy"), wrong),
        refused("92e-record-without-key", record("6 =bb\n"), "has a NUL byte or no name"),
        refused("92f-record-length-huge", record("99999999999999999999 path=x\n"), wrong),
        refused("93-long-name-8-gib", huge(b'L'), "bytes in an extended header"),
        refused("93a-long-link-8-gib", huge(b'K'), "bytes in an extended header"),
        refused("94-pax-8-gib", huge(b'x'), "bytes in an extended header"),
        refused("94a-global-8-gib", huge(b'g'), "bytes in an extended header"),
        refused("95-ends-after-pax", tape().pax(&[("path", b"f")]), "ends after an extended header")
            .stricter("the archive was cut where an entry should follow"),
        refused("95a-global-path", global(&[("path", b"x")]).file("f", ""), "for all entries")
            .stricter(global_why),
        taken("95b-global-comment", global(&[("comment", b"commit")]).file("f", ""), &["f"]),
        refused(
            "95c-pax-then-global",
            tape()
                .pax(&[("path", b"long")])
                .entry(Entry::new(b'g', "p").data(records_of(&[("comment", b"c")])))
                .file("short", ""),
            "before a global header",
        )
        .stricter(lost),
        taken(
            "95d-pax-twice",
            tape().pax(&[("path", b"one")]).pax(&[("path", b"two")]).file("short", ""),
            &["two"],
        ),
        refused("95e-mtime-no-time", tape().pax(&[("mtime", b"never")]).file("f", ""), "not a time"),
        taken(
            "95f-mtime-far",
            tape()
                .pax(&[("mtime", b"253402300800.5")])
                .file("f", "")
                .pax(&[("mtime", b"-1.5")])
                .file("g", ""),
            &["f", "g"],
        ),
    ]
}

fn ends() -> Vec<Case> {
    let whole = tape().file("f", &"x".repeat(2000)).bytes;
    let mut wrong_sum = whole.clone();
    wrong_sum[0] = b'g';
    let cut = |length: usize| whole[..length].to_vec();
    let garbage = Tape { bytes: whole.clone() }.raw(&[0; 1024]).raw(b"garbage").bytes;
    let single = Tape { bytes: whole.clone() }.raw(&[0; 512]).raw(&whole).bytes;
    vec![
        case("98-cut-in-data", cut(1500), Verdict::Refused("inside of an entry's data")),
        case("98a-cut-in-header", cut(300), Verdict::Refused("inside of a header")),
        case("99-no-end-blocks", whole.clone(), Verdict::Taken(&["f"])),
        case("99a-one-end-block", Tape { bytes: whole.clone() }.raw(&[0; 512]).bytes, Verdict::Taken(&["f"])),
        case("A0-garbage-after-the-end", garbage, Verdict::Taken(&["f"])),
        case("A0a-block-of-zeros-between", single, Verdict::Refused("a single block of zeros")),
        case(
            "A0b-second-archive-after-the-end",
            Tape { bytes: whole.clone() }.raw(&[0; 1024]).raw(&smuggled()).bytes,
            Verdict::Taken(&["f", "!smuggled"]),
        ),
        case("A1-wrong-checksum", wrong_sum, Verdict::Refused("checksum")),
        case("A1a-empty-layer", Vec::new(), Verdict::Taken(&[])),
        case("A1b-only-end-blocks", vec![0; 1024], Verdict::Taken(&[])),
        case("A1c-text", b"<html>not found</html>".repeat(50), Verdict::Refused("")),
        case("A1d-compressed-twice", gzip(&gzip(&whole)), Verdict::Refused("")),
    ]
}

fn types() -> Vec<Case> {
    let unknown = "unknown type";
    let sparse: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"f"),
        ("GNU.sparse.realsize", b"1099511627776"),
    ];
    let old_pax: &[(&str, &[u8])] =
        &[("GNU.sparse.size", b"1099511627776"), ("GNU.sparse.numblocks", b"0"), ("GNU.sparse.map", b"")];
    vec![
        refused("A2-unknown-type", tape().entry(Entry::new(b'Z', "f")), unknown),
        refused("A2a-contiguous-file", tape().entry(Entry::new(b'7', "f")), unknown),
        refused("A2b-volume-label", tape().entry(Entry::new(b'V', "label")).file("f", ""), unknown),
        refused("A2c-multi-volume", tape().entry(Entry::new(b'M', "f")), unknown),
        refused("A2d-directory-dump", tape().entry(Entry::new(b'D', "d")), unknown),
        refused(
            "A2e-solaris-pax",
            tape().entry(Entry::new(b'X', "p").data("11 path=ab\n")).file("f", ""),
            unknown,
        ),
        refused(
            "A2f-device-number-not-octal",
            tape().entry(Entry::new(CHAR, "c").put_in(329, b"zzzzzzz\0")),
            "not a number",
        ),
        refused(
            "A2g-device-number-of-file-not-octal",
            tape().entry(Entry::new(FILE, "f").put_in(329, b"zzzzzzz\0")),
            "not a number",
        ),
        refused(
            "A2h-mode-not-octal",
            tape().entry(Entry::new(FILE, "f").put_in(100, b"rwxr-xr\0")),
            "not a number",
        ),
        taken("A2i-old-directory", tape().entry(Entry::new(0, "d/").mode(0o755)).file("d/x", ""), &["d/x"]),
        refused(
            "A3-old-gnu-sparse",
            tape().entry(Entry::new(b'S', "f").put_in(257, b"ustar  \0").octal(483, 12, 1 << 33)),
            "sparse",
        ),
        refused(
            "A4-pax-sparse-1-tib",
            tape().pax(sparse).entry(Entry::new(FILE, "f").data([&b"0\n"[..], &[0; 510]].concat())),
            "sparse",
        )
        .stricter(NO_SPARSE),
        refused("A4a-pax-sparse-old-form", tape().pax(old_pax).file("f", ""), "sparse").stricter(NO_SPARSE),
    ]
}

fn bombs() -> Vec<Case> {
    let zeros = tape().entry(Entry::new(FILE, "zeros").data(vec![0; 12 << 20])).file("after", "");
    let many = (0..5000).fold(tape(), |tape, n| tape.file(&format!("m/{n}"), ""));
    let deep = (0..200).fold(tape(), |tape, n| tape.dir(&"d/".repeat(n % 40 + 1)));
    vec![
        taken("A5-zeros", zeros, &["zeros", "after"]),
        taken("A6-five-thousand-files", many, &["m/0", "m/4999"]),
        taken("A7-same-directories-again", deep, &["d/d/d"]),
        taken("A8-pax-of-900-kib", tape().pax(&[("comment", &vec![b'x'; 900 << 10])]).file("f", ""), &["f"]),
        refused(
            "A9-pax-of-2-mib",
            tape().pax(&[("comment", &vec![b'x'; 2 << 20])]).file("f", ""),
            "bytes in an extended header",
        ),
    ]
}
