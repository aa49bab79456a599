//! Devices by their names in the Container Device Interface (CDI 1.0): what a vendor says that a device consists of.
//!
//! The specifications are JSON or YAML files in `/etc/cdi` and `/var/run/cdi`; those in the second directory count more.

use crate::driver::Result;
use crate::native::devices::HostDevice;
use serde::Deserialize;
use shakedown_spec::{Container, Device, Failure, FailureKind, Mount};
use std::fs;
use std::path::{Path, PathBuf};

/// Where specifications are, the less important first.
const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Specification {
    kind: String,
    #[serde(default)]
    devices: Vec<NamedDevice>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NamedDevice {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

/// What a container gets.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<Shown>,
    hooks: Vec<serde_json::Value>,
    additional_gids: Vec<u32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    path: String,
    host_path: Option<String>,
    permissions: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    host_path: String,
    container_path: String,
    #[serde(default)]
    options: Vec<String>,
}

/// Changes the declaration as the named devices ask for, and finds their nodes.
pub(super) fn apply(container: &mut Container, devices: &mut Vec<HostDevice>) -> Result<()> {
    if container.cdi_devices.is_empty() {
        return Ok(());
    }
    apply_from(&DIRECTORIES.map(PathBuf::from), container, devices)
}

fn apply_from(
    directories: &[PathBuf],
    container: &mut Container,
    devices: &mut Vec<HostDevice>,
) -> Result<()> {
    let service = container.display_name();
    for name in std::mem::take(&mut container.cdi_devices) {
        let failed = |reason: String| {
            let title = format!("{service} cannot have the device `{name}`");
            Failure::new(FailureKind::Unsupported, title).fact("reason", reason)
        };
        for edits in find(directories, &name).map_err(failed)? {
            if !edits.hooks.is_empty() {
                return Err(failed(
                    "its specification has hooks, which the native driver does not run".to_owned(),
                ));
            }
            for pair in &edits.env {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                container.env.entry(key.to_owned()).or_insert_with(|| value.to_owned());
            }
            for node in &edits.device_nodes {
                let source = node.host_path.clone().unwrap_or_else(|| node.path.clone());
                let device =
                    Device { source, target: Some(node.path.clone()), permissions: node.permissions.clone() };
                devices.extend(HostDevice::find(&device)?);
            }
            for mount in &edits.mounts {
                let shown = Mount::bind(&mount.host_path, &mount.container_path);
                let read_only = mount.options.iter().any(|option| option == "ro");
                container.mounts.push(if read_only { shown.read_only() } else { shown });
            }
            container.group_add.extend(edits.additional_gids.iter().map(ToString::to_string));
        }
    }
    Ok(())
}

/// What the device `vendor/class=name` consists of.
fn find(directories: &[PathBuf], name: &str) -> std::result::Result<Vec<Edits>, String> {
    let (kind, device) = name.split_once('=').ok_or("a name is `vendor/class=device`")?;
    let mut known = Vec::new();
    let mut found = None;
    for file in directories.iter().flat_map(|directory| specifications(directory)) {
        let specification = read(&file).map_err(|reason| format!("{}: {reason}", file.display()))?;
        if specification.kind == kind
            && let Some(named) = specification.devices.iter().find(|named| named.name == device)
        {
            found = Some(vec![specification.container_edits.clone(), named.container_edits.clone()]);
        }
        let kind = &specification.kind;
        known.extend(specification.devices.iter().map(|named| format!("{kind}={}", named.name)));
    }
    let there = if known.is_empty() { "there are none".to_owned() } else { known.join(", ") };
    let places =
        directories.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(" and ");
    found.ok_or_else(|| format!("the specifications in {places} do not have it: {there}"))
}

fn specifications(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let known = |path: &PathBuf| path.extension().is_some_and(|kind| kind == "json" || kind == "yaml");
    let mut found: Vec<PathBuf> = entries.filter(known).collect();
    found.sort();
    found
}

fn read(file: &Path) -> std::result::Result<Specification, String> {
    let text = fs::read_to_string(file).map_err(|error| error.to_string())?;
    // JSON is YAML as well.
    serde_saphyr::from_str(&text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device is what its specification says, and one that is not there is told with those that are.
    #[test]
    fn devices_are_found_by_name() {
        let place = tempfile::tempdir().unwrap();
        let text = "cdiVersion: 0.6.0\nkind: shop.example/till\ncontainerEdits:\n  env: [TILLS=1]\ndevices:\n\
            - name: front\n  containerEdits:\n    deviceNodes:\n    - path: /dev/till\n      hostPath: /dev/null\n\
            \x20   mounts:\n    - {hostPath: /etc/hostname, containerPath: /till, options: [ro, bind]}\n";
        fs::write(place.path().join("till.yaml"), text).unwrap();
        let json = r#"{"cdiVersion":"0.6.0","kind":"shop.example/scale","devices":[{"name":"1","containerEdits":{}}]}"#;
        fs::write(place.path().join("scale.json"), json).unwrap();
        let directories = [place.path().join("none"), place.path().to_owned()];
        let mut container = Container::of("shop/orders");
        let mut devices = Vec::new();
        container.cdi_devices = vec!["shop.example/till=front".to_owned(), "shop.example/scale=1".to_owned()];
        apply_from(&directories, &mut container, &mut devices).unwrap();
        assert_eq!((container.env["TILLS"].as_str(), devices[0].target.as_str()), ("1", "/dev/till"));
        assert_eq!(container.mounts, [Mount::bind("/etc/hostname", "/till").read_only()]);
        container.cdi_devices = vec!["shop.example/till=back".to_owned()];
        let told = apply_from(&directories, &mut container, &mut devices).unwrap_err().to_string();
        assert!(told.contains("orders cannot have the device `shop.example/till=back`"), "{told}");
        assert!(told.contains("shop.example/scale=1, shop.example/till=front"), "{told}");
    }
}
