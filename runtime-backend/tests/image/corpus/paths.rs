//! 01–32: names that lead out, and symlinks that lead what is written after them out.

use super::{Case, refused, taken};
use crate::tape::{CHAR, DIR, Entry, FIFO, FILE, Tape};

const DOTS: &str = "contains `..`";
/// The others resolve `..` by text and stay inside; behind a symlink that is another place than the kernel's.
const NO_DOTS: &str = "no tool writes names with `..`, and readers disagree on where they lead";

pub(super) fn cases(canary: &str) -> Vec<Case> {
    let mut all = names(canary);
    all.extend(symlinks(canary));
    all.extend(chains(canary));
    all.extend(instead_of_directories(canary));
    all
}

fn tape() -> Tape {
    Tape::default()
}

fn names(canary: &str) -> Vec<Case> {
    let inside = format!("{canary}/file");
    vec![
        refused("01-dotdot-name", tape().file("../canary/file", "dead"), DOTS).stricter(NO_DOTS),
        refused("01a-dotdot-deep", tape().file(&("../".repeat(20) + "tmp/dead"), "dead"), DOTS)
            .stricter(NO_DOTS),
        refused("01b-sibling-prefix", tape().file("../target-sibling/file", "dead"), DOTS).stricter(NO_DOTS),
        refused("02-slash-dotdot", tape().file("/../canary/file", "dead"), DOTS).stricter(NO_DOTS),
        refused("03-dotdot-inside", tape().dir("a").file("a/../../canary/file", "dead"), DOTS)
            .stricter(NO_DOTS),
        refused("03a-dotdot-that-stays", tape().dir("a").dir("b").file("a/../b/file", "x"), DOTS)
            .stricter(NO_DOTS),
        refused(
            "03b-dotdot-behind-symlink",
            tape().dir("a").symlink("a/up", "/").file("a/up/../x", "x"),
            DOTS,
        )
        .stricter(NO_DOTS),
        refused("03c-dotdot-in-pax", tape().pax(&[("path", b"../canary/file")]).file("x", "dead"), DOTS)
            .stricter(NO_DOTS),
        refused(
            "03d-dotdot-in-gnu-long-name",
            tape().entry(Entry::new(b'L', "././@LongLink").data("../canary/file\0")).file("x", "dead"),
            DOTS,
        )
        .stricter(NO_DOTS),
        refused(
            "03e-dotdot-in-ustar-prefix",
            tape().entry(Entry::new(FILE, "canary/file").put_in(345, "..").data("dead")),
            DOTS,
        )
        .stricter(NO_DOTS),
        taken("04-absolute-name", tape().file(&inside, "dead"), &["CANARY/file"]),
        taken("04a-many-slashes", tape().file("////etc////issue", "x"), &["etc/issue"]),
        taken("04b-dots", tape().file("./././x/././y", "x"), &["x/y"]),
        refused("05-dotdot-directory", tape().dir(".."), DOTS).stricter(NO_DOTS),
        refused("05a-dotdot-directory-mode", tape().entry(Entry::new(DIR, "../canary").mode(0o777)), DOTS)
            .stricter(NO_DOTS),
        taken(
            "05b-three-dots",
            tape().file("...", "x").file("..a", "y").file(".. ", "z"),
            &["...", "..a", ".. "],
        ),
        taken("05c-backslashes", tape().file("..\\canary\\file", "x"), &["..\\canary\\file"]),
        taken("06-root-entry", tape().entry(Entry::new(DIR, "./").mode(0o755)).file("x", ""), &["x"]),
    ]
}

fn symlinks(canary: &str) -> Vec<Case> {
    let out = || tape().symlink("out", canary);
    let up = || tape().symlink("out", "../canary");
    vec![
        taken("07-file-through-absolute-symlink", out().file("out/file", "dead"), &["CANARY/file"]),
        taken("07a-file-through-relative-symlink", up().file("out/file", "dead"), &["canary/file"]),
        taken(
            "07b-file-through-deep-relative-symlink",
            tape().dir("a").symlink("a/out", &("../".repeat(30) + "etc")).file("a/out/shadow", "dead"),
            &["etc/shadow"],
        ),
        taken("08-directory-through-symlink", out().dir("out/made"), &["CANARY/made"]),
        taken(
            "08a-directory-mode-through-symlink",
            out().entry(Entry::new(DIR, "out/sub").mode(0o777)),
            &["CANARY/sub"],
        ),
        taken("09-symlink-through-symlink", out().symlink("out/link", "/"), &["CANARY/link"]),
        taken("09a-hardlink-through-symlink", out().file("x", "x").hard("out/link", "x"), &["CANARY/link"]),
        taken("10-fifo-through-symlink", out().entry(Entry::new(FIFO, "out/fifo")), &["CANARY/fifo"]),
        taken("10a-device-through-symlink", out().entry(Entry::new(CHAR, "out/null").device(1, 3)), &[]),
        taken(
            "10b-file-over-symlink",
            tape().symlink("file", &format!("{canary}/file")).file("file", "dead"),
            &["file"],
        ),
        taken(
            "10c-file-over-dangling-symlink",
            tape().symlink("f", "/nowhere/at/all").file("f", "x"),
            &["f"],
        ),
        taken(
            "10d-file-through-symlink-to-proc",
            tape().symlink("magic", "/proc/self/cwd").file("magic/x", ""),
            &["proc/self/cwd/x"],
        ),
        taken(
            "10e-file-through-symlink-to-fd",
            tape().symlink("m", "/proc/self/fd/3").file("m/x", ""),
            &["proc/self/fd/3/x"],
        ),
        taken("10f-file-through-symlink-to-root", tape().symlink("s", "/").file("s/x", ""), &["x"]),
        taken("10g-file-through-symlink-to-dotdot", tape().symlink("s", "..").file("s/x", ""), &["x"]),
        taken("10h-file-through-symlink-to-dot", tape().symlink("s", ".").file("s/x", ""), &["x"]),
        taken("10i-symlink-below-then-file", tape().file("out/file", "dead"), &[]).on(out()),
    ]
}

fn chains(canary: &str) -> Vec<Case> {
    let chain = tape().symlink("one", canary).symlink("two", "one/..").symlink("three", "two/canary");
    let long = (0..45).fold(tape(), |tape, n| tape.symlink(&format!("l{n}"), &format!("l{}", n + 1)));
    vec![
        taken(
            "24-two-hops",
            tape().symlink("a", "b").symlink("b", canary).file("a/file", "dead"),
            &["CANARY/file"],
        ),
        taken("24a-three-hops", chain.file("three/file", "dead"), &["three"]),
        taken(
            "24b-hop-made-later",
            tape().symlink("a", "b/..").dir("b").symlink("c", "a/../canary").file("c/file", "dead"),
            &["canary/file"],
        ),
        refused("25-circle", tape().symlink("a", "b").symlink("b", "a").file("a/x", ""), "go in a circle"),
        refused("25a-circle-of-one", tape().symlink("a", "a").file("a/x", ""), "go in a circle"),
        refused("25b-more-than-forty-links", long.dir("l45").file("l0/x", ""), "go in a circle"),
        refused("25c-circle-that-grows", tape().symlink("a", "a/a").file("a/x", ""), "go in a circle"),
        taken(
            "30-symlink-swapped-for-directory",
            tape().dir("d").file("d/one", "").symlink("d2", canary).symlink("d", "d2").file("d/two", "dead"),
            &["CANARY/two"],
        ),
        taken(
            "31-directory-swapped-for-symlink-twice",
            tape().symlink("d", canary).dir("d").file("d/in", "").symlink("d", canary).file("d/file", "dead"),
            &["CANARY/file"],
        ),
        taken(
            "32-parent-swapped-below-open-directory",
            tape().dir("a").dir("a/b").file("a/b/one", "").symlink("a", canary).file("a/b/two", "dead"),
            &["CANARY/b/two"],
        ),
    ]
}

fn instead_of_directories(canary: &str) -> Vec<Case> {
    let wide = || Entry::new(DIR, "d").mode(0o777).owner(12, 34);
    let root = "only a directory can be the root";
    let root_link = |name: &str| tape().symlink(name, canary).file("file", "dead");
    vec![
        taken("17-directory-over-symlink", tape().symlink("d", canary).entry(wide()), &["d"]),
        taken(
            "17a-directory-with-slash-over-symlink",
            tape().symlink("d", canary).entry(Entry::new(DIR, "d/").mode(0o777)),
            &["d"],
        ),
        taken("18-symlink-over-directory", tape().entry(wide()).symlink("d", canary), &["d"]),
        taken(
            "18a-directory-again-under-another-name",
            tape().dir("d").symlink("d", canary).entry(Entry::new(DIR, "d/.").mode(0o777)),
            &["d"],
        ),
        taken("18b-directory-over-symlink-below", tape().entry(wide()), &["d"])
            .on(tape().symlink("d", canary)),
        taken(
            "18c-directory-through-symlink-then-mode",
            tape().symlink("s", "..").entry(Entry::new(DIR, "s/canary").mode(0o777)),
            &["canary"],
        ),
        refused("20-empty-symlink-name", root_link(""), root),
        refused("21-dot-symlink-name", root_link("."), root),
        refused("22-slash-symlink-name", root_link("/"), root),
        refused("22a-slashes-symlink-name", root_link("//./"), root),
        refused("23-dotdot-symlink-name", root_link(".."), DOTS),
        refused("23a-file-as-root", tape().file("./", "x"), root),
        refused("23b-fifo-as-root", tape().entry(Entry::new(FIFO, ".")), root),
        refused("23c-symlink-to-nothing", tape().symlink("link", ""), "a symlink to nowhere"),
        refused(
            "23d-file-as-directory",
            tape().file("file", "").file("file/x", ""),
            "a file stands where its directory",
        ),
        taken("23e-file-below-as-directory", tape().file("file/x", ""), &["file/x"])
            .on(tape().file("file", "")),
    ]
}
