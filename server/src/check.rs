//! Is the declaration possible? Everything that can be told without a driver is told before anything is made.
//!
//! The conditions of readiness are checked where they are understood, in the runtime's `wait::validate`.

use crate::config::{Asked, Config};
use shakedown_spec::{
    Attachment, Container, Failure, FailureKind, File, FileContent, ImageReference, ImageSource, MountSource,
    NamespaceMode, NetworkMode, Platform, Port, Seccomp, SecurityOptions,
};
use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Component, Path};

/// Checks a declaration and makes its paths of the host absolute; says where its image comes from.
///
/// # Errors
///
/// [`FailureKind::Invalid`] with everything that is wrong.
pub(crate) fn declaration(
    mut container: Container,
    directory: &Path,
    config: &Config,
) -> Result<(Container, Asked), Failure> {
    let mut problems = Problems::default();
    let asked = match &container.build {
        Some(build) => {
            Ok(Asked::made(ImageSource::Build(Box::new(build.as_ref().clone().beneath(directory)))))
        }
        None => config.asked(&container.image, directory),
    };
    match &asked {
        Ok(asked) => image(&container, asked, &mut problems),
        Err(error) => problems.add(
            "image",
            error.to_string(),
            "name an image such as `postgres:17`, or a source such as `oci:DIR`",
        ),
    }
    names(&container, &mut problems);
    addresses(&container, &mut problems);
    network_mode(&container, &mut problems);
    ports(&container.ports, &mut problems);
    paths(&container, &mut problems);
    limits(&container, &mut problems);
    options(&container, &mut problems);
    let asked = match asked {
        Ok(asked) if problems.0.is_empty() => asked,
        _ => return Err(problems.failure(&container.display_name())),
    };
    accepted(&container)?;
    crate::environment::settle(&mut container, directory, None)?;
    complete(&mut container, directory)?;
    Ok((container, asked))
}

/// What is wrong: the field, why, and what to do.
#[derive(Debug, Default)]
struct Problems(Vec<(String, String, String)>);

impl Problems {
    fn add(&mut self, field: impl Into<String>, reason: impl Into<String>, hint: impl Into<String>) {
        self.0.push((field.into(), reason.into(), hint.into()));
    }

    fn failure(self, name: &str) -> Failure {
        let mut failure =
            Failure::new(FailureKind::Invalid, format!("{name} is declared in a way that cannot work"));
        let mut told = HashSet::new();
        for (field, reason, hint) in self.0 {
            failure = failure.fact(field, reason);
            if told.insert(hint.clone()) {
                failure = failure.hint(hint);
            }
        }
        failure
    }
}

/// Is it an image that the declaration is written for, and a platform?
fn image(container: &Container, asked: &Asked, problems: &mut Problems) {
    if let Some(platform) = &container.platform
        && let Err(error) = platform.parse::<Platform>()
    {
        problems.add("platform", error.to_string(), "name a platform such as `linux/arm64`");
    }
    // Whoever names a source, or writes a rule in `shakedown.toml`, has decided on the image.
    let (Some(reference), false) = (&asked.reference, asked.replaced) else { return };
    let completed = |name: &String| name.parse::<ImageReference>().map(|known| known.name());
    let fits =
        container.compatible.iter().any(|name| completed(name).is_ok_and(|name| name == reference.name()));
    if fits || container.compatible.is_empty() {
        return;
    }
    let known = container.compatible.join("`, `");
    let reason = format!("`{}` is not known to work like `{known}`", container.image);
    let hint = format!(
        "if it does, say so with `.compatible_image(\"{}\")`; or have `shakedown.toml` replace the module's own image",
        container.image
    );
    problems.add("image", reason, hint);
}

/// Has the user accepted what he has to?
fn accepted(container: &Container) -> Result<(), Failure> {
    let Some(licence) = container.licence.as_ref().filter(|licence| !licence.accepted) else { return Ok(()) };
    let title = format!("{} may not be run before its licence is accepted", container.display_name());
    Err(Failure::new(FailureKind::Invalid, title)
        .fact("licence", licence.name.clone())
        .fact("text", licence.url.clone())
        .hint("once you have read it and accept it: `.accept_licence()`"))
}

fn names(container: &Container, problems: &mut Problems) {
    let aliases = container.networks.iter().flat_map(|net| net.aliases.iter().map(|alias| ("alias", alias)));
    let own = [("name", &container.name), ("hostname", &container.hostname)];
    let own = own.into_iter().filter_map(|(field, name)| name.as_ref().map(|name| (field, name)));
    for (field, name) in own.chain(aliases) {
        if !is_host_name(name) {
            let reason = format!("`{}` cannot be a host name", name.escape_debug());
            problems.add(
                field,
                reason,
                "use up to 63 letters, digits, `-`, `_` and `.`, beginning with a letter or digit",
            );
        }
    }
    let mut keys = HashSet::new();
    for attachment in &container.networks {
        let key = &attachment.network.key;
        if key.is_empty() || key.len() > 128 || key.contains(char::is_control) {
            problems.add(
                "network",
                format!("`{}` cannot be a name", key.escape_debug()),
                "use up to 128 printable characters",
            );
        }
        if !keys.insert(key) {
            problems.add(
                "network",
                format!("`{key}` is joined twice"),
                "join a network once, with all its aliases",
            );
        }
    }
    for (key, value) in &container.env {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            let reason = format!(
                "`{}` cannot be set (execve(2) passes NAME=value, ended by a zero)",
                key.escape_debug()
            );
            problems.add("env", reason, "use a name without `=`, and no zero bytes");
        }
    }
    for (name, address) in &container.extra_hosts {
        if !is_host_name(name) || (address.parse::<IpAddr>().is_err() && address != "host-gateway") {
            let reason = format!("`{name}` to `{address}` is not a name and an address");
            problems.add("extra_hosts", reason, "give an IP address, or `host-gateway` for the host");
        }
    }
}

/// Can a container that was declared so join this network later?
///
/// # Errors
///
/// [`FailureKind::Invalid`] with everything that is wrong.
pub(crate) fn joining(container: &Container, joined: &Attachment) -> Result<(), Failure> {
    let later = Container { networks: vec![joined.clone()], ..container.clone() };
    let mut problems = Problems::default();
    names(&later, &mut problems);
    addresses(&later, &mut problems);
    if !container.network_mode.is_default() {
        let reason = format!("a container in mode `{}` joins no networks", container.network_mode);
        problems.add("network_mode", reason, "leave the mode out");
    }
    if problems.0.is_empty() { Ok(()) } else { Err(problems.failure(&container.display_name())) }
}

/// Do the addresses lie in the subnets?
fn addresses(container: &Container, problems: &mut Problems) {
    const HINT: &str = "choose a subnet with `Network::subnet(\"10.5.0.0/24\")`, and addresses in it";
    for Attachment { network, ip, .. } in &container.networks {
        let (base, prefix) = match network.parsed_subnet() {
            Ok(Some(subnet)) => subnet,
            Ok(None) => {
                for (field, address) in [("gateway", network.gateway), ("ip", *ip)] {
                    if let Some(address) = address {
                        problems.add(field, format!("{address} is in no subnet: none is declared"), HINT);
                    }
                }
                continue;
            }
            Err(reason) => {
                problems.add("subnet", reason, HINT);
                continue;
            }
        };
        let (first, last) = (u32::from(base) + 1, u32::from(base) | (u32::MAX >> prefix));
        for (field, address) in [("gateway", network.gateway), ("ip", *ip)] {
            if let Some(address) = address.filter(|address| !(first..last).contains(&u32::from(*address))) {
                problems.add(field, format!("{address} is no address of a host in {base}/{prefix}"), HINT);
            }
        }
        let gateway = network.gateway.map_or(first, u32::from);
        if let Some(ip) = ip.filter(|ip| u32::from(*ip) == gateway) {
            problems.add("ip", format!("{ip} is the network's own address"), HINT);
        }
    }
}

fn network_mode(container: &Container, problems: &mut Problems) {
    let mode = &container.network_mode;
    if !mode.is_default() && !container.networks.is_empty() {
        let hint = "leave out either the mode or the networks";
        problems.add("network_mode", format!("a container in mode `{mode}` joins no networks"), hint);
    }
    if matches!(mode, NetworkMode::None | NetworkMode::Container(_)) && !container.ports.is_empty() {
        let hint = "publish ports of the container whose network it is";
        problems.add("ports", format!("a container in mode `{mode}` has no ports of its own"), hint);
    }
    if container.host_ports.contains(&0) {
        problems.add(
            "host_ports",
            "there is no port 0",
            "name the port that the service on this machine listens on",
        );
    }
    if !container.host_ports.is_empty() && matches!(mode, NetworkMode::None | NetworkMode::Container(_)) {
        let reason = format!("a container in mode `{mode}` has no way to the host of its own");
        problems.add("host_ports", reason, "leave the mode out");
    }
    if container.outbound == Some(true) && *mode == NetworkMode::None {
        problems.add("outbound", "a container without a network reaches nothing", "leave the mode out");
    }
    let internal = |joined: &Attachment| joined.network.internal;
    let apart = !container.networks.is_empty() && container.networks.iter().all(internal);
    if container.outbound == Some(true) && apart {
        let hint = "join a network that is not internal as well";
        problems.add("outbound", "a container on internal networks alone reaches nothing outside", hint);
    }
    let moved = |port: &&Port| port.host.is_some_and(|host| host != port.container);
    if let Some(port) = container.ports.iter().find(moved).filter(|_| *mode == NetworkMode::Host) {
        let reason = format!("{port} of a container in mode `host` is the same port of the host");
        problems.add("ports", reason, "leave the host's port out");
    }
    for server in container.dns.iter().filter(|server| server.parse::<IpAddr>().is_err()) {
        problems.add("dns", format!("`{}` is not an address", server.escape_debug()), "give IP addresses");
    }
    for domain in container.dns_search.iter().filter(|domain| !domain.split('.').all(is_host_name)) {
        problems.add(
            "dns_search",
            format!("`{}` is not a domain", domain.escape_debug()),
            "give domain names",
        );
    }
}

fn is_host_name(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn ports(ports: &[Port], problems: &mut Problems) {
    let (mut inside, mut outside) = (HashSet::new(), HashSet::new());
    for port in ports {
        if port.container == 0 || port.host == Some(0) {
            problems.add("ports", "there is no port 0", "leave `host` out to get a free port");
        }
        if !inside.insert((port.container, port.protocol)) {
            problems.add("ports", format!("{port} is declared twice"), "declare a port once");
        }
        if let Some(host) = port.host
            && !outside.insert((host, port.protocol, port.address))
        {
            problems.add(
                "ports",
                format!("port {host} of the host is given to two ports"),
                "leave one of them free",
            );
        }
    }
}

fn paths(container: &Container, problems: &mut Problems) {
    const HINT: &str = "give an absolute path in the container, without `..`";
    let mut absolute = |field: &str, path: &str| {
        let upwards = Path::new(path).components().any(|part| part == Component::ParentDir);
        if !path.starts_with('/') || upwards || path.contains('\0') {
            problems.add(field, format!("`{}` is not an absolute path", path.escape_debug()), HINT);
        }
    };
    container.workdir.iter().for_each(|path| absolute("workdir", path));
    container.files.iter().for_each(|file| absolute("files", &file.path));
    container.mounts.iter().for_each(|mount| absolute("mounts", &mount.target));
    let mut targets = HashSet::new();
    for mount in &container.mounts {
        let target: &Path = mount.target.as_ref();
        if target == Path::new("/") {
            problems.add("mounts", "nothing can be mounted over `/`", "mount at a directory below it");
        }
        if !targets.insert(target.components().collect::<Vec<_>>()) {
            problems.add(
                "mounts",
                format!("two mounts at `{}`", mount.target),
                "mount one thing at one place",
            );
        }
    }
    for file in &container.files {
        if file.path == "/" {
            problems.add("files", "`/` cannot be replaced", "name the file or directory below it");
        }
    }
}

/// Numbers and ranges with commas between them, as cpuset(7) has them.
fn is_list_of_numbers(list: &str) -> bool {
    let number = |text: &str| text.parse::<u32>().ok();
    list.split(',').all(|part| match part.split_once('-') {
        Some((first, last)) => {
            matches!((number(first), number(last)), (Some(first), Some(last)) if first <= last)
        }
        None => number(part).is_some(),
    })
}

fn limits(container: &Container, problems: &mut Problems) {
    let resources = &container.resources;
    let zero = [
        ("cpus", resources.cpu_millis),
        ("memory", resources.memory),
        ("pids_limit", resources.pids),
        ("memory_reservation", resources.memory_reservation),
        ("shm_size", resources.shm_size),
    ];
    for (field, _) in zero.into_iter().filter(|(_, limit)| *limit == Some(0)) {
        problems.add(field, "a limit of zero lets nothing run", "leave it out for no limit");
    }
    if let (Some(memory), Some(both)) = (resources.memory, resources.memory_swap)
        && both < memory
    {
        let reason = format!("memory and swap together ({both}) are less than memory alone ({memory})");
        problems.add("memory_swap", reason, "`memory_swap` counts both; the value of `memory` means no swap");
    }
    if resources.cpu_shares.is_some_and(|shares| !(2..=262_144).contains(&shares)) {
        problems.add("cpu_shares", "shares are 2 to 262144", "1024 is the weight of a container without it");
    }
    if resources.blkio_weight.is_some_and(|weight| !(10..=1000).contains(&weight)) {
        problems.add("blkio_weight", "a weight is 10 to 1000", "leave it out for the usual weight");
    }
    for (field, list) in [("cpuset_cpus", &resources.cpuset_cpus), ("cpuset_mems", &resources.cpuset_mems)] {
        if list.as_deref().is_some_and(|list| !is_list_of_numbers(list)) {
            problems.add(field, "it is no list of numbers", "write numbers and ranges, such as `0-2,7`");
        }
    }
    for limit in resources.ulimits.iter().filter(|limit| limit.soft > limit.hard) {
        let reason =
            format!("{}: the soft limit {} is above the hard limit {}", limit.name, limit.soft, limit.hard);
        problems.add("ulimits", reason, "raise the hard limit");
    }
    if container.timeout.is_some_and(|limit| limit.is_zero()) {
        problems.add("timeout", "nothing is ready in no time", "leave it out for 60 s");
    }
}

fn options(container: &Container, problems: &mut Problems) {
    if let Err(reason) = SecurityOptions::read(&container.security_opt) {
        let hint = "they are written as for `docker run --security-opt`, such as `seccomp=profile.json`";
        problems.add("security_opt", reason, hint);
    }
    if let Some(domain) = container.domainname.as_ref().filter(|domain| !domain.split('.').all(is_host_name))
    {
        problems.add(
            "domainname",
            format!("`{}` is not a domain", domain.escape_debug()),
            "give a domain name",
        );
    }
    if !matches!(container.cgroupns, NamespaceMode::Private | NamespaceMode::Host) {
        let reason = format!("`{}` is no mode of control groups", container.cgroupns);
        problems.add("cgroupns", reason, "use `private` or `host`");
    }
    if let Some(mode) = container.userns.as_ref()
        && !matches!(mode, NamespaceMode::Private | NamespaceMode::Host)
    {
        problems.add("userns", format!("`{mode}` is no mode of users"), "use `private` or `host`");
    }
    if container.pid == NamespaceMode::Shareable {
        problems.add("pid", "`shareable` is a mode of `ipc`", "processes can be shared without it");
    }
    let covered = |file: &File| {
        container.mounts.iter().find(|mount| {
            let memory = matches!(mount.source, MountSource::Tmpfs { .. } | MountSource::Image { .. });
            memory && Path::new(&file.path).starts_with(&mount.target)
        })
    };
    for (file, mount) in container.files.iter().filter_map(|file| Some((file, covered(file)?))) {
        let reason = format!("`{}` would be hidden by what is mounted at `{}`", file.path, mount.target);
        problems.add("files", reason, "put it elsewhere");
    }
    for (name, _) in container.raw.iter().filter(|(name, _)| !["docker", "native"].contains(&name.as_str())) {
        let reason = format!("there is no driver `{}`", name.escape_debug());
        problems.add("raw", reason, "the drivers are `docker` and `native`");
    }
}

/// Reads a profile of seccomp that is named by its file, so that every driver gets its text.
fn read_profile(option: &mut String, directory: &Path, name: &str) -> Result<(), Failure> {
    let read = SecurityOptions::read(std::slice::from_ref(option)).unwrap_or_default();
    let Some(Seccomp::File(file)) = read.seccomp else { return Ok(()) };
    let path = directory.join(file);
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Failure::new(FailureKind::Invalid, format!("the seccomp profile for {name} could not be read"))
            .fact("file", path.display().to_string())
            .fact("reason", error.to_string())
    })?;
    *option = format!("seccomp={text}");
    Ok(())
}

fn complete(container: &mut Container, directory: &Path) -> Result<(), Failure> {
    let name = container.display_name();
    for option in &mut container.security_opt {
        read_profile(option, directory, &name)?;
    }
    let absolute = |path: &mut String| {
        // Both were text; a path that is joined from texts is text again.
        *path = directory.join(&*path).to_string_lossy().into_owned();
    };
    for file in &mut container.files {
        if let FileContent::Host(source) = &mut file.content {
            absolute(source);
        }
    }
    for mount in &mut container.mounts {
        if let MountSource::Bind { source, .. } = &mut mount.source {
            absolute(source);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use shakedown_spec::{Configure, Licence, Mount, Network};

    fn check(container: Container) -> Result<(Container, Asked), Failure> {
        declaration(container, Path::new("/shop"), &Config::default())
    }

    #[track_caller]
    fn refused(change: impl FnOnce(Container) -> Container) -> String {
        check(change(Container::of("shop/orders"))).unwrap_err().to_string()
    }

    /// A user reads what is wrong, where, and what to do, before anything was started.
    #[test]
    fn wrong_declarations_are_told() {
        insta::assert_snapshot!(refused(|c| c.image("Shop/Orders")), @r"
        Orders is declared in a way that cannot work
          image: `Shop/Orders` is not an image reference: the name has to be lower case; try `orders`
        hint: name an image such as `postgres:17`, or a source such as `oci:DIR`
        ");
        insta::assert_snapshot!(refused(|c| c.port(0).port(80).port(80)), @r"
        orders is declared in a way that cannot work
          ports: there is no port 0
          ports: 80/tcp is declared twice
        hint: leave `host` out to get a free port
        hint: declare a port once
        ");
        insta::assert_snapshot!(refused(|c| c.port(Port::tcp(1).on_host(8080)).port(Port::tcp(2).on_host(8080))), @r"
        orders is declared in a way that cannot work
          ports: port 8080 of the host is given to two ports
        hint: leave one of them free
        ");
        insta::assert_snapshot!(refused(|c| c.file("etc/app.toml", "").mount(Mount::tmpfs("/a/../b"))), @r"
        orders is declared in a way that cannot work
          files:  `etc/app.toml` is not an absolute path
          mounts: `/a/../b` is not an absolute path
        hint: give an absolute path in the container, without `..`
        ");
        insta::assert_snapshot!(refused(|c| c.cpus(0.0).memory(0)), @r"
        orders is declared in a way that cannot work
          cpus:   a limit of zero lets nothing run
          memory: a limit of zero lets nothing run
        hint: leave it out for no limit
        ");
        insta::assert_snapshot!(refused(|c| c.name("orders db").env("A=B", "")), @r"
        orders db is declared in a way that cannot work
          name: `orders db` cannot be a host name
          env:  `A=B` cannot be set (execve(2) passes NAME=value, ended by a zero)
        hint: use up to 63 letters, digits, `-`, `_` and `.`, beginning with a letter or digit
        hint: use a name without `=`, and no zero bytes
        ");
        insta::assert_snapshot!(refused(|c| c.network(&Network::named("x")).network(&Network::named("x"))), @r"
        orders is declared in a way that cannot work
          network: `x` is joined twice
        hint: join a network once, with all its aliases
        ");
    }

    /// An image that a module was not written for is not started by mistake; whoever says that it fits is believed.
    #[test]
    fn foreign_images_are_refused_unless_they_are_said_to_fit() {
        let postgres =
            || Container::of("postgres:17").made_for(["postgres", "postgis/postgis"]).name("postgres");
        let fits = |container: Container| check(container).unwrap();
        fits(postgres());
        fits(postgres().image("docker.io/library/postgres:16"));
        fits(postgres().image("postgis/postgis:17-3.5"));
        fits(postgres().image("oci:images/pg"));
        fits(postgres().compatible_image("mycorp/pg:17"));
        insta::assert_snapshot!(check(postgres().image("mycorp/pg:17")).unwrap_err(), @r#"
        postgres is declared in a way that cannot work
          image: `mycorp/pg:17` is not known to work like `postgres`, `postgis/postgis`
        hint: if it does, say so with `.compatible_image("mycorp/pg:17")`; or have `shakedown.toml` replace the module's own image
        "#);
        insta::assert_snapshot!(refused(|c| c.platform("arm64")), @r"
        orders is declared in a way that cannot work
          platform: `arm64` is not a platform such as `linux/amd64` or `linux/arm/v7`
        hint: name a platform such as `linux/arm64`
        ");
    }

    /// Nobody accepts a licence for the user.
    #[test]
    fn a_licence_is_accepted_by_the_user() {
        let mut ledger = Container::of("registry.example.com/ledger:9");
        ledger.licence = Some(Licence::new("Ledger end-user licence", "https://ledger.example.com/eula"));
        insta::assert_snapshot!(check(ledger.clone()).unwrap_err(), @r"
        ledger may not be run before its licence is accepted
          licence: Ledger end-user licence
          text:    https://ledger.example.com/eula
        hint: once you have read it and accept it: `.accept_licence()`
        ");
        check(ledger.accept_licence()).unwrap();
    }

    /// Relative paths mean the test's directory, not the keeper's.
    #[test]
    fn paths_of_the_host_become_absolute() {
        let declared = Container::of("oci:images/orders")
            .copy(File::host("/etc/app.toml", "app.toml"))
            .mount(Mount::bind("/data", "/data"));
        let (container, asked) = check(declared).unwrap();
        assert_eq!(container.files[0].content, FileContent::Host("/shop/app.toml".into()));
        assert_eq!(container.mounts[0].source, MountSource::host("/data"));
        assert_eq!(asked.source.to_string(), "oci:/shop/images/orders");
    }
}
