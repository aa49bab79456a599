//! The program a container runs and the privileges it runs with: the part that the first and further processes share.

use super::terminal::{self, Terminal};
use super::{Trouble, Trying, mounts};
use crate::native::sys::{self, CallError, Called};
use libc::sock_filter;
use oci_spec::runtime::{Capabilities, PosixRlimitType, Process};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// Gets the listener of a seccomp filter.
pub(crate) type Told<'a> = dyn Fn(BorrowedFd<'_>) -> Result<(), Trouble> + 'a;

/// A process of the spec in the form the kernel takes.
#[derive(Debug)]
pub(crate) struct Program {
    argv: Vec<CString>,
    env: Vec<CString>,
    /// Where the executable may be, in the order of `PATH`.
    candidates: Vec<CString>,
    cwd: PathBuf,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    umask: Option<u32>,
    /// The bounding set; none if it is as it is to be.
    bounding: Option<CapabilitySet>,
    sets: CapabilitySets,
    ambient: CapabilitySet,
    rlimits: Vec<(u32, u64, u64)>,
    no_new_privileges: bool,
    oom_score_adj: Option<i32>,
    filter: Option<Vec<sock_filter>>,
    /// The AppArmor profile.
    profile: Option<String>,
    filter_flags: u64,
    /// Whether supplementary groups can be set: not where `setgroups` is denied for want of mapped groups.
    set_groups: bool,
    /// The size of the terminal, if it gets one.
    terminal: Option<(u16, u16)>,
}

impl Program {
    /// Reads the process of a spec.
    pub(crate) fn new(
        process: &Process,
        filter: Option<Vec<sock_filter>>,
        set_groups: bool,
    ) -> Result<Self, Trouble> {
        let argv = strings("argument", process.args().as_deref().unwrap_or_default())?;
        let first = argv.first().filter(|first| !first.is_empty()).ok_or_else(|| {
            let reason = "neither the image nor the declaration has an entry point or a command";
            Trouble::new("run a program", reason)
        })?;
        let env = strings("environment variable", process.env().as_deref().unwrap_or_default())?;
        let candidates = candidates(first, &env)?;
        let user = process.user();
        let sets = process.capabilities().as_ref();
        let held = |set: Option<&Option<Capabilities>>| {
            set.and_then(Option::as_ref).map_or(CapabilitySet::empty(), bits)
        };
        let capabilities = CapabilitySets {
            effective: held(sets.map(|sets| sets.effective())),
            permitted: held(sets.map(|sets| sets.permitted())),
            inheritable: held(sets.map(|sets| sets.inheritable())),
        };
        Ok(Self {
            candidates,
            argv,
            env,
            cwd: process.cwd().clone(),
            uid: Uid::from_raw(user.uid()),
            gid: Gid::from_raw(user.gid()),
            groups: user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect(),
            umask: user.umask(),
            bounding: Some(held(sets.map(|sets| sets.bounding()))),
            sets: capabilities,
            ambient: held(sets.map(|sets| sets.ambient())),
            rlimits: process
                .rlimits()
                .iter()
                .flatten()
                .map(|l| (resource(l.typ()), l.soft(), l.hard()))
                .collect(),
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            oom_score_adj: process.oom_score_adj(),
            filter,
            profile: process.apparmor_profile().clone().filter(|profile| !profile.is_empty()),
            filter_flags: 0,
            set_groups,
            terminal: process.terminal().unwrap_or(false).then(|| terminal_size(process)),
        })
    }

    /// Connects the standard streams. A program with a terminal gets one here, in the root that is this process's by now;
    /// the first of the descriptors is then the socket that takes the terminal's other end.
    pub(super) fn connect(&self, stdio: &[BorrowedFd<'_>; 3]) -> Result<(), Trouble> {
        let Some(size) = self.terminal else { return Self::take_streams(stdio) };
        Terminal::make(self.uid, size)?.connect(stdio[0])?;
        sys::close_all_from(3)
            .call(|| "close_range(3, ~0, CLOSE_RANGE_CLOEXEC)".to_owned())
            .trying(|| "connect the container's terminal".to_owned())
    }

    /// Gives this process a session of its own, with the program's terminal if it has one.
    pub(super) fn lead_session(&self) -> Result<(), Trouble> {
        // A signal to the launcher's group is none of the container's.
        let _ = rustix::process::setsid();
        if self.terminal.is_some() { terminal::control() } else { Ok(()) }
    }

    /// The same without supplementary groups set: those of this process are kept.
    pub(crate) fn keeping_groups(self) -> Self {
        Self { set_groups: false, ..self }
    }

    /// The same in a process that has been [bound](bind_capabilities) before.
    pub(super) fn bound(self) -> Self {
        Self { bounding: None, ..self }
    }

    /// The same with `SECCOMP_FILTER_FLAG_*` for its filter.
    pub(crate) fn with_filter_flags(self, filter_flags: u64) -> Self {
        Self { filter_flags, ..self }
    }

    /// Puts the standard streams in place and marks all others to be closed.
    pub(super) fn take_streams(stdio: &[BorrowedFd<'_>; 3]) -> Result<(), Trouble> {
        let doing = || "connect the container's input and output".to_owned();
        rustix::stdio::dup2_stdin(stdio[0]).call(|| "dup2(stdin, 0)".to_owned()).trying(doing)?;
        rustix::stdio::dup2_stdout(stdio[1]).call(|| "dup2(stdout, 1)".to_owned()).trying(doing)?;
        rustix::stdio::dup2_stderr(stdio[2]).call(|| "dup2(stderr, 2)".to_owned()).trying(doing)?;
        Self::own_null().trying(doing)?;
        // Descriptors leaked into a container have been the way out of it (CVE-2024-21626). Those that setting up needs
        // no more are closed before the program's directory is entered and its file is looked for, which could be named
        // `/proc/self/fd/N/…`.
        sys::close_all_from(3).call(|| "close_range(3, ~0, CLOSE_RANGE_CLOEXEC)".to_owned()).trying(doing)
    }

    /// An input of nothing is the container's own `/dev/null`: a container that changed the mode of the host's would
    /// change it for everybody.
    fn own_null() -> Result<(), CallError> {
        use rustix::fs::{FileType, Mode, fstat, makedev};
        let is_null = |stat: &rustix::fs::Stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
                && stat.st_rdev == makedev(1, 3)
        };
        if !fstat(rustix::stdio::stdin()).is_ok_and(|stat| is_null(&stat)) {
            return Ok(());
        }
        // Without waiting: in its place could be a pipe that nobody writes to.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let own = rustix::fs::open("/dev/null", flags, Mode::empty());
        match own {
            Ok(own) if fstat(&own).is_ok_and(|stat| is_null(&stat)) => {
                rustix::fs::fcntl_setfl(&own, OFlags::empty()).call(|| "fcntl(F_SETFL, 0)".to_owned())?;
                rustix::stdio::dup2_stdin(&own).call(|| "dup2(/dev/null, 0)".to_owned())
            }
            // Without one, an empty pipe is the same to a reader.
            _ => {
                let (read, _) = rustix::pipe::pipe().call(|| "pipe2(0)".to_owned())?;
                rustix::stdio::dup2_stdin(&read).call(|| "dup2(pipe, 0)".to_owned())
            }
        }
    }

    /// Sets resource limits; one that may not be raised stays where it is (see `security.md`, caps missing on hosts).
    pub(crate) fn set_limits(&self) -> Result<(), Trouble> {
        for (resource, soft, hard) in &self.rlimits {
            match sys::set_rlimit(*resource, *soft, *hard) {
                Ok(()) => {}
                Err(error) => {
                    let text = || format!("prlimit64(0, {resource}, {{soft={soft}, hard={hard}}})");
                    let failed = Err(error).call(text).trying(|| "set a resource limit".to_owned());
                    return failed.map_err(|trouble| Trouble {
                        reason: sys::rlimit_refused(*resource, *hard),
                        ..trouble
                    });
                }
            }
        }
        Ok(())
    }

    /// As [`run_told`](Self::run_told), with nobody who is told of the filter.
    pub(crate) fn run(&self) -> Result<std::convert::Infallible, Trouble> {
        self.run_told(&|_listener| Ok(()))
    }

    /// Gives up every privilege the program is not to have, changes to its directory, and executes it.
    ///
    /// The order matters: the bounding set needs `CAP_SETPCAP`, groups and ids need `CAP_SETGID` and `CAP_SETUID`, the
    /// filter needs `CAP_SYS_ADMIN` unless new privileges are ruled out; each is lost in a later line.
    ///
    /// `told` gets the listener of the filter, if its flags ask for one.
    pub(crate) fn run_told(&self, told: &Told<'_>) -> Result<std::convert::Infallible, Trouble> {
        self.give_up_privileges(told)?;
        Err(self.execute())
    }

    /// All but the execution of the program.
    pub(super) fn give_up_privileges(&self, told: &Told<'_>) -> Result<(), Trouble> {
        let privileges = || "give up privileges".to_owned();
        self.bounding.map_or(Ok(()), drop_others).trying(privileges)?;
        self.adjust_oom_score()?;
        if let Some(profile) = &self.profile {
            super::profile::enter_at_exec(profile)?;
        }
        if !self.no_new_privileges {
            self.install_filter(told)?;
        }
        rustix::thread::set_keep_capabilities(true)
            .call(|| "prctl(PR_SET_KEEPCAPS, 1)".to_owned())
            .trying(privileges)?;
        // Before the user is changed, because root may enter what the user may not; after it, because of file systems on
        // which it is the other way round.
        let entered = self.enter_directory();
        self.give_streams();
        self.change_user()?;
        if entered.is_err() {
            self.enter_directory()?;
        }
        self.set_capabilities().trying(privileges)?;
        if self.no_new_privileges {
            rustix::thread::set_no_new_privs(true)
                .call(|| "prctl(PR_SET_NO_NEW_PRIVS, 1)".to_owned())
                .trying(privileges)?;
            self.install_filter(told)?;
        }
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(self.umask.unwrap_or(0o022)));
        Ok(())
    }

    fn adjust_oom_score(&self) -> Result<(), Trouble> {
        let Some(score) = self.oom_score_adj else { return Ok(()) };
        let doing = || format!("set the out-of-memory score to {score}");
        let path = format!("{}/oom_score_adj", rustix::process::getpid().as_raw_nonzero());
        let proc = mounts::private_proc().call(|| "fsmount(proc)".to_owned()).trying(doing)?;
        mounts::resolve(proc.as_fd(), Path::new(&path), OFlags::WRONLY | OFlags::CLOEXEC)
            .and_then(|file| rustix::io::write(&file, score.to_string().as_bytes()))
            .map(drop)
            .call(|| format!("write(\"/proc/self/oom_score_adj\", {score})"))
            .trying(doing)
    }

    fn install_filter(&self, told: &Told<'_>) -> Result<(), Trouble> {
        let Some(filter) = &self.filter else { return Ok(()) };
        let wanted = self.filter_flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0;
        sys::install_filter(filter, self.filter_flags)
            .trying(|| "install the seccomp filter".to_owned())
            .and_then(|listener| match wanted.then(|| sys::own_descriptor(listener)).flatten() {
                Some(listener) => told(listener.as_fd()),
                None => Ok(()),
            })
    }

    /// The user may open `/dev/stdout` and `/dev/stderr` again, as programs do that log to a file of that name.
    fn give_streams(&self) {
        use rustix::fs::FileType;
        for stream in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
            let pipe = rustix::fs::fstat(stream)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
            if pipe {
                // Without a mapping for the user the pipe stays the launcher's: then there is one user only.
                let _ = rustix::fs::fchown(stream, Some(self.uid), None);
            }
        }
    }

    fn change_user(&self) -> Result<(), Trouble> {
        let (uid, gid) = (self.uid, self.gid);
        let doing = || format!("become user {}, group {}", uid.as_raw(), gid.as_raw());
        let unmapped = |trouble: Trouble| {
            Trouble {
            reason: trouble.call.as_ref().filter(|call| call.ends_with("EINVAL")).map(|_| {
                "this id is not mapped into the container: an ordinary user without a range in /etc/subuid and \
                 /etc/subgid has one id only"
                    .to_owned()
            }),
            ..trouble
        }
        };
        if self.set_groups {
            let text =
                || format!("setgroups({:?})", self.groups.iter().map(|gid| gid.as_raw()).collect::<Vec<_>>());
            rustix::thread::set_thread_groups(&self.groups).call(text).trying(doing).map_err(unmapped)?;
        }
        let text = || format!("setresgid({gid:?}, {gid:?}, {gid:?})");
        rustix::thread::set_thread_res_gid(gid, gid, gid).call(text).trying(doing).map_err(unmapped)?;
        let text = || format!("setresuid({uid:?}, {uid:?}, {uid:?})");
        rustix::thread::set_thread_res_uid(uid, uid, uid).call(text).trying(doing).map_err(unmapped)
    }

    fn enter_directory(&self) -> Result<(), Trouble> {
        let doing = || format!("enter the working directory `{}`", self.cwd.display());
        rustix::process::chdir(&self.cwd).call(|| format!("chdir({:?})", self.cwd)).trying(doing)?;
        // A working directory outside the root shows as "(unreachable)…": CVE-2024-21626.
        let reached = rustix::process::getcwd(Vec::new()).call(|| "getcwd()".to_owned()).trying(doing)?;
        if reached.as_bytes().starts_with(b"/") {
            Ok(())
        } else {
            Err(Trouble::new(doing(), "it leads out of the container"))
        }
    }

    /// Capabilities this process itself does not have (a root without CAP_SYS_RESOURCE) cannot be given.
    fn set_capabilities(&self) -> Result<(), CallError> {
        let own = rustix::thread::capabilities(None).call(|| "capget()".to_owned())?.permitted;
        let sets = CapabilitySets {
            effective: self.sets.effective & own,
            permitted: self.sets.permitted & own,
            inheritable: self.sets.inheritable & own,
        };
        rustix::thread::set_capabilities(None, sets).call(|| format!("capset({sets:?})"))?;
        for capability in (self.ambient & own).iter() {
            rustix::thread::configure_capability_in_ambient_set(capability, true)
                .call(|| format!("prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, {capability:?})"))?;
        }
        Ok(())
    }

    /// Tries each place of `PATH`, as `execvp` does: "permission denied" in one is remembered while others are tried.
    pub(super) fn execute(&self) -> Trouble {
        let mut worst = Errno::NOENT;
        for path in &self.candidates {
            match sys::exec(path, &self.argv, &self.env) {
                Errno::NOENT | Errno::NOTDIR => {}
                Errno::ACCESS => worst = Errno::ACCESS,
                errno => {
                    worst = errno;
                    break;
                }
            }
        }
        let name = self.argv[0].to_string_lossy();
        let reason = match worst {
            Errno::NOENT if self.candidates.len() > 1 => {
                Some(format!("`{name}` is in no directory of its PATH"))
            }
            Errno::NOENT => Some(
                "there is no such file in the container, or its interpreter (the `#!` line) is missing"
                    .to_owned(),
            ),
            Errno::ACCESS => Some("the file is not executable for this user".to_owned()),
            Errno::NOEXEC => {
                Some("the file is no program of this machine's architecture, and has no `#!` line".to_owned())
            }
            _ => None,
        };
        let call = Some(format!("execve({:?}) = {}", name, sys::errno_name(worst)));
        Trouble { doing: format!("run `{name}`"), call, reason, step: None }
    }
}

/// Takes everything out of the bounding set that the process of a container is not to get: the first of what
/// [`Program::run`] does, which can be done ahead. The process itself keeps what it has.
pub(super) fn bind_capabilities(bounding: &Option<Capabilities>) -> Result<(), Trouble> {
    drop_others(bounding.as_ref().map_or(CapabilitySet::empty(), bits))
        .trying(|| "give up privileges".to_owned())
}

fn drop_others(bounding: CapabilitySet) -> Result<(), CallError> {
    for capability in all_capabilities().iter().filter(|capability| !bounding.contains(*capability)) {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // The kernel does not know the capability.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(errno).call(|| format!("prctl(PR_CAPBSET_DROP, {capability:?})")),
        }
    }
    Ok(())
}

/// Rows and columns of a process's terminal; 0 where they are not given.
pub(crate) fn terminal_size(process: &Process) -> (u16, u16) {
    let word = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
    process.console_size().map_or((0, 0), |size| (word(size.height()), word(size.width())))
}

fn strings(what: &str, list: &[String]) -> Result<Vec<CString>, Trouble> {
    let convert = |text: &String| {
        CString::new(text.as_str())
            .map_err(|_| Trouble::new("run the program", format!("the {what} {text:?} contains a zero byte")))
    };
    list.iter().map(convert).collect()
}

fn candidates(name: &CString, env: &[CString]) -> Result<Vec<CString>, Trouble> {
    let name = name.to_string_lossy();
    if name.contains('/') {
        return strings("path", &[name.into_owned()]);
    }
    let path = env.iter().rev().find_map(|pair| pair.to_bytes().strip_prefix(b"PATH="));
    let path = path.map_or(
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
        String::from_utf8_lossy,
    );
    let list: Vec<String> = path
        .split(':')
        .map(|directory| format!("{}/{name}", if directory.is_empty() { "." } else { directory }))
        .collect();
    strings("path", &list)
}

fn bits(set: &Capabilities) -> CapabilitySet {
    set.iter().filter_map(|capability| CapabilitySet::from_name(&capability.to_string())).collect()
}

fn all_capabilities() -> CapabilitySet {
    // CAP_LAST_CAP has been 40 since Linux 5.9; the bounding set answers EINVAL beyond the kernel's own last one.
    CapabilitySet::from_bits_retain((1 << 41) - 1)
}

fn resource(name: PosixRlimitType) -> u32 {
    match name {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}
