//! All processes of a container into one control group, while they go on forking.
//!
//! A process that has been moved is halted, for the group is frozen before: it forks no more. One that was forked before
//! its parent was moved is found by the next pass. So the number of those outside only shrinks, but for what they fork
//! meanwhile, and the passes end with the first that moves nobody.

use crate::native::launch::{Trouble, Trying};
use crate::native::sys::Called;
use rustix::fs::{Dir, Mode, OFlags, fstat, openat, statat};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;

/// More passes than any container needs that does not fork on purpose against this.
const PASSES: usize = 200;

/// Moves the processes of the pid namespace `pids`, and of those within it, to the group whose `cgroup.procs` this is.
/// `proc` is a procfs of this process's own pid namespace.
pub(super) fn gather(proc: Option<&OwnedFd>, pids: Option<&OwnedFd>, group: &OwnedFd) -> Result<(), Trouble> {
    let doing = || "move the container's processes".to_owned();
    let (Some(proc), Some(pids)) = (proc, pids) else {
        return Err(Trouble::new(doing(), "it has no processes"));
    };
    let space = fstat(pids).call(|| "fstat(pid namespace)".to_owned()).trying(doing)?.st_ino;
    let mut moved = HashSet::new();
    for _ in 0..PASSES {
        let found = processes(proc, space).call(|| "getdents(/proc)".to_owned()).trying(doing)?;
        let outside: Vec<i32> = found.into_iter().filter(|pid| !moved.contains(pid)).collect();
        if outside.is_empty() {
            return Ok(());
        }
        for pid in outside {
            match rustix::io::write(group, pid.to_string().as_bytes()) {
                // It has ended, or is a zombie that cannot be moved.
                Ok(_) | Err(Errno::SRCH) => moved.insert(pid),
                other => {
                    let text = || format!("write(cgroup.procs, \"{pid}\")");
                    return other.map(drop).call(text).trying(doing);
                }
            };
        }
    }
    Err(Trouble::new(doing(), "they fork faster than they can be moved"))
}

/// The ids of all processes in a pid namespace and in those within it.
fn processes(proc: &OwnedFd, space: u64) -> Result<Vec<i32>, Errno> {
    let (mut inside, mut others) = (HashSet::new(), HashMap::new());
    // A descriptor of its own: two readers of one share the position.
    let again = openat(proc, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for entry in Dir::new(again)? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().ok().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        match statat(proc, format!("{pid}/ns/pid"), rustix::fs::AtFlags::empty()) {
            Ok(stat) if stat.st_ino == space => {
                inside.insert(pid);
            }
            Ok(_) => {
                others.extend(stat(proc, pid).map(|stat| (pid, stat.parent)));
            }
            // It has ended meanwhile.
            Err(Errno::NOENT | Errno::SRCH) => {}
            // It is ending, and could not be traced.
            Err(Errno::ACCESS) if has_ended(proc, pid) => {}
            Err(errno) => return Err(errno),
        }
    }
    // Namespaces within: the first process of each has its parent in the one around it, and orphans go to that first one.
    let within = |pid: &i32| {
        let mut at = *pid;
        for _ in 0..64 {
            match others.get(&at) {
                Some(parent) if inside.contains(parent) => return true,
                Some(parent) => at = *parent,
                None => return false,
            }
        }
        false
    };
    let mut all: Vec<i32> = others.keys().filter(|pid| within(pid)).copied().collect();
    all.extend(&inside);
    Ok(all)
}

/// Whether a process is on its way out or gone: then the kernel may refuse to show its namespaces to anybody but root.
pub(super) fn has_ended(proc: &OwnedFd, pid: i32) -> bool {
    /// Of the kernel: `PF_EXITING`, set before a process gives its memory up.
    const EXITING: u32 = 4;
    stat(proc, pid).is_none_or(|stat| stat.flags & EXITING != 0)
}

/// What the kernel says of a process.
struct Stat {
    parent: i32,
    flags: u32,
}

fn stat(proc: &OwnedFd, pid: i32) -> Option<Stat> {
    let file = openat(proc, format!("{pid}/stat"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let text = std::io::read_to_string(std::fs::File::from(file)).ok()?;
    // The name, in parentheses, may contain anything. After it: state, parent, group, session, terminal, its group, flags.
    let mut fields = text.rsplit_once(") ")?.1.split_ascii_whitespace().skip(1);
    Some(Stat { parent: fields.next()?.parse().ok()?, flags: fields.nth(4)?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    use std::os::fd::AsFd as _;

    /// Whoever has ended is told from those who run, also before it is waited for.
    #[test]
    fn who_has_ended_is_known() {
        let proc = OwnedFd::from(std::fs::File::open("/proc").unwrap());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let pidfd = rustix::process::Pid::from_raw(pid).unwrap();
        let pidfd = rustix::process::pidfd_open(pidfd, rustix::process::PidfdFlags::empty()).unwrap();
        waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
        assert!(has_ended(&proc, pid));
        assert!(!has_ended(&proc, i32::try_from(std::process::id()).unwrap()));
        child.wait().unwrap();
        assert!(has_ended(&proc, pid));
    }
}
