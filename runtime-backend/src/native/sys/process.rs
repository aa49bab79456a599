//! What a process does to itself on the way to the container's program.

use super::{CallError, Called, check, last_errno};
use rustix::io::Errno;
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Replaces the program of this process; returns only the reason why it could not.
pub(crate) fn exec(path: &CString, argv: &[CString], env: &[CString]) -> Errno {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both vectors end with a null pointer, and the strings they point to outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    last_errno()
}

/// Takes over a descriptor that was passed to this process by number.
///
/// To be called once for a number, at the start of the process. Returns none if nothing is open there.
pub(crate) fn own_descriptor(number: i32) -> Option<OwnedFd> {
    // SAFETY: fcntl(F_SETFD) on a number that is not open fails with EBADF and does nothing else.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }.into()).ok()?;
    // SAFETY: it is open, and the caller vouches that nobody else in this new process owns it.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Whether something is open under a number.
pub(crate) fn is_open(number: u32) -> bool {
    // SAFETY: fcntl(F_GETFD) changes nothing, and fails with EBADF on a number that is not open.
    i32::try_from(number).is_ok_and(|number| unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0)
}

/// Sets the execution domain of this process.
pub(crate) fn personality(domain: i32) -> Result<(), Errno> {
    // SAFETY: sets a number of this process; what programs executed later see of the machine depends on it.
    check(unsafe { libc::personality(domain as libc::c_ulong) }.into()).map(drop)
}

/// Marks every descriptor from `first` on to be closed when a program is executed.
pub(crate) fn close_all_from(first: u32) -> Result<(), Errno> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: sets a flag on descriptors; none is closed before an exec, so no owner is left with a stale one.
    let result = unsafe {
        libc::syscall(libc::SYS_close_range, first as libc::c_uint, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC)
    };
    check(result).map(drop)
}

/// Closes every descriptor but the standard streams and `kept`: for a process that was forked and owns nothing else.
pub(crate) fn close_other_than(kept: &[BorrowedFd<'_>]) {
    close_from_other_than(3, kept);
}

/// Closes every descriptor from `first` on but `kept`: for a process that was forked and owns nothing else.
pub(crate) fn close_from_other_than(first: u32, kept: &[BorrowedFd<'_>]) {
    let mut kept: Vec<libc::c_uint> = kept.iter().map(|fd| fd.as_raw_fd() as libc::c_uint).collect();
    kept.sort_unstable();
    let close = |first: libc::c_uint, last: libc::c_uint| {
        if first <= last {
            // SAFETY: the caller is a fork that ends by `_exit`: no value of the parent's that owns one of these
            // descriptors is ever used or dropped in it.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    };
    kept.retain(|number| *number >= first);
    let mut first = first;
    for kept in kept {
        close(first, kept.saturating_sub(1));
        first = kept + 1;
    }
    close(first, libc::c_uint::MAX);
}

/// Installs a seccomp filter on this thread; `flags` are `SECCOMP_FILTER_FLAG_*`. The result is the listener, if one of
/// them asks for it.
pub(crate) fn install_filter(filter: &[libc::sock_filter], flags: u64) -> Result<i32, CallError> {
    let text = || format!("seccomp(SECCOMP_SET_MODE_FILTER, {flags:#x}, {{len={}}})", filter.len());
    let len = u16::try_from(filter.len()).map_err(|_| CallError { call: text(), errno: Errno::TOOBIG })?;
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    // SAFETY: `program` points to `len` instructions, which the kernel copies and does not write.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    check(result).map(|listener| listener as i32).call(text)
}

/// Sets attributes of a mount (`MOUNT_ATTR_*`) and cuts it off from others, and those below it if `recursive`.
pub(crate) fn mount_set_attributes(mount: BorrowedFd<'_>, set: u64, recursive: bool) -> Result<(), Errno> {
    mount_change(mount, set, 0, libc::MS_PRIVATE, recursive)
}

/// Sets and clears attributes of a mount, and connects it with others or not (`MS_PRIVATE` and the like; 0 for as it is).
pub(crate) fn mount_change(
    mount: BorrowedFd<'_>,
    set: u64,
    clear: u64,
    propagation: u64,
    recursive: bool,
) -> Result<(), Errno> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: clear, propagation, userns_fd: 0 };
    mount_setattr(mount, &attributes, recursive)
}

/// Shows a detached mount with other owners: as the user namespace maps them.
pub(crate) fn mount_map_ids(
    mount: BorrowedFd<'_>,
    users: BorrowedFd<'_>,
    recursive: bool,
) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(users.as_raw_fd()).map_err(|_| Errno::BADF)?,
    };
    mount_setattr(mount, &attributes, recursive)
}

fn mount_setattr(mount: BorrowedFd<'_>, attributes: &libc::mount_attr, recursive: bool) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, `attributes` is as large as is said, and the descriptor is open.
    let result = unsafe {
        let size = std::mem::size_of::<libc::mount_attr>();
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size,
        )
    };
    check(result).map(drop)
}

/// Sets a resource limit of this process, by the kernel's number of the resource.
pub(crate) fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is valid for reading, and no old value is asked for.
    let result = unsafe { libc::prlimit64(0, resource, &raw const limit, std::ptr::null_mut()) };
    check(result.into()).map(drop)
}

/// Why a resource limit was refused, if it is because it is higher than this process may set.
pub(crate) fn rlimit_refused(resource: u32, hard: u64) -> Option<String> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: no new value is given, and `limit` is valid for writing.
    let result = unsafe { libc::prlimit64(0, resource, std::ptr::null(), &raw mut limit) };
    let higher = result == 0 && hard > limit.rlim_max;
    higher
        .then(|| format!("the hard limit here is {}, and raising it needs CAP_SYS_RESOURCE", limit.rlim_max))
}

/// Puts this process into a new network namespace.
pub(crate) fn unshare_network() -> Result<(), Errno> {
    // SAFETY: CLONE_NEWNET changes neither memory nor descriptors; it is unsafe in rustix only for CLONE_FILES.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
}

/// Puts this process into a new mount namespace, a copy of the one it is in.
pub(crate) fn unshare_mounts() -> Result<(), Errno> {
    // SAFETY: CLONE_NEWNS changes neither memory nor descriptors; it is unsafe in rustix only for CLONE_FILES.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
}

/// Puts this process into a new cgroup namespace, whose root is the group it is in now.
pub(crate) fn unshare_cgroup() -> Result<(), Errno> {
    // SAFETY: CLONE_NEWCGROUP changes neither memory nor descriptors; it is unsafe in rustix only for CLONE_FILES.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWCGROUP) }
}

/// Gives every signal its default action and unblocks all, so that programs started from here find them so.
pub(crate) fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL is a valid action for every signal; those that cannot be changed answer EINVAL.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an initialised empty set is valid to read, and no old mask is asked for.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Sends a signal, of any number that the kernel knows.
pub(crate) fn send_signal(process: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    // SAFETY: no information about the sender is passed; a number that is no signal is refused with EINVAL.
    let result = unsafe {
        let nothing = std::ptr::null_mut::<libc::siginfo_t>();
        libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, nothing, 0)
    };
    check(result).map(drop)
}

/// Watches a descriptor for readiness; must be called within a tokio runtime.
pub(crate) fn watch(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the registration ends with the `AsyncFd`, which owns the descriptor and so outlives none of it.
    let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE | Interest::WRITABLE) };
    watched.map_err(|error| error.into_parts().1)
}
