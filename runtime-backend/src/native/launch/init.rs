//! The container's first process: from a clone of the launcher to the container's program.

use super::mounts::{self, Root};
use super::{Launched, Program, Trouble, Trying, World, clone_flag, reaper};
use crate::native::sys::{self, Called, Stack};
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespace, LinuxNamespaceType, Mount, Spec};
use rustix::fs::OFlags;
use rustix::mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::LinkNameSpaceType;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// One step of the new process.
type Step = fn(&Init<'_>) -> Result<(), Trouble>;

/// The steps of the new process, in order; their number is what failure messages count.
const STEPS: [Step; 9] = [
    |init| init.map_ids(),
    |init| init.stage().isolate_mounts(),
    |init| init.join_groups(),
    |init| init.stage().mount_all(),
    |init| init.stage().cover_paths(),
    |init| init.stage().change_root(),
    |init| init.name_host(),
    |init| init.set_parameters(),
    |init| init.connect_streams(),
];

/// Starts the container's first process.
///
/// The calling process must have one thread; it stands still until the program is executed, or is known not to be. The
/// namespaces belong to `users`, if there are others than the launcher's.
pub(crate) fn launch(
    spec: &Spec,
    program: &Program,
    world: &World<'_>,
    users: Option<BorrowedFd<'_>>,
    stack: &Stack,
) -> Result<Launched, Trouble> {
    let init = Init { spec, program, world };
    // The network namespace is inherited: a process in a user namespace of its own has no right to join it.
    let joined = enter_network(world.network)
        .and_then(|()| world.joins.iter().try_for_each(|join| enter(join.namespace.as_fd(), join.kind)));
    let launched = joined.and_then(|()| match users {
        None if !world.reaper => init.launch(stack),
        _ => reaper::launch(&init, users),
    });
    let back = world.joins.iter().try_for_each(|join| enter(join.home.as_fd(), join.kind));
    if back.and(enter_network(world.network.map(|_| world.home))).is_err() {
        // A launcher that cannot go back would make everything else in there: better none.
        std::process::abort();
    }
    let (child, trouble) = launched?;
    match trouble {
        None => Ok(child),
        Some(trouble) => {
            super::super::reap::collect(&child.pidfd);
            Err(trouble)
        }
    }
}

fn enter_network(namespace: Option<BorrowedFd<'_>>) -> Result<(), Trouble> {
    let Some(namespace) = namespace else { return Ok(()) };
    rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
        .call(|| "setns(…, CLONE_NEWNET)".to_owned())
        .trying(|| "enter the container's network".to_owned())
}

fn enter(namespace: BorrowedFd<'_>, kind: LinkNameSpaceType) -> Result<(), Trouble> {
    rustix::thread::move_into_link_name_space(namespace, Some(kind))
        .call(|| format!("setns(…, {kind:?})"))
        .trying(|| "share a namespace".to_owned())
}

/// Everything the new process reads; it lives in the launcher's memory.
pub(crate) struct Init<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) program: &'a Program,
    pub(crate) world: &'a World<'a>,
}

impl Init<'_> {
    /// The namespaces the spec asks for that are not joined.
    pub(super) fn namespaces(&self) -> i32 {
        let linux = self.spec.linux().as_ref();
        let list = linux.and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
        // One with a path is shared, and was entered.
        let own = list.iter().filter(|namespace| namespace.path().is_none()).map(LinuxNamespace::typ);
        let new = own.filter(|kind| match kind {
            // With a group to join, the namespace is made after joining it: its root is where one is then.
            LinuxNamespaceType::Cgroup => self.world.cgroups.is_empty(),
            LinuxNamespaceType::Network => self.world.network.is_none(),
            // A container's declaration cannot ask for one.
            LinuxNamespaceType::Time => false,
            _ => true,
        });
        new.fold(0, |flags, kind| flags | clone_flag(kind))
    }

    fn has_namespace(&self, kind: LinuxNamespaceType) -> bool {
        let linux = self.spec.linux().as_ref();
        linux.and_then(|linux| linux.namespaces().as_ref()).into_iter().flatten().any(|n| n.typ() == kind)
    }

    /// In a process that shares this one's memory, so that the cost does not grow with it.
    fn launch(&self, stack: &Stack) -> Result<(Launched, Option<Trouble>), Trouble> {
        let mut trouble = None;
        let child = sys::clone_vfork(self.namespaces(), stack, || {
            trouble = Some(self.run());
            127
        })
        .call(|| format!("clone({:#x})", self.namespaces()))
        .trying(|| "make the container's namespaces".to_owned())?;
        Ok((child, trouble))
    }

    fn run(&self) -> Trouble {
        self.run_but_for(&[])
    }

    /// Becomes the program; only `kept` of the descriptors are still open when its file is looked for.
    pub(super) fn run_but_for(&self, kept: &[BorrowedFd<'_>]) -> Trouble {
        if let Err(trouble) = self.set_up() {
            return trouble;
        }
        sys::close_other_than(kept);
        let Err(trouble) = self.program.run();
        Self::at_last(trouble)
    }

    /// Whether process 1 is an init in front of the program.
    pub(super) fn has_reaper(&self) -> bool {
        self.world.reaper
    }

    /// All steps but the last.
    pub(super) fn set_up(&self) -> Result<(), Trouble> {
        let count = STEPS.len() + 1;
        STEPS.iter().enumerate().try_for_each(|(number, step)| {
            step(self).map_err(|trouble| Trouble { step: Some((number + 1, count)), ..trouble })
        })?;
        self.world.complete.map_or(Ok(()), super::ahead::wait_for_files)
    }

    /// Trouble of the last step.
    pub(super) fn at_last(trouble: Trouble) -> Trouble {
        let count = STEPS.len() + 1;
        Trouble { step: Some((count, count)), ..trouble }
    }

    /// Its file systems.
    pub(crate) fn stage(&self) -> Stage<'_> {
        Stage { spec: self.spec, world: self.world }
    }

    /// Before the control groups are mounted: a mount shows what is below the root of the namespace that made it, which
    /// would be the host's. The launcher waits for this process, so that what would slow it is set afterwards.
    fn join_groups(&self) -> Result<(), Trouble> {
        for cgroup in &self.world.cgroups {
            rustix::io::write(cgroup, b"0")
                .call(|| "write(cgroup.procs, \"0\")".to_owned())
                .trying(|| "join the control group".to_owned())?;
        }
        let own = !self.world.cgroups.is_empty() || self.world.furniture.is_some();
        if own && self.has_namespace(LinuxNamespaceType::Cgroup) {
            sys::unshare_cgroup()
                .call(|| "unshare(CLONE_NEWCGROUP)".to_owned())
                .trying(|| "hide the host's control groups".to_owned())?;
        }
        Ok(())
    }

    /// A process in a new user namespace may map its own id, and no other (user_namespaces(7)).
    fn map_ids(&self) -> Result<(), Trouble> {
        let Some(linux) = self.spec.linux() else { return Ok(()) };
        let single = |mappings: &Option<Vec<LinuxIdMapping>>| {
            mappings.iter().flatten().next().map(|m| format!("{} {} 1", m.container_id(), m.host_id()))
        };
        let (Some(uid), Some(gid)) = (single(linux.uid_mappings()), single(linux.gid_mappings())) else {
            return Ok(());
        };
        let write = |file: &str, text: &str| {
            std::fs::write(format!("/proc/self/{file}"), text).map_err(|error| {
                Trouble::new(
                    "map ids into the container",
                    format!("writing `{text}` to /proc/self/{file}: {error}"),
                )
            })
        };
        write("setgroups", "deny")?;
        write("uid_map", &uid)?;
        write("gid_map", &gid)
    }

    pub(crate) fn name_host(&self) -> Result<(), Trouble> {
        if let Some(name) = self.spec.hostname() {
            rustix::system::sethostname(name.as_bytes())
                .call(|| format!("sethostname({name:?})"))
                .trying(|| format!("set the host name `{name}`"))?;
        }
        if let Some(name) = self.spec.domainname() {
            rustix::system::setdomainname(name.as_bytes())
                .call(|| format!("setdomainname({name:?})"))
                .trying(|| format!("set the domain name `{name}`"))?;
        }
        Ok(())
    }

    pub(crate) fn set_parameters(&self) -> Result<(), Trouble> {
        let sysctls = self.spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref());
        for (key, value) in sysctls.into_iter().flatten() {
            self.set_sysctl(key, value)
                .call(|| format!("write(\"/proc/sys/{}\", {value:?})", key.replace('.', "/")))
                .trying(|| format!("set the kernel parameter `{key}`"))?;
        }
        self.program.set_limits()
    }

    /// `/proc/sys` is read-only by now, so the parameter is written through a procfs of this process's own, which
    /// nobody can have mounted anything on (CVE-2025-52881).
    fn set_sysctl(&self, key: &str, value: &str) -> Result<(), rustix::io::Errno> {
        let proc = mounts::private_proc()?;
        let path = format!("sys/{}", key.replace('.', "/"));
        let file = mounts::resolve(proc.as_fd(), Path::new(&path), OFlags::WRONLY | OFlags::CLOEXEC)?;
        rustix::io::write(&file, value.as_bytes()).map(drop)
    }

    fn connect_streams(&self) -> Result<(), Trouble> {
        self.program.connect(&self.world.stdio)?;
        // With an init, the program leads the session, and has the terminal.
        if self.world.reaper { Ok(()) } else { self.program.lead_session() }
    }
}

/// What a process makes the container's only file systems.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) world: &'a World<'a>,
}

impl Stage<'_> {
    fn root(&self) -> Root<'_> {
        Root::new(self.world.root)
    }

    /// Nothing mounted from here on may be seen outside, and nothing mounted outside afterwards in here.
    pub(crate) fn isolate_mounts(&self) -> Result<(), Trouble> {
        rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
            .call(|| "mount(NULL, \"/\", NULL, MS_REC|MS_SLAVE, NULL)".to_owned())
            .trying(|| "make the container's mounts its own".to_owned())?;
        mounts::attach_root(self.world.root)
            .call(|| "move_mount(root, \"\", AT_FDCWD, \"/\", MOVE_MOUNT_F_EMPTY_PATH)".to_owned())
            .trying(|| "attach the container's root".to_owned())?;
        self.world.furniture.map_or(Ok(()), |furniture| furniture.move_into(&self.root()))
    }

    pub(crate) fn mount_all(&self) -> Result<(), Trouble> {
        let root = self.root();
        let mut binds = self.world.binds.iter();
        for mount in self.spec.mounts().iter().flatten() {
            let bind = if mounts::is_bind(mount) { binds.next() } else { None };
            root.mount(mount, bind)?;
        }
        if self.world.furniture.is_some() {
            return Ok(());
        }
        let is_dev = |m: &&Mount| m.destination() == Path::new("/dev");
        // A `/dev` that is a part of the host has what it has.
        if self.spec.mounts().iter().flatten().filter(is_dev).any(mounts::is_bind) {
            return Ok(());
        }
        let linux = self.spec.linux().as_ref();
        for device in linux.and_then(|linux| linux.devices().as_deref()).unwrap_or_default() {
            root.device(device, self.world.devices)?;
        }
        root.default_links()
    }

    pub(crate) fn cover_paths(&self) -> Result<(), Trouble> {
        let Some(linux) = self.spec.linux() else { return Ok(()) };
        let root = self.root();
        for path in linux.readonly_paths().iter().flatten() {
            root.protect(Path::new(path))?;
        }
        let mut empty = None;
        linux.masked_paths().iter().flatten().try_for_each(|path| root.mask(Path::new(path), &mut empty))
    }

    /// `pivot_root(".", ".")` stacks the old root on the new one, from where it is detached: pivot_root(2), NOTES.
    pub(crate) fn change_root(&self) -> Result<(), Trouble> {
        let doing = || "make the container's root its only root".to_owned();
        let read_only = self.spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
        let mut attributes = MountAttrFlags::empty();
        attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, read_only);
        attributes.set(MountAttrFlags::MOUNT_ATTR_NODEV, self.world.dead_nodes);
        // A root whose propagation is asked for keeps it.
        let linux = self.spec.linux().as_ref();
        let kept = linux.is_some_and(|linux| linux.rootfs_propagation().is_some());
        let propagation = if kept { 0 } else { libc::MS_PRIVATE };
        sys::mount_change(self.world.root, attributes.bits().into(), 0, propagation, false)
            .call(|| format!("mount_setattr(root, {attributes:?})"))
            .trying(doing)?;
        rustix::process::fchdir(self.world.root).call(|| "fchdir(root)".to_owned()).trying(doing)?;
        if self.world.furniture.is_some() {
            // It lies over an empty root, as one does over the kernel's first. To take that away would have to wait for all
            // processors (RCU), a millisecond or two if another one is busy in the kernel.
            return rustix::process::chroot(".").call(|| "chroot(\".\")".to_owned()).trying(doing);
        }
        rustix::process::pivot_root(".", ".").call(|| "pivot_root(\".\", \".\")".to_owned()).trying(doing)?;
        rustix::mount::unmount(".", UnmountFlags::DETACH)
            .call(|| "umount2(\".\", MNT_DETACH)".to_owned())
            .trying(doing)?;
        rustix::process::chdir("/").call(|| "chdir(\"/\")".to_owned()).trying(doing)
    }
}
