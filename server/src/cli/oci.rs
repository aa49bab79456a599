//! `shakedown oci`: the command line of an OCI runtime, as runc and crun have it.

use super::{Done, say};
use clap::{Args, Subcommand};
use shakedown_runtime::native::oci::{self, Create, Delete, Exec, Kill};
use shakedown_spec::{Failure, FailureKind};
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// What `--version` prints: engines show the first line, and look for the features in the last one. `SYSTEMD` stands for
/// notify sockets, as in crun.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\nspec: 1.2.0\n+SYSTEMD +CAP +SECCOMP");

/// Options that stand before the command.
#[derive(Debug, Args)]
#[command(version = VERSION)]
pub(super) struct Oci {
    /// Where the states of containers are kept.
    #[arg(long)]
    root: Option<PathBuf>,
    /// Where failures are written to, besides standard error.
    #[arg(long)]
    log: Option<PathBuf>,
    /// `text` or `json`.
    #[arg(long, default_value = "text")]
    log_format: String,
    /// Accepted for callers that always say it; nothing is logged but failures.
    #[arg(long, num_args = 0..=1, require_equals = true)]
    debug: Option<Option<String>>,
    /// Control groups are made in the file system; by systemd they are not.
    #[arg(long)]
    systemd_cgroup: bool,
    /// `cgroupfs`; with `disabled` there are no control groups.
    #[arg(long, default_value = "cgroupfs")]
    cgroup_manager: String,
    /// Accepted for callers that always say it: what an ordinary user cannot do is found out where it is done.
    #[arg(long, num_args = 0..=1, require_equals = true)]
    rootless: Option<Option<String>>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes a container; its program runs once it is started.
    Create(Make),
    /// Lets the program of a created container run.
    Start { id: String },
    /// Creates, starts, waits for the end and deletes.
    Run {
        #[command(flatten)]
        make: Make,
        /// Returns once the program runs.
        #[arg(short, long)]
        detach: bool,
        /// Keeps the container after its end, until it is deleted.
        #[arg(long)]
        keep: bool,
    },
    /// Prints the state of a container.
    State { id: String },
    /// Sends a signal to a container.
    Kill {
        /// To all of its processes.
        #[arg(short, long)]
        all: bool,
        id: String,
        #[arg(default_value = "SIGTERM")]
        signal: String,
    },
    /// Takes away what is left of a container.
    Delete {
        /// Kills it first if it runs; one that does not exist is no error.
        #[arg(short, long)]
        force: bool,
        /// All containers whose name matches this regular expression.
        #[arg(long)]
        regex: bool,
        id: String,
    },
    /// Runs a process in a container.
    Exec(Box<Enter>),
    /// Stops all processes of a container.
    Pause { id: String },
    /// Lets the processes of a paused container go on.
    Resume { id: String },
    /// Changes the limits of a container.
    Update {
        /// A file with the limits, in the form of `linux.resources`; `-` is standard input. Without it, the options count.
        #[arg(short, long)]
        resources: Option<PathBuf>,
        #[command(flatten)]
        limits: Box<Limits>,
        id: String,
    },
    /// Lists the processes of a container.
    Ps {
        /// `table` or `json`.
        #[arg(short, long, default_value = "table")]
        format: String,
        id: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        options: Vec<String>,
    },
    /// Lists containers.
    List {
        /// `table` or `json`.
        #[arg(short, long, default_value = "table")]
        format: String,
        /// Prints the ids only.
        #[arg(short, long)]
        quiet: bool,
    },
    /// Tells what a container uses, and when it runs out of memory, a line of JSON for each.
    Events {
        /// Prints what it uses now, and ends.
        #[arg(long)]
        stats: bool,
        /// How often what it uses is told: `100ms`, `5s`, `1m`.
        #[arg(long, default_value = "5s", value_parser = duration)]
        interval: Duration,
        id: String,
    },
    /// Writes a config.json to begin with.
    Spec {
        #[arg(short, long, default_value = ".")]
        bundle: PathBuf,
        /// For an ordinary user.
        #[arg(long)]
        rootless: bool,
    },
    /// Prints what this runtime can do.
    Features,
}

/// The limits that `update` takes as options, as runc and crun have them.
#[derive(Debug, Args)]
struct Limits {
    /// Weight of block input and output.
    #[arg(long)]
    blkio_weight: Option<u16>,
    /// Period of the processor quota, in microseconds.
    #[arg(long)]
    cpu_period: Option<u64>,
    /// Processor time in a period, in microseconds; -1 for no limit.
    #[arg(long, allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// Weight of processor time.
    #[arg(long, alias = "cpu-shares")]
    cpu_share: Option<u64>,
    /// Period of realtime processor time, in microseconds.
    #[arg(long)]
    cpu_rt_period: Option<u64>,
    /// Realtime processor time in a period, in microseconds.
    #[arg(long, allow_hyphen_values = true)]
    cpu_rt_runtime: Option<i64>,
    /// Processors, such as `0-3,5`.
    #[arg(long)]
    cpuset_cpus: Option<String>,
    /// Memory nodes.
    #[arg(long)]
    cpuset_mems: Option<String>,
    /// Memory, in bytes; -1 for no limit.
    #[arg(long, allow_hyphen_values = true)]
    memory: Option<String>,
    /// Memory below which nothing is taken away, in bytes.
    #[arg(long, allow_hyphen_values = true)]
    memory_reservation: Option<String>,
    /// Memory and swap together, in bytes; -1 for no limit.
    #[arg(long, allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Processes; -1 for no limit.
    #[arg(long, allow_hyphen_values = true)]
    pids_limit: Option<i64>,
}

impl Limits {
    /// In the form of `linux.resources`: what is not given is not there.
    fn json(&self) -> Result<serde_json::Value, Failure> {
        let mut all = serde_json::json!({
            "cpu": {
                "period": self.cpu_period, "quota": self.cpu_quota, "shares": self.cpu_share,
                "realtimePeriod": self.cpu_rt_period, "realtimeRuntime": self.cpu_rt_runtime,
                "cpus": self.cpuset_cpus, "mems": self.cpuset_mems,
            },
            "memory": {
                "limit": bytes(self.memory.as_deref())?, "reservation": bytes(self.memory_reservation.as_deref())?,
                "swap": bytes(self.memory_swap.as_deref())?,
            },
            "pids": { "limit": self.pids_limit },
            "blockIO": { "weight": self.blkio_weight },
        });
        if let Some(sections) = all.as_object_mut() {
            for section in sections.values_mut().filter_map(|section| section.as_object_mut()) {
                section.retain(|_, value| !value.is_null());
            }
            sections.retain(|_, section| section.as_object().is_some_and(|section| !section.is_empty()));
        }
        Ok(all)
    }
}

/// A number of bytes, with `k`, `m` or `g` behind it.
fn bytes(text: Option<&str>) -> Result<Option<i64>, Failure> {
    let Some(text) = text else { return Ok(None) };
    let lower = text.to_ascii_lowercase();
    let (digits, shift) = match lower.trim_end_matches('b').as_bytes() {
        [digits @ .., b'k'] => (digits, 10),
        [digits @ .., b'm'] => (digits, 20),
        [digits @ .., b'g'] => (digits, 30),
        digits => (digits, 0),
    };
    let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<i64>().ok());
    let number = number.and_then(|number| number.checked_mul(1 << shift));
    let wrong = || Failure::new(FailureKind::Invalid, format!("`{text}` is not a number of bytes"));
    number.map(Some).ok_or_else(wrong)
}

/// A length of time as Go writes it, with one unit.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("it is written as `100ms`, `5s` or `1m`".to_owned()),
    };
    let number = number.parse().ok().and_then(|number: u64| number.checked_mul(milliseconds));
    number.filter(|all| *all > 0).map(Duration::from_millis).ok_or_else(|| "it is more than 0".to_owned())
}

#[derive(Debug, Args)]
struct Make {
    /// The directory of config.json.
    #[arg(short, long, default_value = ".")]
    bundle: PathBuf,
    /// Another file of the bundle than config.json.
    #[arg(short = 'f', long)]
    config: Option<PathBuf>,
    /// Where to write the id of the first process.
    #[arg(long)]
    pid_file: Option<PathBuf>,
    /// The socket that gets the master of the container's terminal.
    #[arg(long)]
    console_socket: Option<PathBuf>,
    /// How many descriptors behind the standard ones the program gets.
    #[arg(long, default_value_t = 0)]
    preserve_fds: u32,
    /// Accepted and not needed: the root is always changed by pivot_root, which works on every file system here.
    #[arg(long)]
    no_pivot: bool,
    /// Accepted and not needed: no session keyring is made.
    #[arg(long)]
    no_new_keyring: bool,
    /// Accepted and not needed: no process stands between this one and the container's.
    #[arg(long)]
    no_subreaper: bool,
    id: String,
}

#[derive(Debug, Args)]
struct Enter {
    /// A file with the process, in the form of `process` in config.json.
    #[arg(short, long)]
    process: Option<PathBuf>,
    /// The working directory.
    #[arg(long)]
    cwd: Option<String>,
    /// `NAME=value`; may be repeated.
    #[arg(short, long)]
    env: Vec<String>,
    /// `uid` or `uid:gid`.
    #[arg(short, long)]
    user: Option<String>,
    /// With a terminal.
    #[arg(short, long)]
    tty: bool,
    /// Returns once the process runs.
    #[arg(short, long)]
    detach: bool,
    /// Where to write the id of the process.
    #[arg(long)]
    pid_file: Option<PathBuf>,
    /// The socket that gets the master of the terminal.
    #[arg(long)]
    console_socket: Option<PathBuf>,
    /// How many descriptors behind the standard ones the program gets.
    #[arg(long, default_value_t = 0)]
    preserve_fds: u32,
    /// A capability on top of the container's; may be repeated.
    #[arg(short, long)]
    cap: Vec<String>,
    /// A group on top of the user's; may be repeated.
    #[arg(short = 'g', long)]
    additional_gids: Vec<u32>,
    /// Set-user-id programs give nothing.
    #[arg(long)]
    no_new_privs: bool,
    /// The label of SELinux.
    #[arg(long)]
    process_label: Option<String>,
    /// The profile of AppArmor.
    #[arg(long)]
    apparmor: Option<String>,
    /// A paused container is no reason to fail.
    #[arg(long)]
    ignore_paused: bool,
    /// A control group below the container's: `PATH`, or `CONTROLLER,…:PATH`; may be repeated.
    #[arg(long)]
    cgroup: Vec<String>,
    id: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    argv: Vec<String>,
}

pub(super) fn main(asked: Oci) -> Done {
    let (log, format) = (asked.log.clone(), asked.log_format.clone());
    let done = carry_out(asked);
    if let (Err(failure), Some(path)) = (&done, log) {
        write_log(&path, &format, failure);
    }
    done
}

/// Callers such as containerd read the reason of a failure from the log.
fn write_log(path: &PathBuf, format: &str, failure: &Failure) {
    let text = failure.to_string();
    let line = if format == "json" {
        serde_json::json!({ "level": "error", "msg": text }).to_string()
    } else {
        format!("level=error msg={text:?}")
    };
    // The failure is told on standard error as well.
    let file = File::options().create(true).append(true).open(path);
    let _ = file.and_then(|mut file| writeln!(file, "{line}"));
}

/// `/run` for root, the user's own place for others.
fn default_root() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty());
    match runtime {
        Some(directory) => PathBuf::from(directory).join("shakedown-oci"),
        None => PathBuf::from("/run/shakedown-oci"),
    }
}

fn carry_out(asked: Oci) -> Done {
    if asked.systemd_cgroup || asked.cgroup_manager == "systemd" {
        let title = "control groups made by systemd are not supported; use `cgroupfs`";
        return Err(Failure::new(FailureKind::Unsupported, title));
    }
    let root = asked.root.unwrap_or_else(default_root);
    if matches!(asked.command, Command::Create(_) | Command::Run { .. } | Command::Exec(_)) {
        oci::protect_program()?;
    }
    let done = match asked.command {
        Command::Create(make) => oci::create(&make.request(root)),
        Command::Start { id } => oci::start(&root, &id),
        Command::Run { make, detach, keep } => {
            return oci::run(&Create { keep, ..make.request(root) }, detach).map(code);
        }
        Command::State { id } => print(&oci::state(&root, &id)?),
        Command::Kill { all, id, signal } => oci::kill(&root, &id, &Kill { signal, all }),
        Command::Delete { force, regex: true, id } => oci::delete_matching(&root, &id, Delete { force }),
        Command::Delete { force, id, .. } => oci::delete(&root, &id, Delete { force }),
        // A failure of this program, which is not one of the program that was to run: as runc tells it.
        Command::Exec(enter) => {
            return oci::execute(&enter.request(root)).map(code).or_else(|failure| exec_failed(&failure));
        }
        Command::Pause { id } => oci::pause(&root, &id),
        Command::Resume { id } => oci::resume(&root, &id),
        Command::Update { resources: Some(file), id, .. } => oci::update(&root, &id, &read(&file)?),
        Command::Update { limits, id, .. } => oci::update(&root, &id, limits.json()?.to_string().as_bytes()),
        Command::Ps { format, id, options } => {
            print_processes(&format, &options, &oci::processes(&root, &id)?)
        }
        Command::List { format, quiet } => print_list(&format, quiet, &oci::list(&root)?),
        Command::Events { stats, interval, id } => {
            let interval = Some(interval).filter(|_| !stats);
            oci::events(&root, &id, interval, &mut |line| say(format!("{line}\n").as_bytes()))
        }
        Command::Spec { bundle, rootless } => oci::specification(&bundle, rootless),
        Command::Features => print(&oci::features()),
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn exec_failed(failure: &Failure) -> Done {
    // Nobody reads standard error if this fails.
    let _ = writeln!(std::io::stderr(), "error: {failure}");
    Ok(ExitCode::from(255))
}

fn code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1))
}

fn read(path: &PathBuf) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|mut file| file.read_to_end(&mut bytes))
    };
    read.map_err(|error| super::io_failure(&format!("{} cannot be read", path.display()), &error))?;
    Ok(bytes)
}

fn print(value: &serde_json::Value) -> Result<(), Failure> {
    say(format!("{value:#}\n").as_bytes())
}

fn print_processes(format: &str, options: &[String], processes: &[i32]) -> Result<(), Failure> {
    if format == "json" {
        return say(format!("{}\n", serde_json::json!(processes)).as_bytes());
    }
    let options = if options.is_empty() { &["-ef".to_owned()] } else { options };
    let listed = std::process::Command::new("ps").args(options).output();
    let listed = listed.map_err(|error| super::io_failure("`ps` cannot be run", &error))?;
    let text = String::from_utf8_lossy(&listed.stdout);
    let header = text.lines().next().unwrap_or_default();
    let column = header.split_ascii_whitespace().position(|name| name == "PID");
    let ours = |line: &&str| {
        let pid = column.and_then(|column| line.split_ascii_whitespace().nth(column)?.parse().ok());
        pid.is_some_and(|pid| processes.contains(&pid))
    };
    let lines: String =
        std::iter::once(header).chain(text.lines().filter(ours)).map(|line| format!("{line}\n")).collect();
    say(lines.as_bytes())
}

fn print_list(format: &str, quiet: bool, containers: &[oci::Listed]) -> Result<(), Failure> {
    if format == "json" {
        let text = serde_json::to_string(containers);
        let text = text.map_err(|error| super::io_failure("the list cannot be written", &error.into()))?;
        return say(format!("{text}\n").as_bytes());
    }
    let mut lines = if quiet {
        String::new()
    } else {
        "ID          PID         STATUS      BUNDLE      CREATED                OWNER\n".to_owned()
    };
    for oci::Listed { id, pid, status, bundle, created, owner, .. } in containers {
        if quiet {
            lines.push_str(&format!("{id}\n"));
            continue;
        }
        let bundle = bundle.display();
        lines.push_str(&format!("{id:<11} {pid:<11} {status:<11} {bundle:<11} {created:<22} {owner}\n"));
    }
    say(lines.as_bytes())
}

impl Make {
    fn request(self, root: PathBuf) -> Create {
        Create {
            root,
            id: self.id,
            bundle: self.bundle,
            config: self.config,
            pid_file: self.pid_file,
            console_socket: self.console_socket,
            preserve_fds: self.preserve_fds,
            keep: false,
            master: None,
        }
    }
}

impl Enter {
    fn request(self, root: PathBuf) -> Exec {
        Exec {
            root,
            id: self.id,
            process: self.process,
            argv: self.argv,
            env: self.env,
            cwd: self.cwd,
            user: self.user,
            tty: self.tty,
            detach: self.detach,
            pid_file: self.pid_file,
            console_socket: self.console_socket,
            preserve_fds: self.preserve_fds,
            capabilities: self.cap,
            groups: self.additional_gids,
            no_new_privileges: self.no_new_privs,
            label: self.process_label,
            apparmor: self.apparmor,
            ignore_paused: self.ignore_paused,
            cgroups: self.cgroup,
        }
    }
}
