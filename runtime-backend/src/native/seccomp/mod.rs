//! The seccomp filter: Docker's default profile in effect, compiled as a search tree.
//!
//! Docker's filter tests the call's number against one name after another, which costs a millisecond to install
//! (the kernel runs the filter for every number to build its table of calls that are always allowed). A binary search
//! over ranges of numbers says the same in a tenth of that. Facts: the `default.json` of moby/profiles.

mod bpf;
mod profile;
mod rules;

pub(crate) use profile::custom;

use self::bpf::{AND_K, JA, JEQ, JGE, JSET, RET, jump, load, statement, tree};
use super::launch::Trouble;
use libc::sock_filter;
use oci_spec::runtime::LinuxSeccomp;
use serde::{Deserialize, Serialize};

/// Which filter a process gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Filter {
    /// None.
    None,
    /// Docker's default for a container with these capabilities (`CAP_…`).
    Default(Vec<String>),
    /// One of the user's.
    Rules(Box<LinuxSeccomp>),
}

/// A filter as the kernel takes it; `None` if it allows everything.
pub(crate) fn of(filter: &Filter) -> Result<Option<Vec<sock_filter>>, Trouble> {
    match filter {
        Filter::None => Ok(None),
        Filter::Default(capabilities) => Ok(Some(Policy::docker_default(capabilities).compile())),
        Filter::Rules(rules) => compile(rules),
    }
}

/// The filter of rules as the kernel takes it; `None` if it would allow everything. Nobody is there to be asked.
pub(crate) fn compile(rules: &LinuxSeccomp) -> Result<Option<Vec<sock_filter>>, Trouble> {
    if rules.listener_path().is_some() || rules::uses_listener(rules) {
        return Err(rules::refused("a listener (SCMP_ACT_NOTIFY) is not supported"));
    }
    rules::compile(rules)
}

/// The same with an agent at `listenerPath` that may be asked.
pub(crate) fn compile_with_listener(rules: &LinuxSeccomp) -> Result<Option<Vec<sock_filter>>, Trouble> {
    rules::compile(rules)
}

/// What happens to a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is carried out.
    Allow,
    /// It fails with this error number.
    Errno(u16),
    /// `socket`: no AF_ALG, AF_VSOCK and other families that reach past the container's namespaces.
    SocketFamilies,
    /// `personality`: only the execution domains that Docker allows.
    Personalities,
    /// `clone`: no new namespaces.
    NoNewNamespaces,
}

const EPERM: Verdict = Verdict::Errno(libc::EPERM as u16);
/// What a kernel answers that does not know the call: C libraries then fall back, where EPERM would be an error.
const ENOSYS: Verdict = Verdict::Errno(libc::ENOSYS as u16);

#[cfg(target_arch = "x86_64")]
mod arch {
    /// `AUDIT_ARCH_X86_64` of linux/audit.h.
    pub(super) const AUDIT: u32 = 0xC000_003E;
    /// Numbers in use: the classic ones, `uretprobe`, and those all architectures share.
    pub(super) const KNOWN: &[(u32, u32)] = &[(0, 335), (424, 466)];
    /// Calls only this architecture has, and which no container gets.
    pub(super) const DENIED: &[libc::c_long] = &[
        libc::SYS_uselib,
        libc::SYS_ustat,
        libc::SYS_sysfs,
        libc::SYS__sysctl,
        // create_module, get_kernel_syms and query_module, which Linux 2.6 took away.
        174,
        177,
        178,
        libc::SYS_getpmsg,
        libc::SYS_putpmsg,
        libc::SYS_afs_syscall,
        libc::SYS_tuxcall,
        libc::SYS_security,
        libc::SYS_vserver,
    ];
    /// Calls only this architecture has, and the capability that unlocks them.
    pub(super) const UNLOCKED: &[(&str, &[libc::c_long])] =
        &[("CAP_SYS_RAWIO", &[libc::SYS_iopl, libc::SYS_ioperm])];

    /// `AUDIT_ARCH_I386`: programs of 32 bits.
    const AUDIT_I386: u32 = 0x4000_0003;
    /// The second architecture whose programs run here, and what becomes of its calls.
    pub(super) const OTHER: Option<(u32, super::Table)> = Some((AUDIT_I386, i386));
    /// Numbers of x32, the third, have this bit; most are those of `x86_64` otherwise.
    pub(super) const X32: Option<u32> = Some(0x4000_0000);
    /// The numbers that x32 has of its own, with `kexec_load` and `move_pages` among them.
    pub(super) const X32_OWN: (u32, u32) = (512, 547);
    pub(super) const X32_DENIED: &[u32] = &[528, 533];

    /// What becomes of a call of a 32-bit program: the same as of the call of that name here, if there is one.
    fn i386(number: u32, capabilities: &[String]) -> super::Verdict {
        use super::{EPERM, Verdict, has, verdict};
        // From 424 on all architectures have the same numbers.
        if number >= 424 {
            return verdict(number, capabilities);
        }
        let Some(call) = syscalls::x86::Sysno::new(number as usize) else { return EPERM };
        if let Ok(here) = call.name().parse::<syscalls::Sysno>() {
            return verdict(here.id() as u32, capabilities);
        }
        let unlocked = |capability: &str| if has(capabilities, capability) { Verdict::Allow } else { EPERM };
        match call.name() {
            "umount" => unlocked("CAP_SYS_ADMIN"),
            "stime" | "clock_settime64" => unlocked("CAP_SYS_TIME"),
            "break" | "oldstat" | "oldfstat" | "oldlstat" | "stty" | "gtty" | "nice" | "ftime" | "prof"
            | "lock" | "mpx" | "ulimit" | "signal" | "sigaction" | "sgetmask" | "ssetmask" | "sigsuspend"
            | "sigpending" | "readdir" | "profil" | "oldolduname" | "olduname" | "idle" | "vm86old"
            | "vm86" | "bdflush" => EPERM,
            _ => Verdict::Allow,
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod arch {
    /// `AUDIT_ARCH_AARCH64` of linux/audit.h.
    pub(super) const AUDIT: u32 = 0xC000_00B7;
    /// Numbers in use.
    pub(super) const KNOWN: &[(u32, u32)] = &[(0, 294), (424, 466)];
    /// Calls only this architecture has, and which no container gets.
    pub(super) const DENIED: &[libc::c_long] = &[];
    /// Calls only this architecture has, and the capability that unlocks them.
    pub(super) const UNLOCKED: &[(&str, &[libc::c_long])] = &[];
    /// Programs of 32 bits are answered as by a kernel without support for them.
    pub(super) const OTHER: Option<(u32, super::Table)> = None;
    pub(super) const X32: Option<u32> = None;
    pub(super) const X32_OWN: (u32, u32) = (1, 0);
    pub(super) const X32_DENIED: &[u32] = &[];
}

/// Calls that no container gets.
const DENIED: &[libc::c_long] = &[
    libc::SYS_pivot_root,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_nfsservctl,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// Calls that a capability unlocks.
const UNLOCKED: &[(&str, &[libc::c_long])] = &[
    (
        "CAP_SYS_ADMIN",
        &[
            libc::SYS_bpf,
            libc::SYS_clone3,
            libc::SYS_fanotify_init,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fsopen,
            libc::SYS_fspick,
            libc::SYS_lookup_dcookie,
            // lsm_get_self_attr, lsm_set_self_attr and lsm_list_modules, the same numbers on all architectures.
            459,
            460,
            461,
            libc::SYS_mount,
            libc::SYS_mount_setattr,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            libc::SYS_perf_event_open,
            libc::SYS_quotactl,
            libc::SYS_quotactl_fd,
            libc::SYS_setdomainname,
            libc::SYS_sethostname,
            libc::SYS_setns,
            libc::SYS_syslog,
            libc::SYS_umount2,
            libc::SYS_unshare,
        ],
    ),
    ("CAP_DAC_READ_SEARCH", &[libc::SYS_open_by_handle_at]),
    ("CAP_SYS_BOOT", &[libc::SYS_reboot]),
    ("CAP_SYS_CHROOT", &[libc::SYS_chroot]),
    ("CAP_SYS_MODULE", &[libc::SYS_init_module, libc::SYS_finit_module, libc::SYS_delete_module]),
    ("CAP_SYS_PACCT", &[libc::SYS_acct]),
    ("CAP_SYS_PTRACE", &[libc::SYS_kcmp, libc::SYS_pidfd_getfd, libc::SYS_process_madvise]),
    ("CAP_SYS_TIME", &[libc::SYS_settimeofday, libc::SYS_clock_settime]),
    ("CAP_SYS_TTY_CONFIG", &[libc::SYS_vhangup]),
    (
        "CAP_SYS_NICE",
        // The last is set_mempolicy_home_node, the same number on all architectures.
        &[libc::SYS_get_mempolicy, libc::SYS_mbind, libc::SYS_set_mempolicy, 450],
    ),
    ("CAP_SYSLOG", &[libc::SYS_syslog]),
    ("CAP_BPF", &[libc::SYS_bpf]),
    ("CAP_PERFMON", &[libc::SYS_perf_event_open]),
];

/// What becomes of a call, by its number and the capabilities of the container.
type Table = fn(u32, &[String]) -> Verdict;

/// The default policy for a container with these capabilities (`CAP_…`).
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    /// Ranges that together cover every number, sorted: the first number of each, and its verdict.
    ranges: Vec<(u32, Verdict)>,
    /// The same for another architecture whose programs run here.
    other: Option<(u32, Vec<(u32, Verdict)>)>,
}

impl Policy {
    /// Docker's default profile for a container with these capabilities.
    pub(crate) fn docker_default(capabilities: &[String]) -> Self {
        let mut ranges: Vec<(u32, Verdict)> = Vec::new();
        let last = arch::KNOWN.iter().map(|(_, last)| *last).max().unwrap_or(0);
        for number in 0..=last {
            push(&mut ranges, number, verdict(number, capabilities));
        }
        push(&mut ranges, last + 1, ENOSYS);
        let (first_own, last_own) = arch::X32_OWN;
        for number in first_own..=last_own {
            let denied = arch::X32_DENIED.contains(&number);
            push(&mut ranges, number, if denied { EPERM } else { Verdict::Allow });
        }
        push(&mut ranges, (last_own + 1).max(last + 1), ENOSYS);
        let other = arch::OTHER.map(|(audit, table)| {
            let mut ranges = Vec::new();
            (0..=last).for_each(|number| push(&mut ranges, number, table(number, capabilities)));
            push(&mut ranges, last + 1, ENOSYS);
            (audit, ranges)
        });
        Self { ranges, other }
    }

    /// The filter as the kernel takes it.
    pub(crate) fn compile(&self) -> Vec<sock_filter> {
        // struct seccomp_data: nr at 0, arch at 4, instruction pointer at 8, arguments from 16 on.
        let mut program = vec![load(4)];
        let mut own = vec![load(0)];
        if let Some(bit) = arch::X32 {
            own.extend([jump(JGE, bit, 0, 1), statement(AND_K, !bit)]);
        }
        own.extend(tree(&self.ranges, &leaf));
        program.extend([jump(JEQ, arch::AUDIT, 1, 0), statement(JA, own.len() as u32)]);
        program.extend(own);
        if let Some((audit, ranges)) = &self.other {
            let mut body = vec![load(0)];
            body.extend(tree(ranges, &leaf));
            program.extend([jump(JEQ, *audit, 1, 0), statement(JA, body.len() as u32)]);
            program.extend(body);
        }
        // Programs of yet another architecture: answer as a kernel without support for them.
        program.push(give(ENOSYS));
        program
    }
}

fn push(ranges: &mut Vec<(u32, Verdict)>, number: u32, verdict: Verdict) {
    if ranges.last().is_none_or(|(_, last)| *last != verdict) {
        ranges.push((number, verdict));
    }
}

fn has(capabilities: &[String], capability: &str) -> bool {
    capabilities.iter().any(|held| held == capability)
}

fn verdict(number: u32, capabilities: &[String]) -> Verdict {
    let call = libc::c_long::from(number);
    if !arch::KNOWN.iter().any(|(first, last)| (*first..=*last).contains(&number)) {
        return EPERM;
    }
    let has = |capability: &str| has(capabilities, capability);
    let keys: Vec<&str> = UNLOCKED
        .iter()
        .chain(arch::UNLOCKED)
        .filter(|(_, calls)| calls.contains(&call))
        .map(|(capability, _)| *capability)
        .collect();
    if !keys.is_empty() {
        let locked = if call == libc::SYS_clone3 { ENOSYS } else { EPERM };
        return if keys.into_iter().any(has) { Verdict::Allow } else { locked };
    }
    match call {
        _ if DENIED.contains(&call) || arch::DENIED.contains(&call) => EPERM,
        libc::SYS_socket => Verdict::SocketFamilies,
        libc::SYS_personality => Verdict::Personalities,
        libc::SYS_clone if !has("CAP_SYS_ADMIN") => Verdict::NoNewNamespaces,
        _ => Verdict::Allow,
    }
}

/// The instructions that decide one call; they may use the accumulator.
fn leaf(verdict: &Verdict) -> Vec<sock_filter> {
    let allow = give(Verdict::Allow);
    let deny = give(EPERM);
    match verdict {
        Verdict::Allow | Verdict::Errno(_) => vec![give(*verdict)],
        // The lower half of argument 0, where the kernel itself looks for an `int`.
        Verdict::SocketFamilies => {
            const REFUSED: [u32; 9] = [12, 19, 20, 23, 25, 34, 37, 38, 40];
            let mut program = vec![load(16), jump(JGE, 46, REFUSED.len() as u8 + 1, 0)];
            program
                .extend((0..).zip(REFUSED).map(|(i, family)| jump(JEQ, family, REFUSED.len() as u8 - i, 0)));
            program.extend([allow, deny]);
            program
        }
        Verdict::Personalities => {
            const ALLOWED: [u32; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];
            let mut program = vec![load(16)];
            program
                .extend((0..).zip(ALLOWED).map(|(i, domain)| jump(JEQ, domain, ALLOWED.len() as u8 - i, 0)));
            program.extend([deny, allow]);
            program
        }
        Verdict::NoNewNamespaces => {
            const NAMESPACES: u32 = 0x7E02_0000;
            vec![load(16), jump(JSET, NAMESPACES, 1, 0), allow, deny]
        }
    }
}

fn give(verdict: Verdict) -> sock_filter {
    statement(
        RET,
        match verdict {
            Verdict::Errno(errno) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
            _ => libc::SECCOMP_RET_ALLOW,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter on a call's number and first argument.
    fn run(program: &[sock_filter], arch: u32, number: u32, argument: u32) -> u32 {
        bpf::run(program, arch, number, [u64::from(argument), 0, 0, 0, 0, 0])
    }

    fn call(program: &[sock_filter], number: libc::c_long, argument: u32) -> Result<(), i32> {
        match run(program, arch::AUDIT, u32::try_from(number).unwrap(), argument) {
            libc::SECCOMP_RET_ALLOW => Ok(()),
            other => Err((other & 0xffff) as i32),
        }
    }

    fn filter(capabilities: &[&str]) -> Vec<sock_filter> {
        let held: Vec<String> = capabilities.iter().map(|name| (*name).to_owned()).collect();
        Policy::docker_default(&held).compile()
    }

    /// The tree decides every number as the policy's table says.
    #[test]
    fn the_tree_agrees_with_the_table_on_every_number() {
        let program = filter(&["CAP_SYS_CHROOT"]);
        for number in 0..500 {
            let decided = run(&program, arch::AUDIT, number, 0);
            let wanted =
                match if number > 466 { ENOSYS } else { verdict(number, &["CAP_SYS_CHROOT".to_owned()]) } {
                    Verdict::Errno(errno) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
                    _ => libc::SECCOMP_RET_ALLOW,
                };
            assert_eq!(decided, wanted, "system call {number}");
        }
    }

    /// What databases need is allowed, what reaches the host is not, as under Docker.
    #[test]
    fn calls_are_decided_as_docker_decides_them() {
        let program = filter(&["CAP_SYS_CHROOT", "CAP_NET_RAW"]);
        for allowed in [libc::SYS_read, libc::SYS_execve, libc::SYS_futex, libc::SYS_ptrace, libc::SYS_chroot]
        {
            assert_eq!(call(&program, allowed, 0), Ok(()), "{allowed}");
        }
        for denied in
            [libc::SYS_mount, libc::SYS_bpf, libc::SYS_unshare, libc::SYS_keyctl, libc::SYS_io_uring_setup]
        {
            assert_eq!(call(&program, denied, 0), Err(libc::EPERM), "{denied}");
        }
        assert_eq!(
            call(&program, libc::SYS_clone3, 0),
            Err(libc::ENOSYS),
            "so that libc falls back to clone"
        );
        assert_eq!(call(&program, 5000, 0), Err(libc::ENOSYS), "calls of the future");
    }

    /// Arguments decide where Docker's profile looks at them.
    #[test]
    fn arguments_are_looked_at() {
        let program = filter(&[]);
        for (family, allowed) in
            [(1, true), (2, true), (10, true), (16, true), (38, false), (40, false), (46, false)]
        {
            assert_eq!(call(&program, libc::SYS_socket, family).is_ok(), allowed, "family {family}");
        }
        assert_eq!(call(&program, libc::SYS_clone, libc::CLONE_VM as u32), Ok(()));
        assert_eq!(call(&program, libc::SYS_clone, libc::CLONE_NEWUSER as u32), Err(libc::EPERM));
        assert_eq!(call(&program, libc::SYS_personality, 0x2_0000), Ok(()));
        assert_eq!(call(&program, libc::SYS_personality, 0x40_0000), Err(libc::EPERM));
    }

    /// A capability unlocks what needs it.
    #[test]
    fn capabilities_unlock_their_calls() {
        let program = filter(&["CAP_SYS_ADMIN"]);
        for unlocked in [libc::SYS_mount, libc::SYS_clone3, libc::SYS_setns] {
            assert_eq!(call(&program, unlocked, 0), Ok(()), "{unlocked}");
        }
        assert_eq!(call(&program, libc::SYS_clone, libc::CLONE_NEWUSER as u32), Ok(()));
        assert_eq!(call(&program, libc::SYS_init_module, 0), Err(libc::EPERM));
    }

    /// Programs of another architecture are refused without being killed.
    #[test]
    fn foreign_programs_get_enosys() {
        assert_eq!(run(&filter(&[]), 0x28, 1, 0), libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
    }

    /// Programs of 32 bits run, and can do no more than others: the numbers are those of `int 0x80`.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn programs_of_32_bits_are_confined_as_others() {
        const I386: u32 = 0x4000_0003;
        let denied = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
        let plain = filter(&["CAP_SYS_CHROOT"]);
        // exit, write, execve, socketcall, mmap2, set_thread_area, clock_gettime64
        for call in [1, 4, 11, 102, 192, 243, 403] {
            assert_eq!(run(&plain, I386, call, 0), libc::SECCOMP_RET_ALLOW, "{call}");
        }
        // mount, umount, stime, keyctl, unshare, vm86, bpf, clock_settime64, io_uring_setup
        for call in [21, 22, 25, 288, 310, 166, 357, 404, 425] {
            assert_eq!(run(&plain, I386, call, 0), denied, "{call}");
        }
        assert_eq!(run(&plain, I386, 359, 38), denied, "socket(AF_ALG)");
        assert_eq!(run(&plain, I386, 120, libc::CLONE_NEWUSER as u32), denied, "clone");
        assert_eq!(run(&plain, I386, 435, 0), libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32, "clone3");
        assert_eq!(run(&filter(&["CAP_SYS_ADMIN"]), I386, 21, 0), libc::SECCOMP_RET_ALLOW, "mount, unlocked");
    }

    /// x32 is no way round the filter.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn x32_is_confined_as_well() {
        let plain = filter(&[]);
        let x32 = |number: u32| run(&plain, arch::AUDIT, number | 0x4000_0000, 0);
        assert_eq!((x32(0), x32(520)), (libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_ALLOW), "read, execve");
        for call in [165, 321, 528] {
            assert_eq!(x32(call), libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, "mount, bpf, kexec_load");
        }
    }

    /// A profile of the user's decides as Docker lets it: by capabilities, kernel and architecture.
    #[test]
    fn profiles_are_made_rules_of() {
        let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64",
            "subArchitectures":["SCMP_ARCH_X86"]},{"architecture":"SCMP_ARCH_AARCH64","subArchitectures":null}],
            "syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","args":null,"excludes":{"caps":["CAP_CHOWN"]}},
            {"names":["chroot"],"action":"SCMP_ACT_ERRNO","errnoRet":38,"includes":{"minKernel":"2.6"}},
            {"names":["read"],"action":"SCMP_ACT_ERRNO","includes":{"arches":["s390"]}}]}"#;
        let program = |capabilities: &[&str]| {
            let held: Vec<String> = capabilities.iter().map(|name| (*name).to_owned()).collect();
            compile(&custom(text, &held).unwrap()).unwrap().unwrap()
        };
        assert_eq!(call(&program(&[]), libc::SYS_mkdirat, 0), Err(libc::EPERM));
        assert_eq!(call(&program(&["CAP_CHOWN"]), libc::SYS_mkdirat, 0), Ok(()));
        assert_eq!(call(&program(&[]), libc::SYS_chroot, 0), Err(libc::ENOSYS));
        assert_eq!(call(&program(&[]), libc::SYS_read, 0), Ok(()));
        assert!(custom("{", &[]).is_err() && custom(r#"{"defaultAction":"NO"}"#, &[]).is_err());
    }
}
