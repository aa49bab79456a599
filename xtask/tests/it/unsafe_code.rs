//! `unsafe` is where it can be reviewed: the wrappers of system calls, and the hook before `main`.

use std::fs;
use std::path::{Path, PathBuf};

/// The directory and the file that may have it.
const ALLOWED: &[&str] = &["runtime-backend/src/native/sys", "server/src/hook.rs"];

/// Memory errors can come from two places only, and these have a SAFETY comment at each block.
#[test]
fn unsafe_code_is_in_two_places() {
    let root = super::root();
    let mut files = Vec::new();
    for entry in fs::read_dir(&root).unwrap().flatten() {
        let name = entry.file_name();
        if entry.path().is_dir() && name != "target" && !name.to_string_lossy().starts_with('.') {
            rust_files(&entry.path(), &mut files);
        }
    }
    assert!(files.len() > 50, "only {} files were found", files.len());
    files.retain(|file| !ALLOWED.iter().any(|allowed| file.starts_with(root.join(allowed))));
    let wrong: Vec<String> = files.iter().flat_map(|file| lines_with_unsafe(file)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn rust_files(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn lines_with_unsafe(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    let lines = text.lines().enumerate().filter(|(_, line)| has_unsafe(line));
    lines.map(|(number, line)| format!("{}:{}: {}", file.display(), number + 1, line.trim())).collect()
}

/// Whether code on this line has the keyword: not in a comment or a string, and not as a part of a lint's name.
fn has_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let code: String = code.split('"').step_by(2).collect();
    code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe")
}

/// The check sees the keyword, and only the keyword.
#[test]
fn the_keyword_is_recognised() {
    let keyword = "unsafe";
    assert!(has_unsafe(&format!("    let pid = {keyword} {{ libc::getpid() }};")));
    assert!(has_unsafe(&format!("#[{keyword}(no_mangle)]")));
    assert!(!has_unsafe("#![forbid(unsafe_code)]"));
    assert!(!has_unsafe(&format!("// {keyword} is not needed here")));
    assert!(!has_unsafe(&format!("bail!(\"{keyword} path\")")));
}
