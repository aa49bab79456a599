//! The seccomp filter: Docker's default profile in effect, compiled as a search tree.
//!
//! Docker's filter tests the call's number against one name after another, which costs a millisecond to install
//! (the kernel runs the filter for every number to build its table of calls that are always allowed). A binary search
//! over ranges of numbers says the same in a tenth of that. Facts: the `default.json` of moby/profiles.

use libc::sock_filter;

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

/// The default policy for a container with these capabilities (`CAP_…`).
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    /// Ranges that together cover every number, sorted: the first number of each, and its verdict.
    ranges: Vec<(u32, Verdict)>,
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
        Self { ranges }
    }

    /// The filter as the kernel takes it.
    pub(crate) fn compile(&self) -> Vec<sock_filter> {
        let mut program = vec![
            // struct seccomp_data: nr at 0, arch at 4, instruction pointer at 8, arguments from 16 on.
            load(4),
            jump(JEQ, arch::AUDIT, 1, 0),
            // 32-bit programs: answer as a kernel without support for them.
            give(ENOSYS),
            load(0),
        ];
        program.extend(tree(&self.ranges));
        program
    }
}

fn push(ranges: &mut Vec<(u32, Verdict)>, number: u32, verdict: Verdict) {
    if ranges.last().is_none_or(|(_, last)| *last != verdict) {
        ranges.push((number, verdict));
    }
}

fn verdict(number: u32, capabilities: &[String]) -> Verdict {
    let call = libc::c_long::from(number);
    if !arch::KNOWN.iter().any(|(first, last)| (*first..=*last).contains(&number)) {
        return EPERM;
    }
    let has = |capability: &str| capabilities.iter().any(|held| held == capability);
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

/// A binary search: `ranges` are sorted by their first number and each reaches to the next.
fn tree(ranges: &[(u32, Verdict)]) -> Vec<sock_filter> {
    if let [(_, verdict)] = ranges {
        return leaf(*verdict);
    }
    let (left, right) = ranges.split_at(ranges.len() / 2);
    let (lower, upper) = (tree(left), tree(right));
    let mut program = match u8::try_from(lower.len()) {
        Ok(distance) => vec![jump(JGE, right[0].0, distance, 0)],
        // Conditional jumps reach 255 instructions; an unconditional one reaches as far as is needed.
        Err(_) => vec![jump(JGE, right[0].0, 0, 1), statement(JA, lower.len() as u32)],
    };
    program.extend(lower);
    program.extend(upper);
    program
}

/// The instructions that decide one call; they may use the accumulator.
fn leaf(verdict: Verdict) -> Vec<sock_filter> {
    let allow = give(Verdict::Allow);
    let deny = give(EPERM);
    match verdict {
        Verdict::Allow | Verdict::Errno(_) => vec![give(verdict)],
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

// Classic BPF, as linux/bpf_common.h numbers it.
const LD_W_ABS: u16 = 0x20;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGE: u16 = 0x35;
const JSET: u16 = 0x45;
const RET: u16 = 0x06;

fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

fn load(offset: u32) -> sock_filter {
    statement(LD_W_ABS, offset)
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
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

    /// Runs a filter as the kernel does, on a call's number and first argument.
    fn run(program: &[sock_filter], arch: u32, number: u32, argument: u32) -> u32 {
        let (mut at, mut accumulator) = (0_usize, 0_u32);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let branch = |taken: bool| usize::from(if taken { jt } else { jf });
            match code {
                LD_W_ABS => {
                    accumulator = match k {
                        0 => number,
                        4 => arch,
                        16 => argument,
                        _ => panic!("{k}"),
                    }
                }
                JA => at += k as usize,
                JEQ => at += branch(accumulator == k),
                JGE => at += branch(accumulator >= k),
                JSET => at += branch(accumulator & k != 0),
                RET => return k,
                _ => panic!("{code:#x}"),
            }
        }
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
        for number in 0..1000 {
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
        assert_eq!(run(&filter(&[]), 0x4000_0003, 1, 0), libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
    }
}
