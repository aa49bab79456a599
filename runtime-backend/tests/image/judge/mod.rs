//! What umoci, Podman and containerd say about the corpus, and whether this project agrees or is stricter.
//!
//! `cargo xtask judge` runs it: it takes minutes, root, and those programs. Everything is on a tmpfs of its own in a
//! mount namespace of its own: some of the tools write what a hostile image says until the disk is full.

mod containerd;
mod podman;
mod program;
mod tree;
mod umoci;

use crate::arena::Arena;
use crate::corpus::{Case, Form, Verdict, cases};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tree::Tree;

/// What a tool made of an image: the files, or why there are none.
type Answer = Result<Tree, String>;

/// What asks a tool about all images, in a directory of its own.
type Tool = fn(&Path, &[Written]) -> Vec<Answer>;

/// How long a tool may take for an image, in seconds.
const LIMIT: &str = "30";

/// An image written down for all of them.
struct Written {
    case: Case,
    layout: PathBuf,
}

/// What everybody said about one image.
struct Compared<'a> {
    case: &'a Case,
    ours: Answer,
    others: [Answer; 3],
}

const OTHERS: [&str; 3] = ["umoci", "podman", "containerd"];

/// Where the three other tools agree on an image, ours agrees or is stricter, and an image that all of them take has
/// the same files.
#[test]
#[ignore = "it takes minutes and other programs; `cargo xtask judge` runs it"]
fn the_others_agree() {
    let status = Command::new("unshare")
        .args(["--mount", "--propagation=private", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "--quiet", "judge::compare"])
        .status()
        .unwrap();
    assert!(status.success());
}

/// The body of the test above.
#[test]
#[ignore = "another test runs it in a mount namespace of its own"]
fn compare() {
    let arena = Arena::new();
    // Ordinary users have to reach the target.
    rustix::fs::chmod(arena.target().parent().unwrap(), rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
    rustix::mount::mount(
        "tmpfs",
        arena.work(""),
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        Some(c"size=8g"),
    )
    .unwrap();
    let written: Vec<Written> = cases(&arena.canary())
        .into_iter()
        .map(|case| {
            let layout = arena.work("corpus").join(case.name);
            case.write(&layout, Form::Between);
            Written { case, layout }
        })
        .collect();
    // Nothing else runs meanwhile: the canaries are for this program.
    let ours = program::as_root(&arena, &written);
    let as_users = program::as_users(&arena, &written);
    let [first, second, third] = std::thread::scope(|scope| {
        let tools: [(&str, Tool); 3] =
            [("umoci", umoci::all), ("podman", podman::all), ("containerd", containerd::all)];
        tools
            .map(|(name, all)| {
                let (place, written) = (arena.work(name), &written);
                std::fs::create_dir(&place).unwrap();
                scope.spawn(move || all(&place, written))
            })
            .map(|thread| thread.join().unwrap().into_iter())
    });
    let others = first.zip(second).zip(third).map(|((first, second), third)| [first, second, third]);
    let compared: Vec<_> = written
        .iter()
        .zip(ours.into_iter().zip(others))
        .map(|(written, (ours, others))| Compared { case: &written.case, ours, others })
        .collect();
    report(&compared);
    assert!(as_users.is_empty(), "{}", as_users.join("\n"));
    rustix::mount::unmount(arena.work(""), rustix::mount::UnmountFlags::DETACH).unwrap();
}

#[expect(clippy::print_stdout, reason = "the table is for people")]
fn report(compared: &[Compared<'_>]) {
    let mut table = format!("{:<44} {:<8}", "image", "ours");
    for name in OTHERS {
        write!(table, " {name:<10}").unwrap();
    }
    let (mut wrong, mut reasons) = (Vec::new(), Vec::new());
    for one in compared {
        let word = |answer: &Answer| if answer.is_ok() { "taken" } else { "refused" };
        write!(table, "\n{:<44} {:<8}", one.case.name, word(&one.ours)).unwrap();
        for other in &one.others {
            write!(table, " {:<10}", word(other)).unwrap();
        }
        let answers = [&one.ours].into_iter().chain(&one.others);
        for (name, answer) in ["ours"].into_iter().chain(OTHERS).zip(answers) {
            let reason = answer.as_ref().err().map(|reason| reason.replace('\n', " "));
            reasons.extend(reason.map(|reason| format!("{} {name}: {reason:.300}", one.case.name)));
        }
        let remark = one.remark();
        if let Remark::Wrong(reason) = &remark {
            wrong.push(format!("{}: {reason}", one.case.name));
        }
        table.push_str(&remark.text());
    }
    let all = compared.len();
    let agreed = compared.iter().filter(|one| one.agreed().is_some()).count();
    println!("{}\n\n{table}\n{all} images; the others agree on {agreed} of them", reasons.join("\n"));
    let honest = compared.iter().find(|one| one.case.name == "00-honest").unwrap();
    assert_eq!(
        honest.agreed(),
        Some(true),
        "a tool that refuses an honest image says nothing about the others"
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a row of the table ends with.
enum Remark {
    None,
    /// A difference, and why it is right.
    Documented(String),
    Wrong(String),
}

impl Remark {
    fn text(&self) -> String {
        match self {
            Self::None => String::new(),
            Self::Documented(reason) => format!(" {reason}"),
            Self::Wrong(reason) => format!(" WRONG: {reason}"),
        }
    }
}

impl Compared<'_> {
    /// What the others agree on: to take the image, or not.
    fn agreed(&self) -> Option<bool> {
        let first = self.others[0].is_ok();
        self.others.iter().all(|other| other.is_ok() == first).then_some(first)
    }

    fn remark(&self) -> Remark {
        let expected = matches!(self.case.verdict, Verdict::Taken(_));
        match (&self.ours, self.agreed()) {
            (Err(reason), _) if expected => Remark::Wrong(format!("refused: {reason}")),
            (Ok(_), _) if !expected => Remark::Wrong("taken against the table".to_owned()),
            (Ok(_), Some(false)) => Remark::Wrong("taken where all others refuse".to_owned()),
            (Err(_), Some(true)) => match self.case.stricter {
                Some(reason) => Remark::Documented(format!("stricter: {reason}")),
                None => Remark::Wrong(
                    "refused where all others take it, without a reason in the table".to_owned(),
                ),
            },
            (Ok(tree), Some(true)) => self.same_files(tree),
            _ => Remark::None,
        }
    }

    /// Whether our files are those that the others agree on, if they do.
    fn same_files(&self, ours: &Tree) -> Remark {
        let [Ok(first), Ok(second), Ok(third)] = &self.others else { return Remark::None };
        if first != second || second != third {
            return Remark::Documented("the others' files differ".to_owned());
        }
        match (ours == first, self.case.differs) {
            (true, _) => Remark::None,
            (false, Some(reason)) => Remark::Documented(format!("other files: {reason}")),
            (false, None) => Remark::Wrong(format!("other files: {}", ours.difference(first))),
        }
    }
}

/// Runs a tool with a time limit. The error is what it prints.
fn run(program: &str, change: impl FnOnce(&mut Command)) -> Result<String, String> {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", LIMIT, program]);
    change(&mut command);
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    // 127 is what `timeout` says of a program that is not there.
    assert!(output.status.code() != Some(127), "{program} is missing: {text}");
    Err(format!("{}: {}", output.status, text.trim()))
}

/// Empties a directory of what a tool left there.
fn remove(path: &Path) {
    shakedown_runtime::native::image::remove_tree(path).unwrap();
}
