//! Network interfaces named `shk…`, in the network namespace of any process.

use std::collections::BTreeSet;
use std::fs;

use super::Found;
use super::processes::Process;

const PREFIX: &str = "shk";

pub(super) fn look(processes: &[Process], found: &mut Found) {
    let mut namespaces = BTreeSet::new();
    for process in processes {
        let Ok(namespace) = fs::read_link(format!("/proc/{}/ns/net", process.pid)) else { continue };
        if !namespaces.insert(namespace) {
            continue;
        }
        let table = fs::read_to_string(format!("/proc/{}/net/dev", process.pid)).unwrap_or_default();
        for name in names(&table).filter(|name| name.starts_with(PREFIX)) {
            let detail = format!("in the network namespace of {} ({})", process.pid, process.comm);
            found.add("interface", name, detail);
        }
    }
}

/// The names in `/proc/net/dev`: two lines of headings, then one interface a line, the name before a colon.
fn names(table: &str) -> impl Iterator<Item = &str> {
    table.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An interface is found whatever the width of the columns.
    #[test]
    fn names_are_before_the_colon() {
        let table = "Inter-|   Receive\n face |bytes\n    lo: 1 2\nshk0a1b:3 4\n";
        assert_eq!(names(table).collect::<Vec<_>>(), ["lo", "shk0a1b"]);
    }
}
