//! Classic BPF, as linux/bpf_common.h numbers it.

use libc::sock_filter;

const LOAD: u16 = 0x20;
pub(super) const AND_K: u16 = 0x54;
pub(super) const JA: u16 = 0x05;
pub(super) const JEQ: u16 = 0x15;
pub(super) const JGT: u16 = 0x25;
pub(super) const JGE: u16 = 0x35;
pub(super) const JSET: u16 = 0x45;
pub(super) const RET: u16 = 0x06;

pub(super) fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

/// Loads 32 bits of struct `seccomp_data`.
pub(super) fn load(offset: u32) -> sock_filter {
    statement(LOAD, offset)
}

pub(super) fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// A binary search: `ranges` are sorted by their first number and each reaches to the next; `leaf` gives the instructions
/// that decide for one range.
pub(super) fn tree<T>(ranges: &[(u32, T)], leaf: &impl Fn(&T) -> Vec<sock_filter>) -> Vec<sock_filter> {
    if let [(_, only)] = ranges {
        return leaf(only);
    }
    let (left, right) = ranges.split_at(ranges.len() / 2);
    let (lower, upper) = (tree(left, leaf), tree(right, leaf));
    let mut program = match u8::try_from(lower.len()) {
        Ok(distance) => vec![jump(JGE, right[0].0, distance, 0)],
        // Conditional jumps reach 255 instructions; an unconditional one reaches as far as is needed.
        Err(_) => vec![jump(JGE, right[0].0, 0, 1), statement(JA, lower.len() as u32)],
    };
    program.extend(lower);
    program.extend(upper);
    program
}

/// Runs a filter as the kernel does.
#[cfg(test)]
pub(super) fn run(program: &[sock_filter], audit: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let (mut at, mut accumulator) = (0_usize, 0_u32);
    loop {
        let sock_filter { code, jt, jf, k } = program[at];
        at += 1;
        let branch = |taken: bool| usize::from(if taken { jt } else { jf });
        match code {
            LOAD => {
                accumulator = match k {
                    0 => number,
                    4 => audit,
                    k => (arguments[(k as usize - 16) / 8] >> if k % 8 == 0 { 0 } else { 32 }) as u32,
                }
            }
            AND_K => accumulator &= k,
            JA => at += k as usize,
            JEQ => at += branch(accumulator == k),
            JGT => at += branch(accumulator > k),
            JGE => at += branch(accumulator >= k),
            JSET => at += branch(accumulator & k != 0),
            RET => return k,
            _ => panic!("{code:#x}"),
        }
    }
}
