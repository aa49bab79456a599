//! From a declaration and an image to an OCI runtime spec: Docker's defaults, and what the declaration changes.

use super::cgroup::View;
use super::devices::HostDevice;
use super::launch::mounts::default_devices;
use super::launcher::Identity;
use super::seccomp::{self, Filter};
use super::users::User;
use crate::driver::{ExecRequest, ImageConfig, TerminalSize};
use crate::merge::merge;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    BoxBuilder, Capabilities, Capability, Linux, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder,
    LinuxDevice, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceBuilder,
    LinuxNamespaceType, Mount, MountBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process,
    ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};
use shakedown_spec::{
    Container, Failure, FailureKind, MountSource, NamespaceMode, Seccomp, SecurityOptions, Ulimit,
};
use std::path::Path;
use std::sync::OnceLock;

/// The capabilities Docker gives a container.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Paths of `/proc` and `/sys` that tell about or reach the host, as Docker masks them.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths of `/proc` that change the host, as Docker makes them read-only.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The processors' counts of overheating, which tell what else runs on the machine: one directory each, where the
/// machine has them.
fn throttling() -> &'static [String] {
    static FOUND: OnceLock<Vec<String>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let processors = std::fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten();
        let counts =
            processors.map(|entry| entry.path().join("thermal_throttle")).filter(|path| path.is_dir());
        counts.map(|path| path.to_string_lossy().into_owned()).collect()
    })
}

/// The name of Docker's AppArmor profile, if it is loaded here.
pub(crate) fn default_profile() -> Option<String> {
    static LOADED: OnceLock<bool> = OnceLock::new();
    const NAME: &str = "docker-default";
    let loaded = || {
        let profiles = std::fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap_or_default();
        profiles.lines().any(|line| line.split_whitespace().next() == Some(NAME))
    };
    LOADED.get_or_init(loaded).then(|| NAME.to_owned())
}

/// A container's spec, and which seccomp filter it gets.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// The spec.
    pub(crate) spec: Spec,
    /// The filter.
    pub(crate) filter: Filter,
}

/// What a declaration does not say and the driver knows.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    /// The declaration.
    pub(crate) container: &'a Container,
    /// What its image says.
    pub(crate) image: &'a ImageConfig,
    /// Whom the first process runs as.
    pub(crate) user: &'a User,
    /// As whom containers run here.
    pub(crate) identity: Identity,
    /// Whether its users are others than the launcher's.
    pub(crate) remapped: bool,
    /// The hierarchies of control groups.
    pub(crate) cgroups: &'a [View],
    /// The declared devices, found on the host.
    pub(crate) devices: &'a [HostDevice],
}

impl Facts<'_> {
    /// The spec of the container.
    pub(crate) fn bundle(&self) -> Result<Bundle, Failure> {
        let granted = self.capabilities()?;
        let filter = self.filter(&granted)?;
        let failed = |error: &dyn std::fmt::Display| invalid("the declaration", &error.to_string());
        let mut spec = self.spec(&granted).map_err(|error| failed(&error))?;
        if let Some(patch) = self.container.raw.get("native") {
            let mut json = serde_json::to_value(&spec).map_err(|error| failed(&error))?;
            merge(&mut json, patch);
            spec = serde_json::from_value(json).map_err(|error| failed(&format!("raw: {error}")))?;
        }
        Ok(Bundle { spec, filter })
    }

    fn security(&self) -> Result<SecurityOptions, Failure> {
        SecurityOptions::read(&self.container.security_opt)
            .map_err(|error| invalid("the declaration", &error))
    }

    fn filter(&self, granted: &Capabilities) -> Result<Filter, Failure> {
        match self.security()?.seccomp {
            Some(Seccomp::Unconfined) => Ok(Filter::None),
            Some(Seccomp::Profile(text)) => seccomp::custom(&text, &names(granted))
                .map(|rules| Filter::Rules(Box::new(rules)))
                .map_err(|reason| invalid("the seccomp profile", &reason)),
            Some(Seccomp::File(file)) => {
                Err(invalid("the seccomp profile", &format!("`{file}` was not read")))
            }
            None if self.container.privileged => Ok(Filter::None),
            Some(Seccomp::Default) | None => Ok(Filter::Default(names(granted))),
        }
    }

    /// Whether the container could bring device nodes to life that are dead where it finds them: by mounting.
    pub(crate) fn could_use_nodes(&self) -> bool {
        let admin = capability("SYS_ADMIN")
            .is_some_and(|admin| self.capabilities().is_ok_and(|granted| granted.contains(&admin)));
        self.makes_nodes() && admin && !self.container.privileged
    }

    /// The process of a further command, and its filter.
    pub(crate) fn exec(&self, request: &ExecRequest) -> Result<(Process, Filter), Failure> {
        let granted = self.capabilities()?;
        let filter = self.filter(&granted)?;
        let mut env = self.environment();
        for (key, value) in &request.env {
            set(&mut env, key, value);
        }
        let workdir = request.workdir.clone().unwrap_or_else(|| self.workdir());
        let mut process = self
            .process(&granted, request.argv.clone(), env, workdir)
            .map_err(|error| invalid("the command", &error.to_string()))?;
        if request.tty {
            give_terminal(&mut process, request.size);
        }
        Ok((process, filter))
    }

    fn spec(&self, granted: &Capabilities) -> Result<Spec, OciSpecError> {
        let argv = self.argv();
        let mut process = self.process(granted, argv, self.environment(), self.workdir())?;
        if self.container.tty {
            give_terminal(&mut process, None);
        }
        let root = RootBuilder::default().path("rootfs").readonly(self.container.read_only).build()?;
        let mut hostname = self.container.hostname.clone().unwrap_or_else(|| self.container.display_name());
        // The kernel takes 64 bytes (sethostname(2)); a name derived from an image may be longer.
        hostname.truncate(64);
        let mut spec = SpecBuilder::default()
            .version("1.2.0")
            .root(root)
            .process(process)
            .hostname(hostname)
            .mounts(self.mounts()?)
            .linux(self.linux()?)
            .build()?;
        spec.set_annotations(None);
        spec.set_domainname(self.container.domainname.clone());
        Ok(spec)
    }

    fn argv(&self) -> Vec<String> {
        let entrypoint = self.container.entrypoint.clone();
        // A replaced entry point takes the image's command with it, as in Docker.
        let command = match (&self.container.command, &entrypoint) {
            (Some(command), _) => command.clone(),
            (None, Some(_)) => Vec::new(),
            (None, None) => self.image.command.clone(),
        };
        entrypoint.unwrap_or_else(|| self.image.entrypoint.clone()).into_iter().chain(command).collect()
    }

    /// The image's variables, then the declaration's; `HOME` and `HOSTNAME` as Docker sets them.
    fn environment(&self) -> Vec<String> {
        let hostname = self.container.hostname.clone().unwrap_or_else(|| self.container.display_name());
        let mut env = vec![format!("PATH={DEFAULT_PATH}"), format!("HOSTNAME={hostname}")];
        let pairs = self.image.env.iter().filter_map(|pair| pair.split_once('='));
        for (key, value) in pairs.chain(self.container.env.iter().map(|(key, value)| (&**key, &**value))) {
            set(&mut env, key, value);
        }
        if !env.iter().any(|pair| pair.starts_with("HOME=")) {
            env.push(format!("HOME={}", self.user.home));
        }
        env
    }

    fn workdir(&self) -> String {
        let declared = self.container.workdir.clone().or_else(|| Some(self.image.workdir.clone()));
        declared.filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned())
    }

    fn process(
        &self,
        granted: &Capabilities,
        argv: Vec<String>,
        env: Vec<String>,
        cwd: String,
    ) -> Result<Process, OciSpecError> {
        let user = UserBuilder::default()
            .uid(self.user.uid)
            .gid(self.user.gid)
            .additional_gids(self.user.groups.clone())
            .build()?;
        let mut process = ProcessBuilder::default()
            .args(argv)
            .env(env)
            .cwd(cwd)
            .user(user)
            .capabilities(self.capability_sets(granted)?)
            .no_new_privileges(self.asks_no_new_privileges())
            .rlimits(self.rlimits()?)
            .build()?;
        process.set_terminal(None);
        process.set_apparmor_profile(self.apparmor());
        Ok(process)
    }

    /// A process that is not root has its capabilities in the bounding set only, as under Docker.
    fn capability_sets(&self, granted: &Capabilities) -> Result<LinuxCapabilities, OciSpecError> {
        let held = if self.user.uid == 0 { granted.clone() } else { Capabilities::new() };
        LinuxCapabilitiesBuilder::default()
            .bounding(granted.clone())
            .effective(held.clone())
            .permitted(held)
            .inheritable(Capabilities::new())
            .ambient(Capabilities::new())
            .build()
    }

    fn capabilities(&self) -> Result<Capabilities, Failure> {
        let named = |name: &String| capability(name).ok_or_else(|| unknown_capability(name));
        let all = || (0..=40).filter_map(numbered);
        if self.container.privileged {
            return Ok(all().collect());
        }
        let mut set: Capabilities =
            DEFAULT_CAPABILITIES.iter().filter_map(|name| name.parse().ok()).collect();
        let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
        if self.container.cap_drop.iter().any(is_all) {
            set.clear();
        }
        if self.container.cap_add.iter().any(is_all) {
            set.extend(all());
        }
        for name in self.container.cap_add.iter().filter(|name| !is_all(name)) {
            set.insert(named(name)?);
        }
        for name in self.container.cap_drop.iter().filter(|name| !is_all(name)) {
            set.remove(&named(name)?);
        }
        Ok(set)
    }

    fn rlimits(&self) -> Result<Vec<PosixRlimit>, OciSpecError> {
        let limit = |ulimit: &Ulimit| {
            let kind: PosixRlimitType = rlimit_type(&ulimit.name)
                .ok_or_else(|| OciSpecError::Other(format!("`{}` is not a resource limit", ulimit.name)))?;
            PosixRlimitBuilder::default().typ(kind).soft(ulimit.soft).hard(ulimit.hard).build()
        };
        self.container.resources.ulimits.iter().map(limit).collect()
    }

    fn mounts(&self) -> Result<Vec<Mount>, OciSpecError> {
        let single = self.identity == Identity::Single;
        let shm = self.container.resources.shm_size.unwrap_or(64 << 20);
        // Group 5 is tty in every image; where only one id is mapped there is no group 5.
        let pts: &[&str] = if single {
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
        } else {
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
        };
        let sys = if self.container.privileged { "rw" } else { "ro" };
        // A privileged container may make and use device nodes.
        let nodes = if self.container.privileged { "dev" } else { "nodev" };
        let shm_size = format!("size={shm}");
        let mut mounts = vec![
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"])?,
            mount("/dev", "tmpfs", &["nosuid", nodes, "strictatime", "mode=755", "size=65536k"])?,
            mount("/dev/pts", "devpts", pts)?,
            match self.container.ipc {
                NamespaceMode::Private | NamespaceMode::Shareable => {
                    mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", &shm_size])?
                }
                // The host's, or, by the request, that of the other container.
                NamespaceMode::Host | NamespaceMode::Container(_) => {
                    bind("/dev/shm", "/dev/shm", false, "nodev")?
                }
            },
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
        ];
        // A container that is mapped to another user than the launcher's root does not own its network namespace, and
        // may then only look at the host's /sys (user_namespaces(7)).
        mounts.push(if self.maps_itself() {
            bind("/sys", "/sys", true, nodes)?
        } else {
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", sys])?
        });
        self.add_cgroups(&mut mounts, sys)?;
        for declared in &self.container.mounts {
            mounts.push(match &declared.source {
                MountSource::Bind { source, .. } => {
                    bind(source, &declared.target, declared.read_only, nodes)?
                }
                MountSource::Volume { .. } | MountSource::Image { .. } => {
                    return Err(OciSpecError::Other(format!(
                        "what is mounted at {} was not made",
                        declared.target
                    )));
                }
                MountSource::Tmpfs { size, mode } => {
                    let mut options = vec!["nosuid".to_owned(), "nodev".to_owned()];
                    options.push(format!("mode={:o}", mode.unwrap_or(0o1777)));
                    options.extend(size.map(|size| format!("size={size}")));
                    options.extend(declared.read_only.then(|| "ro".to_owned()));
                    mount(&declared.target, "tmpfs", &options.iter().map(String::as_str).collect::<Vec<_>>())?
                }
            });
        }
        // Nodes cannot be made in a user namespace: the host's are shown.
        for device in self.devices.iter().filter(|_| !self.makes_nodes()) {
            mounts.push(bind(&device.source, &device.target, false, "dev")?);
        }
        Ok(mounts)
    }

    fn asks_no_new_privileges(&self) -> bool {
        self.container.no_new_privileges || self.security().is_ok_and(|security| security.no_new_privileges)
    }

    /// The declared AppArmor profile, else Docker's where it is loaded: Docker loads it, and so it is there where Docker
    /// is.
    fn apparmor(&self) -> Option<String> {
        let declared = self.security().ok().and_then(|security| security.apparmor);
        let usual =
            || (self.identity == Identity::Root && !self.container.privileged).then(default_profile)?;
        declared.or_else(usual).filter(|profile| profile != "unconfined")
    }

    /// Shows the container its control groups. Version 1, with a mount for every hierarchy, only where it has limits or
    /// may do everything: the mounts would cost a quarter of the start.
    fn add_cgroups(&self, mounts: &mut Vec<Mount>, access: &str) -> Result<(), OciSpecError> {
        let wanted = self.container.resources.need_cgroup() || self.container.privileged;
        let options = ["nosuid", "nodev", "noexec", access];
        match self.cgroups {
            _ if self.maps_itself() => {}
            [View { kind: "cgroup2", .. }] => mounts.push(mount("/sys/fs/cgroup", "cgroup2", &options)?),
            views if wanted => {
                mounts.push(mount("/sys/fs/cgroup", "tmpfs", &["nosuid", "nodev", "noexec", "mode=755"])?);
                for view in views {
                    let controllers = view.controllers.iter().map(String::as_str);
                    let options: Vec<&str> = options.into_iter().chain(controllers).collect();
                    mounts.push(mount(&format!("/sys/fs/cgroup/{}", view.directory), view.kind, &options)?);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether device nodes can be made for it: in a user namespace they cannot.
    fn makes_nodes(&self) -> bool {
        self.identity == Identity::Root && !self.remapped
    }

    /// Whether the container gets a user namespace of its own, in which its user is the only one.
    fn maps_itself(&self) -> bool {
        self.identity == Identity::Single && self.user.uid != 0
    }

    fn linux(&self) -> Result<Linux, OciSpecError> {
        let namespaces = self.namespaces()?;
        let masked =
            || MASKED.iter().map(|path| (*path).to_owned()).chain(throttling().iter().cloned()).collect();
        let read_only = || READ_ONLY.iter().map(|path| (*path).to_owned()).collect();
        let unconfined = self.security().is_ok_and(|security| security.systempaths_unconfined);
        let paths = |declared: &Option<Vec<String>>, usual: &dyn Fn() -> Vec<String>| match declared {
            Some(list) => list.clone(),
            None if unconfined || self.container.privileged => Vec::new(),
            None => usual(),
        };
        let mut linux = LinuxBuilder::default()
            .namespaces(namespaces)
            .devices(self.devices()?)
            .masked_paths(paths(&self.container.masked_paths, &masked))
            .readonly_paths(paths(&self.container.readonly_paths, &read_only))
            .sysctl(self.container.sysctls.clone().into_iter().collect::<std::collections::HashMap<_, _>>())
            .build()?;
        linux.set_resources(None);
        linux.set_seccomp(None);
        linux.set_uid_mappings(self.id_mapping(self.user.uid)?);
        linux.set_gid_mappings(self.id_mapping(self.user.gid)?);
        Ok(linux)
    }

    /// A namespace with a path is another's, which the launcher joins.
    fn namespaces(&self) -> Result<Vec<LinuxNamespace>, OciSpecError> {
        // The launcher's, for all containers of the session that have other users.
        let others = NamespaceMode::Host;
        let mut kinds = vec![
            (LinuxNamespaceType::Mount, &NamespaceMode::Private),
            (LinuxNamespaceType::Pid, &self.container.pid),
            (LinuxNamespaceType::Ipc, &self.container.ipc),
            (LinuxNamespaceType::Uts, &NamespaceMode::Private),
            (LinuxNamespaceType::Network, &NamespaceMode::Private),
        ];
        if self.container.cgroupns != NamespaceMode::Host {
            kinds.push((LinuxNamespaceType::Cgroup, &NamespaceMode::Private));
        }
        if self.maps_itself() {
            kinds.push((LinuxNamespaceType::User, &NamespaceMode::Private));
        }
        if self.remapped {
            kinds.push((LinuxNamespaceType::User, &others));
        }
        let namespace = |(kind, mode): (LinuxNamespaceType, &NamespaceMode)| {
            let namespace = LinuxNamespaceBuilder::default().typ(kind);
            match mode {
                NamespaceMode::Private | NamespaceMode::Shareable => namespace.build(),
                NamespaceMode::Host | NamespaceMode::Container(_) => namespace.path(mode.to_string()).build(),
            }
        };
        kinds.into_iter().map(namespace).collect()
    }

    fn devices(&self) -> Result<Vec<LinuxDevice>, OciSpecError> {
        let mut devices = default_devices()?;
        for device in self.devices.iter().filter(|_| self.makes_nodes()) {
            devices.push(device.in_spec()?);
        }
        Ok(devices)
    }

    fn id_mapping(&self, id: u32) -> Result<Option<Vec<LinuxIdMapping>>, OciSpecError> {
        if !self.maps_itself() {
            return Ok(None);
        }
        let mapping = LinuxIdMappingBuilder::default().container_id(id).host_id(0_u32).size(1_u32).build()?;
        Ok(Some(vec![mapping]))
    }
}

/// Asks for a terminal, and tells the programs of it as Docker does.
fn give_terminal(process: &mut Process, size: Option<TerminalSize>) {
    process.set_terminal(Some(true));
    if let Some(TerminalSize { rows, columns }) = size {
        let console = BoxBuilder::default().height(rows).width(columns).build();
        process.set_console_size(console.ok());
    }
    let mut env = process.env().clone().unwrap_or_default();
    if !env.iter().any(|pair| pair.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    process.set_env(Some(env));
}

fn set(env: &mut Vec<String>, key: &str, value: &str) {
    let pair = format!("{key}={value}");
    match env.iter_mut().find(|pair| pair.split_once('=').is_some_and(|(name, _)| name == key)) {
        Some(existing) => *existing = pair,
        None => env.push(pair),
    }
}

fn mount(target: &str, kind: &str, options: &[&str]) -> Result<Mount, OciSpecError> {
    let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
    MountBuilder::default().destination(target).typ(kind).source(kind).options(options).build()
}

fn bind(source: &str, target: &str, read_only: bool, nodes: &str) -> Result<Mount, OciSpecError> {
    let mut options = vec!["rbind".to_owned(), "rprivate".to_owned()];
    // The leading `r`: with all that is mounted below it.
    options.extend(read_only.then(|| "rro".to_owned()));
    options.extend((nodes == "nodev").then(|| "rnodev".to_owned()));
    let source = Path::new(source);
    MountBuilder::default().destination(target).typ("bind").source(source).options(options).build()
}

fn names(set: &Capabilities) -> Vec<String> {
    let mut names: Vec<String> = set.iter().map(|capability| format!("CAP_{capability}")).collect();
    names.sort();
    names
}

fn capability(name: &str) -> Option<Capability> {
    let upper = name.to_ascii_uppercase();
    upper.strip_prefix("CAP_").unwrap_or(&upper).parse().ok()
}

fn numbered(number: u32) -> Option<Capability> {
    use rustix::thread::CapabilitySet;
    let (name, _) = CapabilitySet::from_bits_retain(1 << number).iter_names().next()?;
    name.parse().ok()
}

fn rlimit_type(name: &str) -> Option<PosixRlimitType> {
    serde_json::from_value(format!("RLIMIT_{}", name.to_ascii_uppercase()).into()).ok()
}

fn invalid(what: &str, reason: &str) -> Failure {
    Failure::new(FailureKind::Invalid, format!("{what} cannot be made into a container"))
        .fact("reason", reason)
}

fn unknown_capability(name: &str) -> Failure {
    Failure::new(FailureKind::Invalid, format!("`{name}` is not a capability"))
        .hint("the names are those of capabilities(7), such as `NET_ADMIN`")
}
