//! A container's control groups, as its `cgroupsPath` and `resources` say: cgroup v1, v2, and both side by side.

use crate::native::launch::Trouble;
use oci_spec::runtime::{Linux, LinuxDeviceCgroup, LinuxDeviceType, LinuxResources};
use rustix::event::Timespec;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A mounted hierarchy.
#[derive(Debug)]
pub(super) struct Hierarchy {
    pub(super) mount: PathBuf,
    /// The controllers of v1; empty for v2.
    pub(super) controllers: Vec<String>,
    pub(super) v2: bool,
    /// The group of this process in it.
    own: String,
}

/// How many milliseconds the removal of a group that is still busy is tried.
const MOMENTS: usize = 100;

/// What every container may do (OCI runtime specification, "Default Devices"): make nodes, and use the default devices and
/// terminals.
const ALWAYS_ALLOWED: [&str; 11] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

/// The groups of one container; one for each hierarchy.
#[derive(Debug)]
pub(super) struct Groups {
    pub(super) directories: Vec<PathBuf>,
}

/// One file to write, and whether it matters if the kernel has no such file.
struct Setting {
    file: String,
    value: String,
    optional: bool,
}

pub(super) fn hierarchies() -> Vec<Hierarchy> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let mut after = after.split_ascii_whitespace();
        let (Some(kind), Some(options)) = (after.next(), after.nth(1)) else { continue };
        let mut before = before.split_ascii_whitespace();
        let (Some(root), Some(mount)) = (before.nth(3), before.next()) else { continue };
        if !matches!(kind, "cgroup" | "cgroup2") || root.starts_with("/..") {
            continue;
        }
        let v2 = kind == "cgroup2";
        let controllers: Vec<String> = if v2 {
            Vec::new()
        } else {
            options
                .split(',')
                .filter(|option| !matches!(*option, "rw" | "ro" | "xattr"))
                .map(str::to_owned)
                .collect()
        };
        if found.iter().any(|other| other.v2 == v2 && other.controllers == controllers) {
            continue;
        }
        let own = own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let names = fields.nth(1)?;
            let same = if v2 { names.is_empty() } else { names == controllers.join(",") };
            same.then(|| fields.next().unwrap_or("/").to_owned())
        });
        found.push(Hierarchy {
            mount: mount.into(),
            controllers,
            v2,
            own: own.unwrap_or_else(|| "/".into()),
        });
    }
    found
}

impl Hierarchy {
    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    /// Where a container's group is: an absolute path counts from the top of the hierarchy, a relative one from the
    /// runtime's own group.
    fn group(&self, path: &Path) -> PathBuf {
        match path.strip_prefix("/") {
            Ok(below) => self.mount.join(below),
            Err(_relative) => {
                let own = self.mount.join(self.own.trim_start_matches('/'));
                // Where only a part of the hierarchy is mounted, that part is all there is.
                if own.is_dir() { own.join(path) } else { self.mount.join(path) }
            }
        }
    }
}

impl Groups {
    /// Makes the groups and sets their limits.
    pub(super) fn create(id: &str, linux: Option<&Linux>) -> Result<Self, Trouble> {
        let path = linux.and_then(|linux| linux.cgroups_path().clone());
        let path = path.filter(|path| !path.as_os_str().is_empty());
        let asked = path.is_some();
        // Another root may have a container of the same name, whose processes are none of this one's.
        let own = || PathBuf::from(format!("shakedown-{id}.{}", std::process::id()));
        let path = path.unwrap_or_else(own);
        let resources = linux.and_then(|linux| linux.resources().as_ref());
        let mut groups = Self { directories: Vec::new() };
        let all = hierarchies();
        let hybrid = all.iter().any(|hierarchy| !hierarchy.v2);
        resources.map_or(Ok(()), |resources| check_unified(resources, hybrid))?;
        for hierarchy in &all {
            // Beside v1, the v2 hierarchy has processes but no limits.
            let limits = resources.filter(|_| !(hybrid && hierarchy.v2));
            match groups.add(hierarchy, &path, limits) {
                Ok(()) => {}
                // Without rights to any, a container without limits needs none.
                Err((_, error))
                    if may_do_without(asked) && limits.is_none_or(is_empty) && refused(&error) => {}
                Err((file, error)) => {
                    groups.remove();
                    let reason = format!("{}: {error}", file.display());
                    return Err(Trouble::new("make the container's control groups", reason));
                }
            }
        }
        // One that exists already and is frozen would hold the container, and this process with it, for ever.
        if is_frozen(&groups.directories) {
            return Err(Trouble::new(
                "make the container's control groups",
                "the group exists and is frozen",
            ));
        }
        Ok(groups)
    }

    fn add(
        &mut self,
        hierarchy: &Hierarchy,
        path: &Path,
        resources: Option<&LinuxResources>,
    ) -> Result<(), (PathBuf, io::Error)> {
        let group = hierarchy.group(path);
        make(hierarchy, &group).map_err(|error| (group.clone(), error))?;
        self.directories.push(group.clone());
        let Some(resources) = resources else { return Ok(()) };
        let settings = if hierarchy.v2 { v2(resources) } else { v1(hierarchy, resources) };
        for Setting { file, value, optional } in settings {
            let file = group.join(file);
            match write_file(&file, &value) {
                Err(error) if optional && error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err((file, error)),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Puts a process into all of them.
    pub(super) fn enter(directories: &[PathBuf], pid: i32) -> Result<(), Trouble> {
        let added = directories.iter().try_for_each(|directory| add(directory, pid));
        added.map_err(|trouble| not_added(pid, &trouble))
    }

    /// The same for a further process. Of version 2, a group that hands controllers down holds no processes itself
    /// (cgroup-v2, "No Internal Process Constraint"): the process then joins the first one where that has gone to.
    pub(super) fn enter_beside(directories: &[PathBuf], first: i32, pid: i32) -> Result<(), Trouble> {
        directories.iter().try_for_each(|directory| match add(directory, pid) {
            Err((_, error)) if error.kind() == io::ErrorKind::ResourceBusy => {
                Self::enter(&[group_of(first).unwrap_or_else(|| directory.clone())], pid)
            }
            added => added.map_err(|trouble| not_added(pid, &trouble)),
        })
    }

    /// Changes the limits of a running container.
    pub(super) fn change(directories: &[PathBuf], resources: &LinuxResources) -> Result<(), Trouble> {
        let all = hierarchies();
        let hybrid = all.iter().any(|hierarchy| !hierarchy.v2);
        check_unified(resources, hybrid)?;
        // Beside v1, the v2 hierarchy has processes but no limits.
        for hierarchy in all.into_iter().filter(|hierarchy| !(hybrid && hierarchy.v2)) {
            let Some(group) = directories.iter().find(|group| group.starts_with(&hierarchy.mount)) else {
                continue;
            };
            let settings = if hierarchy.v2 { v2(resources) } else { v1(&hierarchy, resources) };
            write_in_some_order(group, settings).map_err(|(file, error)| {
                Trouble::new("change the container's limits", format!("{}: {error}", file.display()))
            })?;
        }
        Ok(())
    }

    fn remove(&self) {
        remove(&self.directories);
    }
}

/// The groups of a container, some of them replaced by others below them.
pub(super) fn below(groups: &[PathBuf], asked: &[String]) -> Result<Vec<PathBuf>, Trouble> {
    let wrong = |reason: String| Trouble::new("find the control groups to join", reason);
    let all = hierarchies();
    let mut replaced = groups.to_vec();
    for one in asked {
        let (controllers, path) =
            one.split_once(':').map_or((None, &**one), |(controllers, path)| (Some(controllers), path));
        let path = Path::new(path.trim_start_matches('/'));
        if path.components().any(|component| !matches!(component, std::path::Component::Normal(_))) {
            return Err(wrong(format!("{} is not a sub cgroup path", path.display())));
        }
        let mut place = |hierarchy: &Hierarchy| {
            let ours = |group: &&PathBuf| group.starts_with(&hierarchy.mount);
            for (own, new) in groups.iter().zip(&mut replaced).filter(|(own, _)| ours(own)) {
                *new = own.join(path);
            }
        };
        match controllers {
            None => all.iter().for_each(place),
            Some(names) => {
                for name in names.split(',') {
                    let named = |one: &&Hierarchy| one.has(name) || one.has(&format!("name={name}"));
                    place(all.iter().find(named).ok_or_else(|| wrong(format!("unknown controller {name}")))?);
                }
            }
        }
    }
    Ok(replaced)
}

/// As other runtimes tell of an error.
fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        _ => error.to_string(),
    }
}

/// `unified` names files of version 2: where its controllers are version 1's, its limits would be none.
fn check_unified(resources: &LinuxResources, hybrid: bool) -> Result<(), Trouble> {
    let asked = resources.unified().as_ref().is_some_and(|files| !files.is_empty());
    if asked && hybrid {
        let reason = "invalid configuration: `unified` needs a machine with version 2 alone";
        return Err(Trouble::new("set the container's limits", reason));
    }
    Ok(())
}

/// Of two limits that depend on each other, memory and memory with swap, or quota and period, the one to begin with
/// depends on what they were: what is refused at first is tried once more after the others.
fn write_in_some_order(group: &Path, settings: Vec<Setting>) -> Result<(), (PathBuf, io::Error)> {
    let write = |Setting { file, value, optional }: &Setting| {
        let file = group.join(file);
        match write_file(&file, value) {
            Err(error) if *optional && error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|error| (file, error)),
        }
    };
    // The rules for devices are those of its creation, from which nothing is taken away.
    let settings = settings.into_iter().filter(|one| !one.file.starts_with("devices."));
    let refused: Vec<Setting> = settings.filter(|one| write(one).is_err()).collect();
    refused.iter().try_for_each(write)
}

fn add(directory: &Path, pid: i32) -> Result<(), (PathBuf, io::Error)> {
    let file = directory.join("cgroup.procs");
    fs::write(&file, pid.to_string()).map_err(|error| (file, error))
}

fn not_added(pid: i32, (file, error): &(PathBuf, io::Error)) -> Trouble {
    let reason = format!("adding pid {pid} to {}: {}", file.display(), in_words(error));
    Trouble::new("join the container's control groups", reason)
}

/// The group of version 2 that a process is in.
fn group_of(pid: i32) -> Option<PathBuf> {
    let mount = hierarchies().into_iter().find(|hierarchy| hierarchy.v2)?.mount;
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(mount.join(path.trim_start_matches('/')))
}

/// Writes to a file that is there: where it is not, an attempt to make it would be refused as if rights were missing.
fn write_file(file: &Path, value: &str) -> io::Result<()> {
    fs::File::options().write(true).open(file).and_then(|mut file| file.write_all(value.as_bytes()))
}

/// Engines name a group for every container, also where an ordinary user may make none.
fn may_do_without(asked: bool) -> bool {
    !asked || !rustix::process::geteuid().is_root()
}

fn refused(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

fn is_empty(resources: &LinuxResources) -> bool {
    let LinuxResources { .. } = resources;
    [
        resources.memory().is_none(),
        resources.cpu().is_none(),
        resources.pids().is_none(),
        resources.block_io().is_none(),
        resources.hugepage_limits().is_none(),
        resources.network().is_none(),
        resources.unified().is_none(),
    ]
    .iter()
    .all(|none| *none)
}

/// Makes a group and those above it. A group of `cpuset` can hold processes only with processors and memory nodes of its
/// own, which it does not get from the group above by itself (cpuset(7)).
fn make(hierarchy: &Hierarchy, group: &Path) -> io::Result<()> {
    let below = group.strip_prefix(&hierarchy.mount).unwrap_or(Path::new(""));
    let mut at = hierarchy.mount.clone();
    for component in below.components() {
        let above = at.clone();
        at.push(component);
        match fs::create_dir(&at) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if hierarchy.has("cpuset") {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let own = fs::read_to_string(at.join(file))?;
                if own.trim().is_empty() {
                    fs::write(at.join(file), fs::read_to_string(above.join(file))?)?;
                }
            }
        }
        if hierarchy.v2 {
            hand_down(&above);
        }
    }
    Ok(())
}

/// Hands every controller down to the groups below, as far as that is possible; the write of a limit says what was not.
fn hand_down(group: &Path) {
    let controllers = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_ascii_whitespace() {
        let _ = fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// Removes the groups with those that the container has made in them; processes in them are a failure.
pub(super) fn remove(directories: &[PathBuf]) {
    for directory in directories {
        remove_below(directory);
    }
}

fn remove_below(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_below(&entry.path());
        }
    }
    // A group is busy for a moment after its last process has ended. One that stays so is nothing that could be mended
    // here, nor one that is gone.
    let moment = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    for _ in 0..MOMENTS {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                let _ = rustix::event::poll(&mut [], Some(&moment));
            }
            _ => return,
        }
    }
}

/// The processes in the groups, those of groups below included.
pub(super) fn processes(directories: &[PathBuf]) -> Vec<i32> {
    let Some(first) = directories.first() else { return Vec::new() };
    let mut all = Vec::new();
    let mut todo = vec![first.clone()];
    while let Some(directory) = todo.pop() {
        let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        all.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                todo.push(entry.path());
            }
        }
    }
    all
}

/// The files of the freezers that the groups have: v1's and v2's, with what stops and what starts.
fn freezers(directories: &[PathBuf]) -> Option<(PathBuf, [&'static str; 2])> {
    let v1 = directories.iter().map(|group| group.join("freezer.state")).find(|file| file.exists());
    let v2 = || directories.iter().map(|group| group.join("cgroup.freeze")).find(|file| file.exists());
    v1.map(|file| (file, ["FROZEN", "THAWED"])).or_else(|| v2().map(|file| (file, ["1", "0"])))
}

/// Stops all processes of the container, or lets them go on.
pub(super) fn freeze(directories: &[PathBuf], stop: bool) -> Result<(), Trouble> {
    let doing = if stop { "pause the container" } else { "resume the container" };
    let Some((file, [frozen, thawed])) = freezers(directories) else {
        return Err(Trouble::new(doing, "it is in no control group with a freezer"));
    };
    fs::write(&file, if stop { frozen } else { thawed })
        .map_err(|error| Trouble::new(doing, format!("{}: {error}", file.display())))
}

pub(super) fn is_frozen(directories: &[PathBuf]) -> bool {
    freezers(directories).is_some_and(|(file, [frozen, _])| {
        fs::read_to_string(file).is_ok_and(|state| state.trim() == frozen || state.trim() == "FREEZING")
    })
}

fn must(file: impl Into<String>, value: impl ToString) -> Setting {
    Setting { file: file.into(), value: value.to_string(), optional: false }
}

fn may(file: impl Into<String>, value: impl ToString) -> Setting {
    Setting { optional: true, ..must(file, value) }
}

fn v1(hierarchy: &Hierarchy, resources: &LinuxResources) -> Vec<Setting> {
    let mut list = Vec::new();
    if hierarchy.has("memory") {
        v1_memory(&mut list, resources);
    }
    if let Some(cpu) = resources.cpu() {
        if hierarchy.has("cpu") {
            // Engines send 0 for what is not given.
            list.extend(cpu.shares().filter(|v| *v != 0).map(|v| must("cpu.shares", v)));
            list.extend(cpu.period().filter(|v| *v != 0).map(|v| must("cpu.cfs_period_us", v)));
            list.extend(cpu.quota().filter(|v| *v != 0).map(|v| must("cpu.cfs_quota_us", v)));
            list.extend(cpu.realtime_period().filter(|v| *v > 0).map(|v| may("cpu.rt_period_us", v)));
            list.extend(cpu.realtime_runtime().filter(|v| *v != 0).map(|v| may("cpu.rt_runtime_us", v)));
        }
        if hierarchy.has("cpuset") {
            list.extend(cpu.cpus().iter().filter(|v| !v.is_empty()).map(|v| must("cpuset.cpus", v)));
            list.extend(cpu.mems().iter().filter(|v| !v.is_empty()).map(|v| must("cpuset.mems", v)));
        }
    }
    if hierarchy.has("pids") {
        list.extend(pids(resources));
    }
    if hierarchy.has("blkio") {
        v1_block(&mut list, resources);
    }
    if hierarchy.has("hugetlb") {
        for limit in resources.hugepage_limits().iter().flatten() {
            list.push(must(format!("hugetlb.{}.limit_in_bytes", limit.page_size()), limit.limit()));
        }
    }
    if let Some(network) = resources.network() {
        if hierarchy.has("net_cls") {
            list.extend(network.class_id().map(|v| must("net_cls.classid", v)));
        }
        if hierarchy.has("net_prio") {
            let priorities = network.priorities().iter().flatten();
            list.extend(
                priorities.map(|p| must("net_prio.ifpriomap", format!("{} {}", p.name(), p.priority()))),
            );
        }
    }
    if hierarchy.has("devices") {
        list.extend(resources.devices().iter().flatten().map(device));
        if resources.devices().as_ref().is_some_and(|rules| !rules.is_empty()) {
            list.extend(ALWAYS_ALLOWED.map(|rule| must("devices.allow", rule)));
        }
    }
    list
}

/// A limit of 0 is one that is not given; a negative one is none.
fn pids(resources: &LinuxResources) -> Option<Setting> {
    let limit = resources.pids().as_ref().map(|pids| pids.limit()).filter(|limit| *limit != 0)?;
    Some(must("pids.max", if limit > 0 { limit.to_string() } else { "max".to_owned() }))
}

/// Memory before memory with swap when both grow from nothing, as the kernel wants the latter no smaller.
fn v1_memory(list: &mut Vec<Setting>, resources: &LinuxResources) {
    let Some(memory) = resources.memory() else { return };
    list.extend(memory.limit().filter(|v| *v != 0).map(|v| must("memory.limit_in_bytes", v)));
    // Memory without a limit is more than memory and swap may be together, so that there is none for both, as with runc.
    let swap = memory.swap().filter(|v| *v != 0).or_else(|| memory.limit().filter(|v| *v == -1));
    list.extend(swap.map(|v| may("memory.memsw.limit_in_bytes", v)));
    list.extend(memory.reservation().filter(|v| *v != 0).map(|v| must("memory.soft_limit_in_bytes", v)));
    list.extend(memory.kernel_tcp().filter(|v| *v != 0).map(|v| may("memory.kmem.tcp.limit_in_bytes", v)));
    // Docker says -1 for "as it is".
    list.extend(memory.swappiness().filter(|v| *v <= 100).map(|v| may("memory.swappiness", v)));
    list.extend(memory.disable_oom_killer().filter(|v| *v).map(|_| must("memory.oom_control", 1)));
}

fn v1_block(list: &mut Vec<Setting>, resources: &LinuxResources) {
    let Some(block) = resources.block_io() else { return };
    // Of the two schedulers that know weights, a kernel has one: CFQ before Linux 5.0, BFQ since.
    for file in ["blkio.weight", "blkio.bfq.weight"] {
        list.extend(block.weight().filter(|v| *v != 0).map(|v| may(file, v)));
    }
    list.extend(block.leaf_weight().filter(|v| *v != 0).map(|v| may("blkio.leaf_weight", v)));
    for device in block.weight_device().iter().flatten() {
        let number = format!("{}:{}", device.major(), device.minor());
        for file in ["blkio.weight_device", "blkio.bfq.weight_device"] {
            list.extend(device.weight().map(|v| may(file, format!("{number} {v}"))));
        }
        list.extend(device.leaf_weight().map(|v| may("blkio.leaf_weight_device", format!("{number} {v}"))));
    }
    let throttles = [
        ("blkio.throttle.read_bps_device", block.throttle_read_bps_device()),
        ("blkio.throttle.write_bps_device", block.throttle_write_bps_device()),
        ("blkio.throttle.read_iops_device", block.throttle_read_iops_device()),
        ("blkio.throttle.write_iops_device", block.throttle_write_iops_device()),
    ];
    for (file, devices) in throttles {
        for device in devices.iter().flatten() {
            list.push(must(file, format!("{}:{} {}", device.major(), device.minor(), device.rate())));
        }
    }
}

/// A rule of the devices controller: cgroup-v1/devices in the kernel's documentation.
fn device(rule: &LinuxDeviceCgroup) -> Setting {
    let kind = match rule.typ() {
        Some(LinuxDeviceType::B) => "b",
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => "c",
        _ => "a",
    };
    let number =
        |number: Option<i64>| number.filter(|n| *n >= 0).map_or_else(|| "*".to_owned(), |n| n.to_string());
    // Other letters mean nothing, and the kernel would refuse them.
    let access: String =
        rule.access().as_deref().unwrap_or("rwm").chars().filter(|letter| "rwm".contains(*letter)).collect();
    let file = if rule.allow() { "devices.allow" } else { "devices.deny" };
    let value = format!("{kind} {}:{} {access}", number(rule.major()), number(rule.minor()));
    // A rule for everything is `a` alone.
    must(file, if kind == "a" { "a".to_owned() } else { value })
}

fn v2(resources: &LinuxResources) -> Vec<Setting> {
    let most = |v: i64| if v < 0 { "max".to_owned() } else { v.to_string() };
    let mut list = Vec::new();
    if let Some(memory) = resources.memory() {
        list.extend(memory.limit().filter(|v| *v != 0).map(|v| must("memory.max", most(v))));
        list.extend(memory.reservation().filter(|v| *v != 0).map(|v| must("memory.low", most(v))));
        // v1 counts memory and swap together, v2 swap alone.
        let swap = memory.swap().filter(|v| *v != 0).map(|total| match (total, memory.limit()) {
            (total, Some(limit)) if total > 0 && limit > 0 => (total - limit).max(0),
            (total, _) => total,
        });
        list.extend(swap.map(|v| may("memory.swap.max", most(v))));
    }
    if let Some(cpu) = resources.cpu() {
        list.extend(cpu.shares().filter(|v| *v != 0).map(|v| must("cpu.weight", weight_of_shares(v))));
        if cpu.quota().is_some_and(|v| v != 0) || cpu.period().is_some_and(|v| v != 0) {
            let quota = cpu.quota().filter(|v| *v > 0).map_or_else(|| "max".to_owned(), |v| v.to_string());
            list.push(must(
                "cpu.max",
                format!("{quota} {}", cpu.period().filter(|v| *v != 0).unwrap_or(100_000)),
            ));
        }
        list.extend(cpu.cpus().iter().filter(|v| !v.is_empty()).map(|v| must("cpuset.cpus", v)));
        list.extend(cpu.mems().iter().filter(|v| !v.is_empty()).map(|v| must("cpuset.mems", v)));
    }
    list.extend(pids(resources));
    if let Some(block) = resources.block_io() {
        list.extend(block.weight().filter(|v| *v != 0).map(|v| may("io.bfq.weight", v)));
        for device in block.weight_device().iter().flatten() {
            let number = format!("{}:{}", device.major(), device.minor());
            list.extend(device.weight().map(|v| may("io.bfq.weight", format!("{number} {v}"))));
        }
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        list.push(must(format!("hugetlb.{}.max", limit.page_size()), limit.limit()));
    }
    for (file, value) in resources.unified().iter().flatten() {
        list.push(must(file.clone(), value));
    }
    list
}

/// From v1's 2–262144 to v2's 1–10000, as the OCI runtimes have agreed (crun.1, "CPU controller").
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same configuration means the same on both versions.
    #[test]
    fn shares_become_weights() {
        assert_eq!([2, 1024, 262_144].map(weight_of_shares), [1, 39, 10_000]);
    }

    /// Docker's device rules become what the kernel reads.
    #[test]
    fn device_rules_are_written_as_the_kernel_reads_them() {
        let rule = |json: &str| {
            let setting = device(&serde_json::from_str(json).unwrap());
            format!("{} < {}", setting.file, setting.value)
        };
        assert_eq!(rule(r#"{"allow":false,"access":"rwm"}"#), "devices.deny < a");
        assert_eq!(rule(r#"{"allow":true,"type":"c","access":"m"}"#), "devices.allow < c *:* m");
        let null = r#"{"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"}"#;
        assert_eq!(rule(null), "devices.allow < c 1:3 rwm");
    }
}
