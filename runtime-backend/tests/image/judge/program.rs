//! The program itself, `shakedown images unpack`: as root and as ordinary users, between canaries.

use super::{Answer, Tree, Written, run};
use crate::arena::Arena;
use crate::corpus::Verdict;
use std::path::Path;

/// Unpacks every image with the program that `cargo xtask judge` names.
pub(super) fn as_root(arena: &Arena, written: &[Written]) -> Vec<Answer> {
    let one = |written: &Written| {
        let answer = unpack(arena, written, None).map(|()| Tree::read(&arena.target().join("tree")));
        empty(arena, None);
        answer
    };
    written.iter().map(one).collect()
}

/// The verdict is the same whoever unpacks. What differs is told.
pub(super) fn as_users(arena: &Arena, written: &[Written]) -> Vec<String> {
    let users = std::env::var("SHAKEDOWN_USERS").expect("`cargo xtask judge` names the users");
    let mut wrong = Vec::new();
    for user in users.split_whitespace() {
        empty(arena, Some(user));
        for written in written {
            let case = &written.case;
            match (unpack(arena, written, Some(user)), case.verdict) {
                (Ok(()), Verdict::Refused(_)) => wrong.push(format!("{}: taken as {user}", case.name)),
                // A user's range has no such id.
                (Err(reason), Verdict::Taken(_)) if !reason.contains("does not map") => {
                    wrong.push(format!("{}: refused as {user}: {reason}", case.name));
                }
                _ => {}
            }
            empty(arena, Some(user));
        }
    }
    wrong
}

/// Runs the program; its failure is what it says.
fn unpack(arena: &Arena, written: &Written, user: Option<&str>) -> Result<(), String> {
    let program = std::env::var("SHAKEDOWN_PROGRAM").expect("`cargo xtask judge` names the program");
    let store = format!("SHAKEDOWN_STORE={}", arena.target().join("store").display());
    let image = format!("oci:{}:1", written.layout.display());
    let directory = arena.target().join("tree");
    arena.guard(written.case.name, || {
        let first = if user.is_some() { "setpriv" } else { "env" };
        let result = run(first, |command| {
            if let Some(user) = user {
                command.args(["--reuid", user, "--regid", user, "--init-groups", "--inh-caps=-all"]);
                command.args(["--reset-env", "--", "env"]);
            }
            command.args([&store, &program, "images", "unpack", &image]).arg(&directory).current_dir("/");
        });
        result.map(drop)
    })
}

/// Makes the target anew, the user's own.
fn empty(arena: &Arena, user: Option<&str>) {
    super::remove(&arena.target());
    std::fs::create_dir(arena.target()).unwrap();
    if let Some(user) = user {
        give(&arena.target(), user);
    }
}

fn give(path: &Path, user: &str) {
    run("chown", |command| {
        command.arg(format!("{user}:{user}")).arg(path);
    })
    .unwrap();
}
