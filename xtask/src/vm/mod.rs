//! `cargo xtask vm`: the suite on another kernel than this machine's, in a virtual machine that boots this machine's root.
//!
//! It is emulated, so it runs anywhere, and slowly; what it is for are cgroup v2 alone and the fall-backs of older
//! kernels. Nothing of the host is written: its root is exported read-only. The suite runs as root, as an ordinary user
//! of systemd, or as one who has no systemd and was given a control group.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::Silent;
use crate::machine::packages::ensure;
use crate::machine::users::{Ranges, User};
use crate::machine::{cargo, output_of, run as run_command, target_directory};

/// The kernel that is tried if none is named: Debian's own.
const KERNEL: &str = "linux-image-amd64";
/// What is tried if nothing is named: what depends on the kernel most.
const FILTERS: [&str; 4] = ["limits::", "exec::", "networks::", "isolation::"];
/// How long the machine may run.
const SECONDS: &str = "3600";
/// What the first root file system needs to reach the host's.
const MODULES: [&str; 4] = ["9p", "9pnet_virtio", "overlay", "virtio_pci"];

/// Who runs the suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Root,
    /// An ordinary user, as after a login by ssh: systemd is asked for a control group.
    Login,
    /// An ordinary user without systemd, in a control group that root has handed over.
    Delegated,
}

/// What is asked for.
#[derive(Debug)]
struct Asked {
    kernel: String,
    who: Who,
    /// Whether the tests of `shakedown oci` run in the suite's place.
    oci: bool,
    filters: Vec<String>,
}

/// Runs the task: `[--kernel PACKAGE] [--user | --delegated] [--oci] [FILTER…]`.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let asked = parse(arguments)?;
    ensure(&[
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("depmod", "kmod"),
        ("cpio", "cpio"),
    ])?;
    let directory = target_directory(root).join("vm");
    fs::create_dir_all(&directory)?;
    let kernel = kernel(&directory, &asked.kernel)?;
    initial_root(&directory, &kernel)?;
    let user = (asked.who != Who::Root).then(|| User::ensure(Ranges::With)).transpose()?;
    // The machine goes on reading it after cargo has built another.
    let copy = directory.join("suite");
    fs::copy(suite(root, asked.oci)?, &copy).context("the suite could not be copied")?;
    let settings = format!(
        "ROOT={}\nSUITE={}\nFILTERS={:?}\nUSER_NAME={}\n",
        root.display(),
        copy.display(),
        asked.filters.join(" "),
        user.as_ref().map_or("", |user| &user.name),
    );
    fs::write(directory.join("settings"), settings)?;
    fs::write(directory.join("guest.sh"), include_str!("guest.sh"))?;
    boot(&directory, &kernel, asked.who == Who::Login)
}

fn parse(arguments: &[String]) -> Result<Asked> {
    let mut asked = Asked { kernel: KERNEL.to_owned(), who: Who::Root, oci: false, filters: Vec::new() };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--kernel" => asked.kernel.clone_from(arguments.next().context("--kernel needs a package")?),
            "--user" => asked.who = Who::Login,
            "--delegated" => asked.who = Who::Delegated,
            "--oci" => asked.oci = true,
            option if option.starts_with('-') => bail!("there is no option `{option}`"),
            filter => asked.filters.push(filter.to_owned()),
        }
    }
    if asked.filters.is_empty() && !asked.oci {
        asked.filters = FILTERS.map(str::to_owned).into();
    }
    Ok(asked)
}

/// Downloads and unpacks the kernel package that `package` is or depends on; returns its release.
fn kernel(directory: &Path, package: &str) -> Result<String> {
    let depends = output_of(Command::new("apt-cache").args(["depends", "--important", package]))?;
    let named = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let package = named.into_iter().find(|name| name.starts_with("linux-image-")).unwrap_or(package);
    let release = package.strip_prefix("linux-image-").context("the package of a kernel is linux-image-…")?;
    let target = directory.join("kernel");
    if !target.join("boot").join(format!("vmlinuz-{release}")).exists() {
        run_command(Command::new("apt-get").current_dir(directory).args(["download", package]))?;
        let prefix = format!("{package}_");
        let files = fs::read_dir(directory)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let file =
            files.into_iter().find(|name| name.starts_with(&prefix)).context("nothing was downloaded")?;
        run_command(Command::new("dpkg").arg("-x").arg(directory.join(file)).arg(&target))?;
        run_command(Command::new("depmod").arg("-b").arg(&target).arg(release))?;
    }
    Ok(release.to_owned())
}

/// Makes the first root file system: busybox, the modules in order, and `init.sh`.
fn initial_root(directory: &Path, release: &str) -> Result<()> {
    let place = directory.join("initial");
    for name in ["bin", "modules", "proc", "sys", "dev", "host", "layer", "root"] {
        fs::create_dir_all(place.join(name))?;
    }
    fs::copy("/usr/bin/busybox", place.join("bin/busybox"))?;
    let mut order: Vec<String> = Vec::new();
    for module in MODULES {
        let mut command = Command::new("modprobe");
        let listed =
            command.arg("-d").arg(directory.join("kernel")).args(["-S", release, "--show-depends", module]);
        for line in output_of(listed)?.lines() {
            let Some(path) = line.strip_prefix("insmod ").map(|path| PathBuf::from(path.trim())) else {
                continue;
            };
            let name = path.file_name().context("a module has no name")?.to_string_lossy().into_owned();
            fs::copy(&path, place.join("modules").join(&name))?;
            order.extend((!order.contains(&name)).then_some(name));
        }
    }
    fs::write(place.join("modules/order"), order.join("\n") + "\n")?;
    fs::write(place.join("init"), include_str!("init.sh"))?;
    let pack = "chmod +x init && find . | cpio --quiet -o -H newc | gzip -1 > ../initial.gz";
    run_command(Command::new("sh").current_dir(&place).args(["-c", pack]))
}

/// The executable of the suite, or of the tests of `shakedown oci`, built if need be.
fn suite(root: &Path, oci: bool) -> Result<PathBuf> {
    let (package, name) = if oci { ("shakedown-server", "oci") } else { ("shakedown-tests", "suite") };
    let arguments = ["test", "--no-run", "-p", package, "--test", name];
    let mut build = cargo();
    build.current_dir(root).args(arguments).arg("--message-format=json-render-diagnostics");
    let messages = output_of(&mut build)?;
    let mut executables = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_suite = message["target"]["name"] == name;
        Some(PathBuf::from(message["executable"].as_str().filter(|_| is_suite)?))
    });
    executables.next_back().context("cargo built no suite")
}

/// Boots, shows what the machine says, and fails if the suite did or the machine did not come to its end.
fn boot(directory: &Path, release: &str, systemd: bool) -> Result<()> {
    let place = directory.display();
    let job = if systemd { "/lib/systemd/systemd".to_owned() } else { format!("{place}/guest.sh") };
    let unit = "systemd.unit=vm-suite.service systemd.unified_cgroup_hierarchy=1";
    // An emulated timer is late on a busy machine, which the kernel takes for a broken one.
    let line = format!("console=ttyS0 quiet panic=-1 no_timer_check job={job} dir={place} {unit}");
    run_command(Command::new("chmod").arg("+x").arg(directory.join("guest.sh")))?;
    let share = "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap";
    // The machine ends with this task, even if the task is killed.
    let mut machine = Command::new("setpriv");
    machine
        .args(["--pdeathsig", "TERM", "--", "timeout", "-k", "5", SECONDS])
        .args(["setpriv", "--pdeathsig", "KILL", "--"])
        .args(["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max"])
        .args(["-m", "4g", "-smp", "2", "-nographic", "-no-reboot", "-nic", "none", "-virtfs", share])
        .arg("-kernel")
        .arg(directory.join("kernel/boot").join(format!("vmlinuz-{release}")))
        .arg("-initrd")
        .arg(directory.join("initial.gz"))
        .args(["-append", &line])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut machine = machine.spawn().context("the virtual machine could not be started")?;
    let mut status = None;
    for line in BufReader::new(machine.stdout.take().context("it has no output")?).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{}", line.trim_end());
        status = line.trim_end().strip_prefix("shakedown-vm: status ").map(str::to_owned).or(status);
    }
    machine.wait()?;
    match status.as_deref() {
        Some("0") => Ok(()),
        Some(_) => Err(Silent.into()),
        None => bail!("the virtual machine ended before the suite did"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is not said is Debian's kernel and what depends on it most.
    #[test]
    fn arguments_are_read() {
        let asked = |words: &[&str]| parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(asked(&[]).unwrap().filters, FILTERS);
        let some = asked(&["--user", "--kernel", "linux-image-6.12-amd64", "limits::"]).unwrap();
        assert!(
            some.who == Who::Login && some.kernel == "linux-image-6.12-amd64" && some.filters == ["limits::"]
        );
        assert_eq!(asked(&["--delegated"]).unwrap().who, Who::Delegated);
        assert!(asked(&["--oci"]).unwrap().filters.is_empty());
        assert!(asked(&["--fast"]).is_err());
    }
}
