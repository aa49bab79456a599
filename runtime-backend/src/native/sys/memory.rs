//! The name under which `ps` shows this process.

/// Writes `name` over the argument vector of this process, as far as it fits, so that `ps` shows it.
///
/// `prctl(PR_SET_MM_ARG_START)` would need `CAP_SYS_RESOURCE`. The keeper is started with a long padded `argv[0]` for
/// this. Does nothing if the place cannot be found.
pub(crate) fn overwrite_arguments(name: &str) {
    let _ =
        rustix::thread::set_name(&std::ffi::CString::new(&name[..name.len().min(15)]).unwrap_or_default());
    let Some((start, end)) = argument_area() else { return };
    let Some(length) = end.checked_sub(start).filter(|length| (name.len()..4096).contains(length)) else {
        return;
    };
    // SAFETY: the kernel says that `argv`'s strings lie from `start` to `end` in this process's stack, which is
    // writable for its whole life. This process has one thread, and std has copied what it needs of the arguments
    // only if asked; a changed `argv[0]` stays a valid C string because a zero byte ends it.
    unsafe {
        let area = std::slice::from_raw_parts_mut(start as *mut u8, length);
        area.fill(0);
        area[..name.len()].copy_from_slice(name.as_bytes());
    }
}

/// Start and end of the argument strings: fields 48 and 49 of `/proc/self/stat` (proc_pid_stat(5)).
fn argument_area() -> Option<(usize, usize)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(45);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}
