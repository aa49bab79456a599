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
