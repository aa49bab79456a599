//! 40–58: deletions: of what is below, of nothing, through symlinks, and in overlayfs's own language.

use super::{Case, refused, taken};
use crate::tape::{BLOCK, CHAR, Entry, FILE, SYMLINK, Tape};

const NO_NAME: &str = "deletes nothing";

pub(super) fn cases(canary: &str) -> Vec<Case> {
    let mut all = honest();
    all.extend(same_layer());
    all.extend(names());
    all.extend(through_symlinks(canary));
    all.extend(smuggled());
    all
}

fn tape() -> Tape {
    Tape::default()
}

fn lower() -> Tape {
    tape().dir("d").file("d/a", "a").file("d/b", "b").dir("d/sub").file("d/sub/c", "c").file("top", "t")
}

fn honest() -> Vec<Case> {
    vec![
        taken("40-delete-file", tape().dir("d").file("d/.wh.a", ""), &["!d/a"]).on(lower()),
        taken("40a-delete-directory", tape().file("d/.wh.sub", ""), &["!d/sub"]).on(lower()),
        taken("40b-delete-at-the-root", tape().file(".wh.top", "").file(".wh.d", ""), &["!top", "!d"])
            .on(lower()),
        taken("41-opaque", tape().dir("d").file("d/.wh..wh..opq", "").file("d/new", ""), &["d/new", "!d/a"])
            .on(lower()),
        taken(
            "41a-opaque-after-sibling",
            tape().dir("d").file("d/new", "").file("d/.wh..wh..opq", ""),
            &["d/new", "!d/a"],
        )
        .on(lower()),
        taken("41b-opaque-without-directory", tape().file("d/.wh..wh..opq", ""), &["!d/a"]).on(lower()),
        taken("42-delete-nothing-there", tape().file(".wh.nothing", ""), &["!nothing"]).on(lower()),
        taken("42a-delete-in-no-directory", tape().file("nowhere/.wh.x", ""), &["!nowhere/x"]).on(lower()),
        taken("42b-delete-below-a-file", tape().file("top/.wh.x", ""), &[]).on(lower()),
        taken("42c-delete-twice", tape().file("d/.wh.a", "").file("d/.wh.a", ""), &["!d/a"]).on(lower()),
        taken("42d-delete-inside-deleted", tape().file(".wh.d", "").file("d/.wh.a", ""), &["!d/a"])
            .on(lower()),
        taken("58-opaque-root", tape().file(".wh..wh..opq", "").file("only", ""), &["only", "!top"])
            .on(lower()),
    ]
}

fn same_layer() -> Vec<Case> {
    vec![
        taken("43-delete-then-make", tape().file(".wh.top", "").file("top", "new"), &["top"]).on(lower()),
        taken("43a-make-then-delete", tape().file("top", "new").file(".wh.top", ""), &["top"])
            .on(lower())
            .differs("image-spec, layer.md: whiteouts apply to the layers below only"),
        taken("43b-make-then-delete-without-lower", tape().file("f", "new").file(".wh.f", ""), &["f"])
            .differs("image-spec, layer.md: whiteouts apply to the layers below only"),
        taken(
            "44-delete-directory-then-make",
            tape().file(".wh.d", "").dir("d").file("d/new", ""),
            &["d/new", "!d/a"],
        )
        .on(lower()),
        taken("51-file-in-place-of-directory", tape().file(".wh.d", "").file("d", "file"), &["d"])
            .on(lower()),
        taken(
            "52-directory-in-place-of-file",
            tape().file(".wh.top", "").dir("top").file("top/x", ""),
            &["top/x"],
        )
        .on(lower()),
        taken("53-symlink-in-place-of-directory", tape().file(".wh.d", "").symlink("d", "top"), &["d"])
            .on(lower()),
        taken("53a-directory-over-symlink-below", tape().dir("d").file("d/x", ""), &["d/x"])
            .on(tape().symlink("d", "e").dir("e")),
    ]
}

fn names() -> Vec<Case> {
    vec![
        refused("45-delete-dot", tape().file("d/.wh..", ""), NO_NAME),
        refused("46-delete-dotdot", tape().file("d/.wh...", ""), NO_NAME),
        refused("47-delete-empty", tape().file(".wh.", ""), NO_NAME),
        refused("48-delete-dot-at-the-root", tape().file(".wh..", ""), NO_NAME),
        refused("48a-delete-dotdot-at-the-root", tape().file("/.wh...", ""), NO_NAME),
        refused("48b-file-in-deleted-directory", tape().file(".wh.d/file", ""), "marked as deleted")
            .stricter("a name below a deletion's mark: some readers make a directory of the mark's name"),
        taken(
            "48c-aufs-book-keeping",
            tape().dir(".wh..wh.plnk").file(".wh..wh.aufs", "").file("x", ""),
            &["x", "!.wh..wh.aufs"],
        ),
        taken("48d-delete-a-deletion", tape().file(".wh..wh.x", ""), &[]),
        taken("48e-deletion-with-content", tape().file("d/.wh.a", "smuggled"), &["!d/a"]).on(lower()),
    ]
}

fn through_symlinks(canary: &str) -> Vec<Case> {
    let out = || tape().symlink("out", canary);
    vec![
        taken("49-delete-through-symlink", out().file("out/.wh.file", ""), &[]),
        taken("49a-delete-through-symlink-below", tape().file("out/.wh.file", ""), &[]).on(out()),
        taken(
            "49b-delete-through-dead-symlink",
            tape().symlink("out", "/nowhere").file("out/.wh.file", ""),
            &[],
        ),
        taken("49c-delete-a-symlink", tape().file(".wh.out", ""), &["!out"]).on(out()),
        taken("50-opaque-through-symlink", out().file("out/.wh..wh..opq", ""), &[]),
        taken("50a-opaque-through-symlink-below", tape().file("out/.wh..wh..opq", ""), &[]).on(out()),
    ]
}

fn smuggled() -> Vec<Case> {
    let mark = "overlayfs marks a deletion";
    let why = "a device 0:0 is a deletion where the tree is a lower layer of overlayfs";
    vec![
        refused("56-whiteout-device", tape().entry(Entry::new(CHAR, "gone").device(0, 0)), mark)
            .stricter(why),
        refused("56a-whiteout-device-over-lower", tape().entry(Entry::new(CHAR, "top").device(0, 0)), mark)
            .on(lower())
            .stricter(why),
        taken("56b-block-device-0-0", tape().entry(Entry::new(BLOCK, "b").device(0, 0)), &[]),
        taken("57-deletion-as-symlink", tape().entry(Entry::new(SYMLINK, "d/.wh.a").link("x")), &["!d/a"])
            .on(lower()),
        taken("57a-deletion-as-directory", tape().dir("d/.wh.a"), &["!d/a"]).on(lower()),
        taken(
            "57b-opaque-with-mode",
            tape().entry(Entry::new(FILE, "d/.wh..wh..opq").mode(0o4777).owner(5, 5)),
            &["!d/a"],
        )
        .on(lower()),
    ]
}
