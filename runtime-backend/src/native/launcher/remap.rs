//! Containers of root whose own root is not the host's: a user namespace for all of them in a session.
//!
//! Their ids from 0 on are ids of the host that belong to nobody. What a container reaches of the host is then closed to
//! it by the usual permissions, whatever capabilities it has. The image's files keep their owners on the disk: the mount
//! of each layer is mapped (`rootfs.rs`).

use crate::native::launch::{Trouble, Trying};
use crate::native::reap::collect;
use crate::native::sys::{self, CallError, Called};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Gid, Uid};
use rustix::thread::LinkNameSpaceType;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Which ids of the host the ids of a container are: 0 and those after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shift {
    uid: u32,
    gid: u32,
}

impl Shift {
    /// How many ids there are in a container.
    pub(crate) const COUNT: u32 = 65_536;

    /// Above all ranges that distributions and systemd give away (systemd.io, "Users, Groups, UIDs and GIDs").
    const NOBODYS: u32 = 0x7000_0000;

    /// Whose range in `/etc/subuid` and `/etc/subgid` is used: the second is Docker's for the same purpose.
    const OWNERS: [&str; 2] = ["shakedown", "dockremap"];

    /// The range of one of these users, else one that is nobody's.
    pub(crate) fn find() -> Self {
        let read = |file| fs::read_to_string(file).unwrap_or_default();
        Self::of(&read("/etc/subuid"), &read("/etc/subgid"))
    }

    fn of(uids: &str, gids: &str) -> Self {
        let range = |text: &str, owner: &str| {
            text.lines().find_map(|line| {
                let (user, range) = line.trim().split_once(':')?;
                let (first, count) = range.split_once(':')?;
                let (first, count) = (first.parse().ok()?, count.parse::<u32>().ok()?);
                (user == owner && count >= Self::COUNT).then_some(first)
            })
        };
        let of_owner = |owner: &&str| Some(Self { uid: range(uids, owner)?, gid: range(gids, owner)? });
        Self::OWNERS.iter().find_map(of_owner).unwrap_or(Self { uid: Self::NOBODYS, gid: Self::NOBODYS })
    }

    /// The host's id of a container's user.
    pub(crate) fn uid(self, inner: u32) -> Uid {
        Uid::from_raw(self.uid.saturating_add(inner))
    }

    /// The host's id of a container's group.
    pub(crate) fn gid(self, inner: u32) -> Gid {
        Gid::from_raw(self.gid.saturating_add(inner))
    }

    /// The container's ids of a file that was made in it.
    pub(crate) fn inner(self, uid: u32, gid: u32) -> (u32, u32) {
        (uid.checked_sub(self.uid).unwrap_or(uid), gid.checked_sub(self.gid).unwrap_or(gid))
    }
}

/// The user namespace.
#[derive(Debug)]
pub(crate) struct Users {
    namespace: OwnedFd,
    shift: Shift,
}

impl Users {
    /// Makes it; `proc` is a procfs of this pid namespace.
    pub(crate) fn make(proc: &OwnedFd, shift: Shift) -> Result<Self, Trouble> {
        let doing = || "make the user namespace of containers".to_owned();
        let pipe = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).call(|| "pipe2(O_CLOEXEC)".to_owned());
        let (wait, release) = pipe.trying(doing)?;
        let holder = sys::fork_namespaces(libc::CLONE_NEWUSER, || {
            // Until the other end is closed; its own copy of that end first.
            sys::close_other_than(&[wait.as_fd()]);
            i32::from(rustix::io::read(&wait, &mut [0_u8; 1]).is_err())
        });
        let holder = holder.call(|| "clone3(CLONE_NEWUSER)".to_owned()).trying(doing)?;
        let at = |file: &str, flags: OFlags| {
            let path = format!("{}/{file}", holder.pid);
            rustix::fs::openat(proc, &*path, flags | OFlags::CLOEXEC, Mode::empty())
                .call(|| format!("openat(proc, {path:?})"))
        };
        let map = |file: &str, first: u32| {
            let text = format!("0 {first} {}", Shift::COUNT);
            let file = at(file, OFlags::WRONLY)?;
            rustix::io::write(&file, text.as_bytes()).map(drop).call(|| format!("write(id map, {text:?})"))
        };
        let made = map("uid_map", shift.uid)
            .and_then(|()| map("gid_map", shift.gid))
            .and_then(|()| at("ns/user", OFlags::RDONLY));
        drop(release);
        collect(&holder.pidfd);
        Ok(Self { namespace: made.trying(doing)?, shift })
    }

    /// Refers to it.
    pub(crate) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// Which ids of the host its ids are.
    pub(crate) fn shift(&self) -> Shift {
        self.shift
    }

    /// A network namespace that belongs to it, so that its root may do there what root may.
    pub(crate) fn network(&self) -> Result<OwnedFd, CallError> {
        let refer =
            |flags| rustix::fs::open("/dev/null", flags, Mode::empty()).call(|| "open(null)".to_owned());
        let mut slot = refer(OFlags::PATH | OFlags::CLOEXEC)?;
        let before = rustix::fs::fstat(&slot).map(|stat| (stat.st_dev, stat.st_ino));
        // A process that shares the table of descriptors puts the namespace in the place of one that is there.
        let maker = sys::fork_namespaces(libc::CLONE_FILES, || {
            let entered =
                rustix::thread::move_into_link_name_space(self.namespace(), Some(LinkNameSpaceType::User));
            let made = entered.and_then(|()| sys::unshare_network()).and_then(|()| {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                let made = rustix::fs::open("/proc/thread-self/ns/net", flags, Mode::empty())?;
                rustix::io::dup3(&made, &mut slot, rustix::io::DupFlags::CLOEXEC)
            });
            i32::from(made.is_err())
        });
        let maker = maker.call(|| "clone3(CLONE_FILES)".to_owned())?;
        collect(&maker.pidfd);
        if rustix::fs::fstat(&slot).map(|stat| (stat.st_dev, stat.st_ino)) == before {
            let call = "unshare(CLONE_NEWNET)".to_owned();
            return Err(CallError { call, errno: rustix::io::Errno::PERM });
        }
        Ok(slot)
    }

    /// Does `work` as its root, in a process of its own.
    pub(crate) fn act(&self, work: impl FnOnce() -> Result<(), Trouble>) -> Result<(), Trouble> {
        let doing = || "do something as the container's root".to_owned();
        let pipe = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).call(|| "pipe2(O_CLOEXEC)".to_owned());
        let (report, write) = pipe.trying(doing)?;
        let actor = sys::fork_namespaces(0, || {
            let outcome = become_root(self.namespace()).trying(doing).and_then(|()| work());
            let text = serde_json::to_vec(&outcome).unwrap_or_default();
            let told = write.try_clone().map(|write| File::from(write).write_all(&text));
            i32::from(told.is_err())
        });
        let actor = actor.call(|| "clone3(0)".to_owned()).trying(doing)?;
        drop(write);
        let mut text = Vec::new();
        let _ = File::from(report).read_to_end(&mut text);
        collect(&actor.pidfd);
        let lost = || Trouble::new(doing(), "how far it got is not known");
        serde_json::from_slice(&text).unwrap_or_else(|_| Err(lost()))
    }
}

/// Makes this process, which has one thread and was forked for it, the root of the user namespace. There is no way back.
pub(crate) fn become_root(namespace: BorrowedFd<'_>) -> Result<(), CallError> {
    rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::User))
        .call(|| "setns(…, CLONE_NEWUSER)".to_owned())?;
    rustix::thread::set_thread_groups(&[]).call(|| "setgroups([])".to_owned())?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
        .call(|| "setresgid(0, 0, 0)".to_owned())?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
        .call(|| "setresuid(0, 0, 0)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A range that the administrator has set aside is used, and only if all ids of an image fit into it.
    #[test]
    fn the_range_is_that_of_the_user_for_it() {
        let uids = "ada:100000:65536\ndockremap:300000:65536\nshakedown:500000:1000\n";
        let gids = "dockremap:400000:70000\nshakedown:500000:65536\n";
        let found = Shift::of(uids, gids);
        assert_eq!((found.uid(0).as_raw(), found.gid(7).as_raw()), (300_000, 400_007));
        assert_eq!(found.inner(300_005, 400_000), (5, 0));
        let nobodys = Shift::of("ada:100000:65536\n", "");
        assert_eq!(nobodys.uid(0).as_raw(), 0x7000_0000);
    }
}
