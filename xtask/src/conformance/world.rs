//! The world that a file of a suite runs in: namespaces, directories and control groups of its own, which end with it.
//!
//! ```text
//! task ──pipe──► guard, in another session: once the task has ended, however that was, it empties and removes the groups,
//!   │            and removes the directory of the suites
//!   └──► setpriv ► unshare ► first process of a pid namespace ► one file of a suite
//! ```
//! With the first process the kernel ends the others, but for those that a freezer of version 1 holds; and it removes no
//! control group. Suites make groups with fixed names, so they get a part of each hierarchy that looks like all of it.

use std::env;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::machine::run;

/// How long killed processes may take to end.
const ENDED_WITHIN: Duration = Duration::from_secs(10);
/// How many milliseconds the removal of a group that is still busy is tried.
const MOMENTS: usize = 1000;

/// Joins groups of the name `$1` in all hierarchies, and makes the namespaces; the rest is what is to run there.
///
/// A group of `cpuset` holds processes only with processors and memory nodes of its own, one with realtime processes only
/// with time for them.
const JOIN: &str = r#"
set -eu
for group in $(awk -v name="$1" '$3 ~ /^cgroup/ { print $2 "/" name }' /proc/self/mounts); do
    mkdir -p "$group"
    for file in cpuset.cpus cpuset.mems; do
        if [ -e "$group/$file" ]; then cat "$group/../$file" > "$group/$file"; fi
    done
    if [ -e "$group/cpu.rt_runtime_us" ]; then echo 700000 > "$group/cpu.rt_runtime_us" || true; fi
    echo $$ > "$group/cgroup.procs"
done
shift
exec unshare --mount --cgroup --pid --net --ipc --uts --fork --mount-proc --kill-child "$@"
"#;

/// Makes the inside of the namespaces. The shell stays as the first process, which collects those that lose their parents;
/// what a test has left frozen goes on before it ends, because it waits for the end of all others. Some tests want ids of
/// processes with five digits. The devices are nodes of its own: crun's `exec --user` gives `/dev/null` to that user.
///
/// Of version 2, a group hands controllers down only while it holds no processes itself ("No Internal Process Constraint").
const FURNISH: &str = r#"
set -eu
mount --make-rprivate /
awk '$3 ~ /^cgroup/ { print $3, $2, $4 }' /proc/self/mounts | while read -r kind place options; do
    umount -l "$place"
    mount -t "$kind" -o "$options" cgroup "$place"
done
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mkdir /sys/fs/cgroup/suite
    echo 1 > /sys/fs/cgroup/suite/cgroup.procs
    for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
        echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control || true
    done
fi
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -m 1777 /run/lock
mkdir /run/devices
for device in null:3 zero:5 full:7 random:8 urandom:9; do
    mknod -m 666 "/run/devices/${device%:*}" c 1 "${device#*:}"
    mount --bind "/run/devices/${device%:*}" "/dev/${device%:*}"
done
echo 9999 > /proc/sys/kernel/ns_last_pid || true
ip link set lo up
"$@" < /dev/null || true
for state in $(find /sys/fs/cgroup -name freezer.state); do echo THAWED > "$state" || true; done
"#;

/// The directory of the suites, and the name of the control groups; nothing is left of both when it is dropped.
#[derive(Debug)]
pub(super) struct World {
    /// Where everything of the suites is.
    pub(super) place: PathBuf,
    guard: Child,
}

impl World {
    /// Makes the directory and starts the guard.
    pub(super) fn new() -> Result<Self> {
        // Not below the target directory, which may be out of a user's reach.
        let place = tempfile::Builder::new().prefix("sdconformance-").tempdir_in("/var/tmp")?;
        let task = env::current_exe().context("cannot tell which program this is")?;
        let mut guard = Command::new("setsid");
        guard.arg(task).args(["conformance", "--guard"]).arg(place.path()).stdin(Stdio::piped());
        let guard = guard.spawn().context("cannot start the guard")?;
        Ok(Self { place: place.keep(), guard })
    }

    /// Runs a command and gives what it has printed until its end, or until the limit; then all of it is gone.
    pub(super) fn run(&self, command: &[String], directory: &Path, limit: Duration) -> Result<Printed> {
        let (output, errors) = (self.place.join("output"), self.place.join("errors"));
        let mut words: Vec<&str> = vec!["--pdeathsig", "KILL", "sh", "-c", JOIN, "sh", name_of(&self.place)];
        words.extend(["sh", "-c", FURNISH, "sh"]);
        words.extend(command.iter().map(String::as_str));
        // Not pipes: their end would be that of the last process that has them.
        let mut child = Command::new("setpriv")
            .args(words)
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(File::create(&output)?)
            .stderr(File::create(&errors)?)
            .spawn()
            .context("cannot start setpriv")?;
        let waited = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
            .map_err(io::Error::from)
            .and_then(|process| wait(&process, limit));
        // After its end there is nothing to kill.
        let _ = child.kill();
        child.wait()?;
        sweep(name_of(&self.place))?;
        let text = |file| fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok(Printed { output: text(output)?, errors: text(errors)?, in_time: waited? })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        // It has told what it could not do.
        let _ = self.guard.wait();
    }
}

/// What a command has printed.
#[derive(Debug)]
pub(super) struct Printed {
    pub(super) output: String,
    pub(super) errors: String,
    /// Whether it ended by itself.
    pub(super) in_time: bool,
}

/// The guard: waits until the task has ended, and takes away what is left.
pub(super) fn guard(place: &Path) -> Result<()> {
    if !name_of(place).starts_with("sdconformance-") {
        bail!("{} is no directory of this task", place.display());
    }
    let _ = io::stdin().read_to_end(&mut Vec::new());
    let swept = sweep(name_of(place));
    run(Command::new("rm").args(["-rf", "--one-file-system", "--"]).arg(place))?;
    swept
}

fn name_of(place: &Path) -> &str {
    place.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// Ends the processes in the groups of this name, and removes the groups.
fn sweep(name: &str) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the list of mounts")?;
    let mut groups = Vec::new();
    for hierarchy in hierarchies(&mounts) {
        list_below(&hierarchy.join(name), &mut groups);
    }
    // Those above first: a group is frozen as long as one above it is.
    for group in &groups {
        // Of these files a group has one or none.
        let _ = write(&group.join("freezer.state"), "THAWED");
        let _ = write(&group.join("cgroup.freeze"), "0");
    }
    let end = Instant::now() + ENDED_WITHIN;
    loop {
        let processes: Vec<OwnedFd> = groups.iter().flat_map(|group| processes(group)).collect();
        if processes.is_empty() || Instant::now() > end {
            break;
        }
        for process in &processes {
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
        for process in &processes {
            wait(process, end.saturating_duration_since(Instant::now()))?;
        }
    }
    detach_loops()?;
    groups.iter().rev().try_for_each(|group| {
        // The kernel gives the time for realtime processes to others some while after a group has been removed.
        let _ = write(&group.join("cpu.rt_runtime_us"), "0");
        remove(group)
    })
}

/// Detaches the loop devices that failed tests leave. Their files were in the world's own `/tmp`, whose root is what the
/// paths begin at, for it is mounted nowhere else.
fn detach_loops() -> Result<()> {
    for device in fs::read_dir("/sys/block").context("cannot list block devices")?.flatten() {
        let file = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        if file.starts_with("/bats-run-") {
            run(Command::new("losetup").arg("--detach").arg(Path::new("/dev").join(device.file_name())))?;
        }
    }
    Ok(())
}

/// Where control groups are mounted.
fn hierarchies(mounts: &str) -> Vec<PathBuf> {
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let of_groups = fields.filter(|fields| fields.get(2).is_some_and(|kind| kind.starts_with("cgroup")));
    of_groups.map(|fields| PathBuf::from(fields[1])).collect()
}

/// The group and those below it, each before those below it.
fn list_below(group: &Path, list: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(group) else { return };
    list.push(group.to_owned());
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        list_below(&entry.path(), list);
    }
}

/// Writes to a file that is there.
fn write(file: &Path, word: &str) -> io::Result<()> {
    File::options().write(true).open(file).and_then(|mut file| file.write_all(word.as_bytes()))
}

fn processes(group: &Path) -> Vec<OwnedFd> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let pids = text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?));
    pids.filter_map(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()).collect()
}

/// Waits for the end of a process; whether it came.
fn wait(process: &OwnedFd, limit: Duration) -> io::Result<bool> {
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    Ok(poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit))? > 0)
}

/// A group is busy for a moment after its last process has ended.
fn remove(group: &Path) -> Result<()> {
    let moment = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    for _ in 0..MOMENTS {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                poll(&mut [], Some(&moment))?;
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", group.display()));
            }
            _ => return Ok(()),
        }
    }
    bail!("{} is still busy", group.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every hierarchy is swept, of either version, and nothing that is none.
    #[test]
    fn hierarchies_are_found() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/freezer cgroup rw,freezer 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\ncgroup /mnt ext4 rw 0 0\n";
        assert_eq!(
            hierarchies(mounts),
            ["/sys/fs/cgroup/freezer", "/sys/fs/cgroup/unified"].map(PathBuf::from)
        );
    }
}
