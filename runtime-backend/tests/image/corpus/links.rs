//! 11–14, 26–29: hard links out of the image, to nothing, to what no link may name, and honest ones across layers.

use super::{Case, refused, taken};
use crate::tape::{CHAR, Entry, FIFO, FILE, HARD, Tape};

const NOTHING: &str = "neither this layer nor one below has";

pub(super) fn cases(canary: &str) -> Vec<Case> {
    let mut all = out(canary);
    all.extend(odd());
    all.extend(across_layers());
    all
}

fn tape() -> Tape {
    Tape::default()
}

fn out(canary: &str) -> Vec<Case> {
    let file = format!("{canary}/file");
    let then = |tape: Tape| tape.file("link", "dead");
    vec![
        refused("11-hardlink-dotdot", then(tape().hard("link", "../canary/file")), "contains `..`"),
        refused("11a-hardlink-slash-dotdot", then(tape().hard("link", "/../canary/file")), "contains `..`"),
        refused(
            "11b-hardlink-sibling-prefix",
            then(tape().hard("link", "../target-sibling/file")),
            "contains `..`",
        ),
        refused(
            "11c-hardlink-dotdot-directory",
            tape().hard("link", "../canary").file("link/file", "dead"),
            "contains `..`",
        ),
        refused("12-hardlink-absolute-outside", then(tape().hard("link", &file)), NOTHING),
        refused("12a-hardlink-etc-shadow", tape().hard("link", "/etc/shadow"), NOTHING),
        refused(
            "13-hardlink-through-symlink-outside",
            then(tape().symlink("s", canary).hard("link", "s/file")),
            NOTHING,
        ),
        refused(
            "13a-hardlink-through-two-symlinks",
            tape().symlink("s", "t").symlink("t", "../canary").hard("link", "s/file"),
            NOTHING,
        ),
        taken(
            "14-hardlink-to-symlink-then-write",
            then(tape().symlink("s", &file).hard("link", "s")),
            &["link", "s"],
        ),
        taken(
            "14a-hardlink-to-symlink-then-directory",
            tape().symlink("s", canary).hard("link", "s").dir("link").file("link/x", ""),
            &["link/x"],
        ),
        taken(
            "14b-hardlink-to-symlink-then-through",
            tape().symlink("s", canary).hard("link", "s").file("link/file", "dead"),
            &["CANARY/file"],
        ),
        taken(
            "14c-hardlink-to-symlink-with-mode",
            tape().symlink("s", &file).entry(Entry::new(HARD, "link").link("s").mode(0o4777).owner(7, 7)),
            &["link"],
        ),
        taken(
            "14d-hardlink-then-write-spares-the-first",
            tape().file("a", "one").hard("b", "a").file("b", "two"),
            &["a", "b"],
        ),
    ]
}

fn odd() -> Vec<Case> {
    let inner = || Tape::default().file("seen", "").bytes;
    vec![
        refused("26-hardlink-to-directory", tape().dir("d").hard("link", "d"), "the directory `d`"),
        refused("26a-hardlink-to-root", tape().hard("link", "/"), "the root directory"),
        refused("26b-hardlink-to-dot", tape().hard("link", "."), "the root directory"),
        refused("27-hardlink-to-itself", tape().hard("link", "link"), "itself"),
        refused(
            "27a-hardlink-to-itself-that-exists",
            tape().file("link", "x").hard("link", "./link"),
            "itself",
        ),
        refused("27b-hardlink-before-its-target", tape().hard("link", "later").file("later", "x"), NOTHING),
        refused("27c-hardlink-to-nothing", tape().hard("link", ""), "the root directory"),
        refused("27d-hardlinks-in-a-circle", tape().hard("a", "b").hard("b", "a"), NOTHING),
        refused("27e-hardlink-below-a-file", tape().file("f", "").hard("link", "f/x"), "a file stands where"),
        taken("27f-hardlink-to-fifo", tape().entry(Entry::new(FIFO, "p")).hard("link", "p"), &["link"]),
        taken(
            "27g-hardlink-with-size",
            tape()
                .file("f", "x")
                .entry(Entry::new(HARD, "link").link("f").octal(124, 12, 512).hidden_data(inner())),
            &["link", "seen"],
        ),
        taken(
            "27h-hardlink-to-its-own-file",
            tape().file("a", "x").hard("b", "a").hard("b", "a").hard("a", "b"),
            &["a", "b"],
        ),
        taken(
            "27i-hardlink-over-directory",
            tape().file("a", "x").dir("d").file("d/x", "").hard("d", "a"),
            &["d"],
        ),
        taken(
            "27j-hardlink-to-device",
            tape().entry(Entry::new(CHAR, "n").device(1, 3)).entry(Entry::new(FILE, "x")),
            &["x"],
        ),
    ]
}

fn across_layers() -> Vec<Case> {
    let lower = || tape().dir("usr").file("usr/vim", "editor");
    vec![
        taken("28-hardlink-to-file-below", tape().hard("usr/vi", "usr/vim"), &["usr/vi"]).on(lower()),
        taken("29-hardlink-to-absolute-name-below", tape().hard("usr/vi", "/usr/vim"), &["usr/vi"])
            .on(lower()),
        taken(
            "29a-hardlink-absolute-inside",
            tape().file("usr/vim", "x").hard("/usr/vi", "/usr/vim"),
            &["usr/vi"],
        ),
        taken("29b-hardlink-to-symlink-below", tape().hard("b", "a"), &["b"])
            .on(tape().symlink("a", "/etc/shadow")),
        refused("29c-hardlink-to-deleted-below", tape().hard("b", "a"), NOTHING)
            .on(tape().file("a", "x"))
            .on(tape().file(".wh.a", "")),
        refused("29d-hardlink-to-opaque-below", tape().hard("b", "d/a"), NOTHING)
            .on(tape().file("d/a", "x"))
            .on(tape().file("d/.wh..wh..opq", "")),
        refused("29e-hardlink-to-directory-below", tape().hard("b", "usr"), "which is no file").on(lower()),
    ]
}
