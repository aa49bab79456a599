//! The groups of one container, and those that a dead session left.

use super::delegate;
use super::limits::Setting;
use super::place::v2_name;
use rustix::fs::OFlags;
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Deeper than any manager of services nests its groups.
const DEEPEST: usize = 12;

/// Held while a session's group is made and its first container's in it, and while it is removed. One that is removed in
/// between and made anew would hand no controllers down.
static SESSIONS: Mutex<()> = Mutex::new(());

/// The groups of one container, removed when dropped (which has to be after its last process has ended).
#[derive(Debug, Default)]
pub(crate) struct Cgroup {
    pub(super) directories: Vec<Group>,
    /// What is written when the first process runs its program.
    later: Vec<(PathBuf, String)>,
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) path: PathBuf,
    pub(super) v2: bool,
    controllers: Vec<String>,
}

pub(super) type Written = Result<(), (PathBuf, io::Error)>;

fn at(file: &Path) -> impl FnOnce(io::Error) -> (PathBuf, io::Error) + use<> {
    let file = file.to_owned();
    move |error| (file, error)
}

impl Cgroup {
    /// Makes the container's group in the hierarchy of a controller, below `base`.
    pub(super) fn add(
        &mut self,
        controller: &str,
        base: &Path,
        v2: bool,
        session: &str,
        id: &str,
    ) -> Written {
        let session = base.join(super::group_name(session));
        let _steady = SESSIONS.lock();
        if v2 {
            self.add_v2(controller, base, &session, id)
        } else {
            self.add_v1(controller, base, &session, id)
        }
    }

    /// The group of a v2 controller: every group above it hands the controller down.
    fn add_v2(&mut self, controller: &str, base: &Path, session: &Path, id: &str) -> Written {
        if let Some(name) = v2_name(controller) {
            delegate::make_room(base).map_err(at(base))?;
            for directory in [base, session] {
                make(directory)?;
                let control = directory.join("cgroup.subtree_control");
                fs::write(&control, format!("+{name}")).map_err(at(&control))?;
            }
        }
        make(session)?;
        self.enter(session.join(id), true, controller)
    }

    fn add_v1(&mut self, controller: &str, base: &Path, session: &Path, id: &str) -> Written {
        let group = session.join(id);
        for (above, directory) in [(base, session), (session, &group)] {
            make(directory)?;
            if controller == "cpuset" {
                inherit_cpuset(above, directory)?;
            }
        }
        self.enter(group, false, controller)
    }

    fn enter(&mut self, path: PathBuf, v2: bool, controller: &str) -> Written {
        make(&path)?;
        match self.directories.iter_mut().find(|group| group.path == path) {
            Some(group) => group.controllers.push(controller.to_owned()),
            None => self.directories.push(Group { path, v2, controllers: vec![controller.to_owned()] }),
        }
        Ok(())
    }

    pub(super) fn group(&self, controller: &str) -> Option<&Group> {
        self.directories.iter().find(|group| group.controllers.iter().any(|name| name == controller))
    }

    pub(super) fn is_v2(&self, controller: &str) -> bool {
        self.group(controller).is_some_and(|group| group.v2)
    }

    pub(super) fn set(&self, controller: &str, setting: &Setting) -> Written {
        let Some(group) = self.group(controller) else { return Ok(()) };
        let number = setting.files.iter().position(|file| group.path.join(file).exists());
        if number.is_none() && setting.optional {
            return Ok(());
        }
        let number = number.unwrap_or(0);
        let file = group.path.join(setting.files[number]);
        write_existing(&file, &setting.values[number.min(setting.values.len() - 1)]).map_err(at(&file))
    }

    /// Takes the quota of processor time back, which the kernel has found valid: a process that is being set up would
    /// stand still with it, and the launcher waits for that.
    pub(super) fn defer_quota(&mut self) -> Written {
        let Some(group) = self.group("cpu") else { return Ok(()) };
        let (name, unlimited) = if group.v2 { ("cpu.max", "max") } else { ("cpu.cfs_quota_us", "-1") };
        let file = group.path.join(name);
        let quota = fs::read_to_string(&file).map_err(at(&file))?;
        if !quota.starts_with(unlimited) {
            fs::write(&file, unlimited).map_err(at(&file))?;
            self.later.push((file, quota.trim().to_owned()));
        }
        Ok(())
    }

    /// Sets the limits that have waited for the first process to run its program.
    pub(crate) fn settle(&self) -> io::Result<()> {
        self.later.iter().try_for_each(|(file, value)| fs::write(file, value))
    }

    /// The files to which a process writes `0` to join.
    pub(crate) fn joining(&self) -> io::Result<Vec<OwnedFd>> {
        let open = |group: &Group| {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            Ok(rustix::fs::open(group.path.join("cgroup.procs"), flags, rustix::fs::Mode::empty())?)
        };
        self.directories.iter().map(open).collect()
    }

    /// Whether the kernel has killed a process of the group for its use of memory.
    pub(crate) fn out_of_memory(&self) -> bool {
        let counted = |text: String| {
            text.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
        };
        let files = ["memory.oom_control", "memory.events"];
        let paths = self.directories.iter().flat_map(|group| files.map(|file| group.path.join(file)));
        paths.into_iter().any(|path| fs::read_to_string(path).is_ok_and(counted))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for group in &self.directories {
            // What cannot be removed yet is removed by the sweep of the next session.
            let _ = remove_group(&group.path);
            remove_session(&group.path);
        }
    }
}

/// The session's own group goes with the last container that has one.
pub(super) fn remove_session(group: &Path) {
    let _steady = SESSIONS.lock();
    let _ = group.parent().map(fs::remove_dir);
}

fn make(directory: &Path) -> Written {
    fs::create_dir_all(directory).map_err(at(directory))
}

/// A v1 cpuset is empty at first, and takes no process until it has processors and memory nodes (cpusets(7)).
fn inherit_cpuset(above: &Path, directory: &Path) -> Written {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = directory.join(name);
        let has = fs::read_to_string(&file).map_err(at(&file))?;
        if has.trim().is_empty() {
            let from = above.join(name);
            let inherited = fs::read_to_string(&from).map_err(at(&from))?;
            fs::write(&file, inherited.trim()).map_err(at(&file))?;
        }
    }
    Ok(())
}

/// Writes to a file that is there: in a control group none can be made, which the kernel tells as if a right were missing
/// (EACCES), and elsewhere none is.
fn write_existing(file: &Path, text: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(file)?.write_all(text.as_bytes())
}

/// Removes a group with those that the container has made in it, as one may that is privileged.
pub(super) fn remove_group(path: &Path) -> io::Result<()> {
    let remove = || match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    remove().or_else(|_busy| {
        below(path).iter().try_for_each(|group| remove_group(group))?;
        remove()
    })
}

/// The groups right below one.
fn below(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    // `file_type` does not follow links: `cpu` is a link to `cpu,cpuacct` on some machines.
    let groups = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    groups.map(|entry| entry.path()).collect()
}

/// Removes groups of this name and what is in them, below a directory.
pub(super) fn sweep_below(directory: &Path, name: &str, swept: &mut io::Result<()>) {
    sweep_at(directory, name, DEEPEST, swept);
}

fn sweep_at(directory: &Path, name: &str, depth: usize, swept: &mut io::Result<()>) {
    for group in below(directory) {
        if group.file_name().is_some_and(|own| own == name) {
            let remove = |group: &PathBuf| {
                // A frozen process of version 1 does not end before it goes on.
                let _ = write_existing(&group.join("freezer.state"), "THAWED");
                remove_group(group)
            };
            let removed = below(&group).iter().map(remove).fold(Ok(()), io::Result::and);
            let removed = removed.and_then(|()| remove_group(&group));
            if swept.is_ok() {
                *swept = removed;
            }
        } else if depth > 0 {
            sweep_at(&group, name, depth - 1, swept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A session that died in another login's group is swept all the same, and nobody else's groups are touched.
    #[test]
    fn groups_are_swept_at_any_depth() {
        let root = tempfile::tempdir().unwrap();
        let dead = root.path().join("user.slice/session-7.scope/shakedown-run-1");
        let other = root.path().join("user.slice/shakedown-run-2/redis");
        fs::create_dir_all(dead.join("redis")).unwrap();
        fs::create_dir_all(dead.join("systemd/init.scope/deeper")).unwrap();
        fs::create_dir_all(&other).unwrap();
        let mut swept = Ok(());
        sweep_below(root.path(), "shakedown-run-1", &mut swept);
        swept.unwrap();
        assert!(!dead.exists() && other.exists());
    }

    /// A privileged container may make groups in its own, which go with it.
    #[test]
    fn a_container_leaves_no_groups() {
        let root = tempfile::tempdir().unwrap();
        let mut cgroup = Cgroup::default();
        cgroup.add("freezer", root.path(), true, "run-1", "systemd").unwrap();
        let group = cgroup.group("freezer").unwrap().path.clone();
        fs::create_dir_all(group.join("system.slice/cron.service")).unwrap();
        fs::create_dir(group.join("init.scope")).unwrap();
        drop(cgroup);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    /// A limit that the kernel does not have is told as such, and not as a missing right.
    #[test]
    fn a_limit_without_its_file_is_not_there() {
        let root = tempfile::tempdir().unwrap();
        let mut cgroup = Cgroup::default();
        cgroup.add("freezer", root.path(), true, "run-1", "box").unwrap();
        let setting = Setting { files: &["cpu.max"], values: vec!["max".to_owned()], optional: false };
        let (_, error) = cgroup.set("freezer", &setting).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
