//! The seccomp filter of an OCI runtime spec, compiled as a search tree over the calls' numbers.

use super::bpf::{AND_K, JA, JEQ, JGE, JGT, RET, jump, load, statement, tree};
use crate::native::launch::Trouble;
use libc::sock_filter;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};
use std::collections::BTreeMap;

/// Numbers of x32, a second set of calls of `x86_64`, have this bit.
const X32: u32 = 0x4000_0000;
/// The most instructions the kernel takes (`BPF_MAXINSNS`).
const MOST_INSTRUCTIONS: usize = 4096;

/// What decides one call: the first alternative whose conditions all hold, else the last resort.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Decision {
    alternatives: Vec<(Vec<LinuxSeccompArg>, u32)>,
    otherwise: Option<u32>,
}

/// Whether a call is decided by an agent.
pub(super) fn uses_listener(seccomp: &LinuxSeccomp) -> bool {
    let rules = seccomp.syscalls().iter().flatten().map(LinuxSyscall::action);
    rules.chain([seccomp.default_action()]).any(|used| used == LinuxSeccompAction::ScmpActNotify)
}

/// A filter that cannot be made.
pub(super) fn refused(reason: &str) -> Trouble {
    Trouble::new("make the seccomp filter", reason)
}

/// Compiles the filter; `None` if it would allow everything.
pub(super) fn compile(seccomp: &LinuxSeccomp) -> Result<Option<Vec<sock_filter>>, Trouble> {
    let listened = seccomp.listener_path().is_some();
    if uses_listener(seccomp) && !listened {
        return Err(refused("SCMP_ACT_NOTIFY needs `listenerPath`"));
    }
    if seccomp.default_action() == LinuxSeccompAction::ScmpActNotify {
        return Err(refused("with SCMP_ACT_NOTIFY for everything, no program would ever begin"));
    }
    let default = action(seccomp.default_action(), seccomp.default_errno_ret());
    if default == libc::SECCOMP_RET_ALLOW && !listened && seccomp.syscalls().iter().flatten().next().is_none()
    {
        return Ok(None);
    }
    let asked = seccomp.architectures().as_deref().unwrap_or_default();
    let mut program = vec![load(4)];
    for (audit, arch, numbers) in architectures() {
        let native = audit == NATIVE;
        if !native && !asked.contains(&arch) {
            continue;
        }
        let decisions = decisions(seccomp, default, numbers);
        if native && asks(&decisions, libc::SYS_sendmsg) {
            return Err(refused(
                "SCMP_ACT_NOTIFY for `sendmsg` would ask the agent before it can be reached",
            ));
        }
        let mut body = vec![load(0)];
        if native && cfg!(target_arch = "x86_64") && !asked.contains(&Arch::ScmpArchX32) {
            body.extend([jump(JGE, X32, 0, 1), ret(libc::SECCOMP_RET_KILL_PROCESS)]);
        }
        if let Some(last) = newest(seccomp, default, numbers) {
            body.extend([jump(JGT, last, 0, 1), ret(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32)]);
        }
        body.extend(tree(&ranges(&decisions), &|decision| leaf(decision, default)));
        program.extend([jump(JEQ, audit, 1, 0), statement(JA, body.len() as u32)]);
        program.extend(body);
    }
    // A call of an architecture that is not listed, as libseccomp answers it.
    program.push(ret(libc::SECCOMP_RET_KILL_PROCESS));
    if program.len() > MOST_INSTRUCTIONS {
        return Err(refused("it has more conditions than the kernel takes"));
    }
    Ok(Some(program))
}

#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xC000_00B7;

/// A call's number by its name.
type Numbers = fn(&str) -> Option<u32>;

/// The architectures that this kernel runs programs of, its own first.
fn architectures() -> Vec<(u32, Arch, Numbers)> {
    let own: Numbers = |name| name.parse::<syscalls::Sysno>().ok().map(|number| number.id() as u32);
    #[cfg(target_arch = "x86_64")]
    {
        let i386: Numbers = |name| name.parse::<syscalls::x86::Sysno>().ok().map(|number| number.id() as u32);
        vec![(NATIVE, Arch::ScmpArchX86_64, own), (0x4000_0003, Arch::ScmpArchX86, i386)]
    }
    #[cfg(target_arch = "aarch64")]
    {
        vec![(NATIVE, Arch::ScmpArchAarch64, own)]
    }
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> u32 {
    action.as_u32(errno.map(|errno| errno & 0xffff))
}

fn decisions(seccomp: &LinuxSeccomp, default: u32, numbers: Numbers) -> BTreeMap<u32, Decision> {
    let mut decisions: BTreeMap<u32, Decision> = BTreeMap::new();
    for rule in seccomp.syscalls().iter().flatten() {
        let verdict = action(rule.action(), rule.errno_ret());
        // As every runtime does: a rule that says what happens anyway is none.
        if verdict == default {
            continue;
        }
        // A name that this kernel's architecture does not have is no error: one profile serves many.
        for number in rule.names().iter().filter_map(|name| numbers(name)) {
            let decision = decisions.entry(number).or_default();
            match rule.args().as_deref() {
                None | Some([]) => decision.otherwise = decision.otherwise.or(Some(verdict)),
                Some(conditions) => {
                    for together in alternatives(conditions) {
                        decision.alternatives.push((together, verdict));
                    }
                }
            }
        }
    }
    decisions
}

/// Whether a call may be asked about.
fn asks(decisions: &BTreeMap<u32, Decision>, call: libc::c_long) -> bool {
    let Some(decision) = u32::try_from(call).ok().and_then(|call| decisions.get(&call)) else { return false };
    let verdicts = decision.alternatives.iter().map(|(_, verdict)| *verdict).chain(decision.otherwise);
    verdicts.into_iter().any(|verdict| verdict == libc::SECCOMP_RET_USER_NOTIF)
}

/// The newest call that a profile knows, if it denies by default. What is newer is answered as on a kernel that does not
/// have it, so that programs try the older one; "operation not permitted" would end them. This is what runc does.
fn newest(seccomp: &LinuxSeccomp, default: u32, numbers: Numbers) -> Option<u32> {
    let denies = seccomp.default_action() == LinuxSeccompAction::ScmpActErrno;
    if !denies || default == (libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32) {
        return None;
    }
    let names = seccomp.syscalls().iter().flatten().flat_map(|rule| rule.names());
    names.filter_map(|name| numbers(name)).max()
}

/// Conditions on different arguments hold together; several on one argument are alternatives, as in runc.
fn alternatives(conditions: &[LinuxSeccompArg]) -> Vec<Vec<LinuxSeccompArg>> {
    let repeated = (0..6).any(|index| conditions.iter().filter(|c| c.index() == index).count() > 1);
    if repeated { conditions.iter().map(|one| vec![*one]).collect() } else { vec![conditions.to_vec()] }
}

/// Runs of numbers with one decision, by their first number.
fn ranges(decisions: &BTreeMap<u32, Decision>) -> Vec<(u32, Decision)> {
    let mut ranges: Vec<(u32, Decision)> = vec![(0, Decision::default())];
    let mut push = |number: u32, decision: Decision| match ranges.last_mut() {
        Some((_, last)) if *last == decision => {}
        Some((first, last)) if *first == number => *last = decision,
        _ => ranges.push((number, decision)),
    };
    let mut next = 0;
    for (number, decision) in decisions {
        if *number > next {
            push(next, Decision::default());
        }
        push(*number, decision.clone());
        next = number + 1;
    }
    push(next, Decision::default());
    ranges
}

fn leaf(decision: &Decision, default: u32) -> Vec<sock_filter> {
    let mut program = Vec::new();
    for (conditions, verdict) in &decision.alternatives {
        // From the end to the front, so that every jump over the rest is known.
        let mut rest = vec![ret(*verdict)];
        for condition in conditions.iter().rev() {
            let mut checked = check(condition, rest.len());
            checked.append(&mut rest);
            rest = checked;
        }
        program.extend(rest);
    }
    program.push(ret(decision.otherwise.unwrap_or(default)));
    program
}

/// Instructions that go on to the next one if the condition holds, else jump over the `rest` instructions behind them.
///
/// Arguments have 64 bits and BPF has 32: struct `seccomp_data` has them from offset 16 on, the lower half first on
/// little-endian machines.
fn check(condition: &LinuxSeccompArg, rest: usize) -> Vec<sock_filter> {
    let low_at = 16 + 8 * condition.index() as u32;
    let high_at = low_at + 4;
    let (value, masked) = match condition.op() {
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (condition.value_two().unwrap_or(0), Some(condition.value()))
        }
        _ => (condition.value(), None),
    };
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let (high, low) = halves(value);
    let mut program = vec![load(high_at)];
    if let Some((mask, _)) = masked.map(halves) {
        program.push(statement(AND_K, mask));
    }
    // What stands behind the first comparison: the load of the lower half, its mask, its comparison.
    let low_part = 2 + usize::from(masked.is_some());
    let over = |instructions: usize| u8::try_from(instructions).unwrap_or(u8::MAX);
    let (pass, fail) = (over(low_part), over(low_part + rest));
    use LinuxSeccompOperator as Op;
    let first = match condition.op() {
        Op::ScmpCmpEq | Op::ScmpCmpMaskedEq => vec![jump(JEQ, high, 0, fail)],
        Op::ScmpCmpNe => vec![jump(JEQ, high, 0, pass)],
        // Greater: pass. Equal: the lower half decides. Less: fail.
        Op::ScmpCmpGe | Op::ScmpCmpGt => vec![jump(JGT, high, pass + 1, 0), jump(JEQ, high, 0, fail)],
        Op::ScmpCmpLe | Op::ScmpCmpLt => vec![jump(JGT, high, fail + 1, 0), jump(JEQ, high, 0, pass)],
    };
    program.extend(first);
    program.push(load(low_at));
    if let Some((_, mask)) = masked.map(halves) {
        program.push(statement(AND_K, mask));
    }
    let rest = over(rest);
    program.push(match condition.op() {
        Op::ScmpCmpEq | Op::ScmpCmpMaskedEq => jump(JEQ, low, 0, rest),
        Op::ScmpCmpNe => jump(JEQ, low, rest, 0),
        Op::ScmpCmpGe => jump(JGE, low, 0, rest),
        Op::ScmpCmpGt => jump(JGT, low, 0, rest),
        Op::ScmpCmpLe => jump(JGT, low, rest, 0),
        Op::ScmpCmpLt => jump(JGE, low, rest, 0),
    });
    program
}

fn ret(action: u32) -> sock_filter {
    statement(RET, action)
}

#[cfg(test)]
mod tests {
    use super::super::bpf::run;
    use super::*;

    fn filter(json: &str) -> Vec<sock_filter> {
        compile(&serde_json::from_str(json).unwrap()).unwrap().unwrap()
    }

    const DENIED: u32 = 0x5_0001;

    /// A profile decides calls by name, and what it does not name by its default.
    #[test]
    fn names_decide() {
        let program = filter(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read","no_such_call","mkdir","statx"],"action":"SCMP_ACT_ALLOW"}]}"#,
        );
        let decided = |number: libc::c_long| run(&program, NATIVE, number as u32, [0; 6]);
        assert_eq!(decided(libc::SYS_read), libc::SECCOMP_RET_ALLOW);
        assert_eq!(decided(libc::SYS_mkdirat), DENIED);
        assert_eq!(decided(libc::SYS_write), DENIED);
        assert_eq!(decided(libc::SYS_getpid), DENIED);
        assert_eq!(decided(9999), 0x5_0026, "newer than all that the profile knows: ENOSYS");
        assert_eq!(run(&program, 0x28, 0, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS, "another architecture");
    }

    /// Every comparison compares all 64 bits.
    #[test]
    fn conditions_compare_whole_arguments() {
        let values = [0_u64, 1, 5, 1 << 32, (1 << 32) + 5, (2 << 32) + 1, u64::MAX];
        type Holds = fn(u64, u64) -> bool;
        let operators: [(&str, Holds); 6] = [
            ("EQ", |a, b| a == b),
            ("NE", |a, b| a != b),
            ("LT", |a, b| a < b),
            ("LE", |a, b| a <= b),
            ("GT", |a, b| a > b),
            ("GE", |a, b| a >= b),
        ];
        for (name, holds) in operators {
            for wanted in values {
                let program = filter(&format!(
                    r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["read"],"action":"SCMP_ACT_ERRNO",
                    "args":[{{"index":1,"value":{wanted},"op":"SCMP_CMP_{name}"}},{{"index":2,"value":7,"op":"SCMP_CMP_EQ"}}]}}]}}"#
                ));
                for value in values {
                    let decided = |third| {
                        run(&program, NATIVE, libc::SYS_read as u32, [0, value, third, 0, 0, 0]) == DENIED
                    };
                    assert_eq!(decided(7), holds(value, wanted), "{value} {name} {wanted}");
                    assert!(!decided(8), "both conditions have to hold");
                }
            }
        }
    }

    /// Docker's profile lets `clone` make no namespaces: a masked comparison.
    #[test]
    fn masks_are_applied() {
        let program = filter(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["clone"],"action":"SCMP_ACT_ALLOW",
            "args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#,
        );
        let decided = |flags| run(&program, NATIVE, libc::SYS_clone as u32, [flags, 0, 0, 0, 0, 0]);
        assert_eq!(decided(libc::CLONE_VM as u64), libc::SECCOMP_RET_ALLOW);
        assert_eq!(decided(libc::CLONE_NEWUSER as u64), DENIED);
    }
}
