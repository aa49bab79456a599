//! A process of a `config.json` with the seccomp filter that is to be its own.

use crate::native::launch::{Program, Trouble};
use crate::native::seccomp;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag, Process, Spec};

/// A process of the spec, with the spec's filter, in the form the kernel takes.
pub(super) fn program(spec: &Spec, process: &Process) -> Result<Program, Trouble> {
    let rules = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let filter = rules.map(seccomp::compile_with_listener).transpose()?.flatten();
    let mut process = process.clone();
    // The terminal, the score and the label are this module's work.
    process.set_terminal(None).set_oom_score_adj(None).set_apparmor_profile(None);
    if super::nodes::are_dead(spec) {
        super::nodes::forbid(&mut process);
    }
    let program = Program::new(&process, filter, super::ids::groups_can_be_set(spec))?;
    let program = program.with_filter_flags(rules.map_or(0, flags));
    // As crun has it, for Podman's `--group-add keep-groups`.
    let kept = spec.annotations().as_ref().and_then(|all| all.get("run.oci.keep_original_groups"));
    Ok(if kept.is_some_and(|value| value == "1") { program.keeping_groups() } else { program })
}

fn flags(seccomp: &LinuxSeccomp) -> u64 {
    let flag = |flag: &LinuxSeccompFilterFlag| match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        // There is one thread; and nobody who is notified.
        _ => 0,
    };
    let listened = if seccomp.listener_path().is_some() { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER } else { 0 };
    seccomp.flags().iter().flatten().fold(listened, |flags, one| flags | flag(one))
}
