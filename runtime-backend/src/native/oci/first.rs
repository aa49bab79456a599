//! A container's first process, from its clone to its program.

use super::label::{Label, Prepared};
use super::listener::Listener;
use super::mounts::Sources;
use super::state::{Record, Status};
use super::talk::{Line, Word};
use super::{console, hooks};
use crate::native::launch::{Init, Program, Trouble, Trying, World, mounts};
use crate::native::network::netlink::{LOOPBACK, Netlink};
use crate::native::sys::{self, Called};
use oci_spec::runtime::{LinuxDevice, LinuxNamespaceType, LinuxPersonalityDomain, Spec};
use rustix::mount::MountPropagationFlags;
use rustix::net::SendFlags;
use rustix::process::{DumpableBehavior, Gid, Uid};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// `PER_LINUX32` of linux/personality.h.
const PER_LINUX32: i32 = 8;

/// What it inherits from `create`.
#[derive(Debug)]
pub(super) struct First<'a> {
    pub(super) spec: &'a Spec,
    pub(super) program: &'a Program,
    pub(super) record: &'a Record,
    pub(super) line: &'a Line,
    /// Listens at the place where `start` connects.
    pub(super) listener: &'a OwnedFd,
    pub(super) console: Option<&'a OwnedFd>,
    /// How many descriptors behind the standard ones the program gets.
    pub(super) kept: u32,
    /// Mounts that become read-only once everything is in them.
    pub(super) read_only: &'a [PathBuf],
    /// Whether device nodes are dead but in `/dev`.
    pub(super) dead_nodes: bool,
    /// What a security module is told.
    pub(super) label: Option<&'a Label>,
    /// Whether `create` opens the root and the sources of bind mounts.
    pub(super) given: bool,
    /// Devices whose nodes `create` makes.
    pub(super) apart: &'a [LinuxDevice],
}

impl First<'_> {
    /// Never returns but in failure; the exit code.
    pub(super) fn run(&self) -> i32 {
        sys::reset_signals();
        // What `create` was called with is not the container's, and whoever waits for its end does so in vain otherwise.
        let label = self.label.map(Label::proc);
        let console = self.console.map(AsFd::as_fd);
        let kept = [Some(self.line.socket()), Some(self.listener.as_fd()), console, label];
        let kept: Vec<_> = kept.into_iter().flatten().collect();
        sys::close_from_other_than(3 + self.kept, &kept);
        let (prepared, listener) = match self.build() {
            Ok(built) => built,
            Err(trouble) => {
                let _ = self.line.say(&Word::Trouble(trouble));
                return 1;
            }
        };
        let Ok(started) = self.wait_for_start() else { return 1 };
        let Err(trouble) = self.become_program(prepared, listener.as_ref());
        let text = serde_json::to_vec(&trouble).unwrap_or_default();
        let _ = rustix::net::send(&started, &text, SendFlags::NOSIGNAL);
        127
    }

    fn become_program(
        &self,
        prepared: Option<Prepared>,
        listener: Option<&Listener>,
    ) -> Result<std::convert::Infallible, Trouble> {
        self.before_program()?;
        prepared.map_or(Ok(()), Prepared::apply)?;
        self.program.run_told(&|fd| listener.map_or(Ok(()), |agent| agent.tell(fd)))
    }

    fn new_namespace(&self, kind: LinuxNamespaceType) -> bool {
        let list = self.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        list.into_iter().flatten().any(|namespace| namespace.typ() == kind && namespace.path().is_none())
    }

    fn has_user_namespace(&self) -> bool {
        let list = self.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        list.into_iter().flatten().any(|namespace| namespace.typ() == LinuxNamespaceType::User)
    }

    fn build(&self) -> Result<(Option<Prepared>, Option<Listener>), Trouble> {
        let state = hooks::state_json(self.record, Status::Creating);
        let listener = Listener::connect(self.spec, state)?;
        let prepared = self.label.map(Label::prepare).transpose()?;
        self.line.say(&Word::Here)?;
        self.line.wait()?;
        // From now on others may see this process, which none of them is to trace (CVE-2016-9962).
        let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
        if self.has_user_namespace() {
            become_root()?;
        }
        let _ = rustix::process::setsid();
        if self.new_namespace(LinuxNamespaceType::Cgroup) {
            sys::unshare_cgroup()
                .call(|| "unshare(CLONE_NEWCGROUP)".to_owned())
                .trying(|| "hide the host's control groups".to_owned())?;
        }
        if self.new_namespace(LinuxNamespaceType::Network) {
            let up = Netlink::open().and_then(|netlink| netlink.up(LOOPBACK));
            up.trying(|| "switch the loopback interface on".to_owned())?;
        }
        let terminal = self.furnish()?;
        self.set_personality()?;
        if let Some(terminal) = &terminal {
            console::take(terminal)?;
        }
        console::close_others(self.kept)?;
        self.line.say(&Word::Ready)?;
        Ok((prepared, listener))
    }

    /// Mounts everything and makes it the root; the terminal, if there is one.
    fn furnish(&self) -> Result<Option<OwnedFd>, Trouble> {
        let sources = if self.given { self.take_sources()? } else { Sources::open(self.spec, None)? };
        let Sources { root, binds, nodes } = sources;
        let world = World {
            root: root.as_fd(),
            network: None,
            home: root.as_fd(),
            binds,
            cgroups: Vec::new(),
            devices: None,
            dead_nodes: self.dead_nodes,
            joins: Vec::new(),
            reaper: false,
            stdio: [root.as_fd(), root.as_fd(), root.as_fd()],
            furniture: None,
            complete: None,
        };
        let init = Init { spec: self.spec, program: self.program, world: &world };
        init.stage().isolate_mounts()?;
        init.stage().mount_all()?;
        for (device, node) in self.apart.iter().zip(&nodes) {
            mounts::attach(root.as_fd(), node, device.path())?;
        }
        if let Some(process) = self.spec.process() {
            // One that cannot be made is told of when it is to be entered.
            let _ = mounts::make_directories(root.as_fd(), process.cwd());
        }
        self.run_create_container(root.as_fd())?;
        let wanted = self.console.zip(self.spec.process().as_ref());
        let terminal = wanted.map(|(to, process)| console::make(root.as_fd(), to, process)).transpose()?;
        if let Some(terminal) = &terminal {
            let shown = mounts::clone_mount(terminal.as_fd())
                .call(|| "open_tree(terminal, OPEN_TREE_CLONE)".to_owned())
                .trying(|| "show the terminal as /dev/console".to_owned())?;
            mounts::attach(root.as_fd(), &shown, std::path::Path::new("/dev/console"))?;
        }
        mounts::make_read_only(root.as_fd(), self.read_only)?;
        init.stage().cover_paths()?;
        init.stage().change_root()?;
        self.propagate()?;
        init.name_host()?;
        init.set_parameters()?;
        Ok(terminal)
    }

    /// They find the container's root as their working directory, and the machine's as their root.
    fn run_create_container(&self, root: BorrowedFd<'_>) -> Result<(), Trouble> {
        let hooks = self.spec.hooks().as_ref().and_then(|hooks| hooks.create_container().as_ref());
        if hooks.is_none() {
            return Ok(());
        }
        rustix::process::fchdir(root)
            .call(|| "fchdir(root)".to_owned())
            .trying(|| "enter the container's root".to_owned())?;
        let mut state = hooks::state_json(self.record, Status::Creating);
        // The number that the runtime's namespace has for this process.
        let own = std::fs::read_link("/proc/self").ok().and_then(|link| link.to_str()?.parse::<i32>().ok());
        state["pid"] = own.unwrap_or(0).into();
        hooks::run("createContainer", hooks, &state)
    }

    fn take_sources(&self) -> Result<Sources, Trouble> {
        let root = self.line.take()?;
        let count = self.spec.mounts().iter().flatten().filter(|mount| mounts::is_bind(mount)).count();
        let binds = (0..count).map(|_| self.line.take()).collect::<Result<_, _>>()?;
        let nodes = self.apart.iter().map(|_| self.line.take()).collect::<Result<_, _>>()?;
        Ok(Sources { root, binds, nodes })
    }

    fn set_personality(&self) -> Result<(), Trouble> {
        let wanted = self.spec.linux().as_ref().and_then(|linux| linux.personality().as_ref());
        let Some(wanted) = wanted else { return Ok(()) };
        let domain = match wanted.domain() {
            LinuxPersonalityDomain::PerLinux => 0,
            LinuxPersonalityDomain::PerLinux32 => PER_LINUX32,
        };
        sys::personality(domain)
            .call(|| format!("personality({domain:#x})"))
            .trying(|| "set the personality".to_owned())
    }

    /// What is mounted in the container is shown to others, or the other way round, only if that is asked for.
    fn propagate(&self) -> Result<(), Trouble> {
        let wanted = self.spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().clone());
        let flags = match wanted.as_deref() {
            Some("shared" | "rshared") => MountPropagationFlags::SHARED,
            Some("slave" | "rslave") => MountPropagationFlags::DOWNSTREAM,
            Some("unbindable" | "runbindable") => MountPropagationFlags::UNBINDABLE,
            _ => return Ok(()),
        };
        rustix::mount::mount_change("/", flags)
            .call(|| format!("mount(NULL, \"/\", NULL, {flags:?}, NULL)"))
            .trying(|| "set the propagation of the container's mounts".to_owned())
    }

    fn wait_for_start(&self) -> Result<OwnedFd, Trouble> {
        rustix::net::accept_with(self.listener, rustix::net::SocketFlags::CLOEXEC)
            .call(|| "accept4(start.sock)".to_owned())
            .trying(|| "wait for the start".to_owned())
    }

    fn before_program(&self) -> Result<(), Trouble> {
        let hooks = self.spec.hooks().as_ref();
        let state = hooks::state_json(self.record, Status::Created);
        hooks::run("startContainer", hooks.and_then(|hooks| hooks.start_container().as_ref()), &state)
    }
}

/// In a user namespace a process is nobody until it says otherwise.
pub(super) fn become_root() -> Result<(), Trouble> {
    let doing = || "become root of the container's user namespace".to_owned();
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
        .call(|| "setresgid(0, 0, 0)".to_owned())
        .trying(doing)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
        .call(|| "setresuid(0, 0, 0)".to_owned())
        .trying(doing)
}
