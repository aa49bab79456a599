//! Device rules of a cgroup v2: a BPF program that the kernel asks whenever a process of the group opens or makes a node.

use super::{CallError, Called, check};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// What may be done with devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceRule {
    /// Whether it is about block devices; else about character devices.
    pub(crate) block: bool,
    /// One major number; all when `None`.
    pub(crate) major: Option<u32>,
    /// One minor number; all when `None`.
    pub(crate) minor: Option<u32>,
    /// Letters: `r`, `w`, `m`.
    pub(crate) access: String,
}

/// Numbers of linux/bpf.h.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// One instruction of eBPF: operation, registers, offset, constant.
fn instruction(code: u8, target: u8, source: u8, offset: i16, constant: i32) -> u64 {
    let registers = target | source << 4;
    u64::from(code)
        | u64::from(registers) << 8
        | u64::from(offset as u16) << 16
        | u64::from(constant as u32) << 32
}

const LOAD_32: u8 = 0x61;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_UNEQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// The program: the rules one after another, and a refusal at the end. Register 1 points to struct
/// `bpf_cgroup_dev_ctx`: access in the upper half and type in the lower half of the first word, major, minor.
fn program(rules: &[DeviceRule]) -> Vec<u64> {
    let mut program = vec![
        instruction(LOAD_32, 2, 1, 0, 0),
        instruction(MOVE_REGISTER, 3, 2, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD_32, 4, 1, 4, 0),
        instruction(LOAD_32, 5, 1, 8, 0),
    ];
    for rule in rules {
        let bit = |letter: char, bit: i32| if rule.access.contains(letter) { bit } else { 0 };
        let refused = !(bit('m', 1) | bit('r', 2) | bit('w', 4));
        // What is asked for and not allowed by the rule has to be nothing.
        program.extend([instruction(MOVE_REGISTER, 6, 3, 0, 0), instruction(AND, 6, 0, 0, refused)]);
        let mut conditions = vec![(6, 0), (2, if rule.block { 1 } else { 2 })];
        conditions.extend(rule.major.map(|major| (4, major as i32)));
        conditions.extend(rule.minor.map(|minor| (5, minor as i32)));
        // Each jumps behind the rule when it does not hold: over the other conditions, and the two that allow.
        for (number, (register, value)) in conditions.iter().enumerate() {
            let over = conditions.len() - number + 1;
            program.push(instruction(JUMP_UNEQUAL, *register, 0, over as i16, *value));
        }
        program.extend([instruction(MOVE, 0, 0, 0, 1), instruction(EXIT, 0, 0, 0, 0)]);
    }
    program.extend([instruction(MOVE, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    program
}

/// Has the kernel ask these rules about every device for the processes of the group. They end with the group.
pub(crate) fn attach_device_rules(group: &OwnedFd, rules: &[DeviceRule]) -> Result<(), CallError> {
    /// As much of union `bpf_attr` as loading a program needs.
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        rest: [u64; 12],
    }
    /// As much of union `bpf_attr` as attaching one needs.
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
        rest: [u64; 12],
    }
    let program = program(rules);
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        rest: [0; 12],
    };
    // SAFETY: `load` is as large as is said, zero beyond its fields, and points to memory that lives through the call.
    let loaded = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) };
    let loaded = check(loaded).call(|| "bpf(BPF_PROG_LOAD, CGROUP_DEVICE)".to_owned())?;
    // SAFETY: the kernel has made a new descriptor that nobody else owns.
    let loaded = unsafe { OwnedFd::from_raw_fd(loaded as i32) };
    let descriptor = |fd: &OwnedFd| u32::try_from(fd.as_raw_fd()).map_err(|_| Errno::BADF);
    let text = || "bpf(BPF_PROG_ATTACH, CGROUP_DEVICE)".to_owned();
    let attach = Attach {
        target: descriptor(group).call(text)?,
        program: descriptor(&loaded).call(text)?,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
        rest: [0; 12],
    };
    // SAFETY: `attach` is as large as is said, and zero beyond its fields.
    let attached =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<Attach>()) };
    check(attached).map(drop).call(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel does, on one question.
    fn allows(program: &[u64], block: bool, major: u32, minor: u32, access: u32) -> bool {
        let context = [access << 16 | if block { 1 } else { 2 }, major, minor];
        let mut registers = [0_u64; 11];
        let mut at = 0_usize;
        loop {
            let word = program[at];
            at += 1;
            let (target, source) = ((word >> 8 & 15) as usize, (word >> 12 & 15) as usize);
            let (offset, constant) = ((word >> 16) as i16, (word >> 32) as i32);
            match word as u8 {
                LOAD_32 => registers[target] = context[offset as usize / 4].into(),
                MOVE_REGISTER => registers[target] = registers[source],
                MOVE => registers[target] = constant as u64,
                AND => registers[target] &= constant as i64 as u64,
                SHIFT_RIGHT => registers[target] >>= constant,
                JUMP_UNEQUAL if registers[target] != constant as i64 as u64 => at += offset as usize,
                JUMP_UNEQUAL => {}
                EXIT => return registers[0] == 1,
                other => panic!("{other:#x}"),
            }
        }
    }

    /// Devices are allowed by kind, number and access; what no rule allows is refused.
    #[test]
    fn the_program_decides_by_the_rules() {
        let rule =
            |block, major, minor, access: &str| DeviceRule { block, major, minor, access: access.to_owned() };
        let program = program(&[
            rule(false, None, None, "m"),
            rule(false, Some(1), Some(3), "rwm"),
            rule(false, Some(136), None, "rw"),
            rule(true, Some(7), Some(0), "r"),
        ]);
        let (make, read, write) = (1, 2, 4);
        assert!(allows(&program, false, 1, 3, read | write));
        assert!(!allows(&program, false, 1, 1, read), "/dev/mem");
        assert!(allows(&program, false, 1, 1, make));
        assert!(!allows(&program, false, 1, 1, make | read));
        assert!(allows(&program, false, 136, 5, write));
        assert!(allows(&program, true, 7, 0, read) && !allows(&program, true, 7, 0, write));
        assert!(!allows(&program, true, 7, 1, read) && !allows(&program, true, 1, 3, read));
    }
}
