//! A profile in Docker's format, made the rules of an OCI runtime spec: what depends on capabilities, kernel and
//! architecture is decided here.

use oci_spec::runtime::LinuxSeccomp;
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    arch_map: Option<Vec<Architecture>>,
    #[serde(default)]
    syscalls: Option<Vec<Rule>>,
    listener_path: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Architecture {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    names: Option<Vec<String>>,
    name: Option<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Value>>,
    #[serde(default)]
    includes: Option<When>,
    #[serde(default)]
    excludes: Option<When>,
}

/// When a rule counts.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct When {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

#[cfg(target_arch = "x86_64")]
const HERE: (&str, &str) = ("SCMP_ARCH_X86_64", "amd64");
#[cfg(target_arch = "aarch64")]
const HERE: (&str, &str) = ("SCMP_ARCH_AARCH64", "arm64");

/// The rules of a profile for a container with these capabilities (`CAP_…`).
pub(crate) fn custom(text: &str, capabilities: &[String]) -> Result<LinuxSeccomp, String> {
    let profile: Profile = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let mut architectures = profile.architectures.unwrap_or_default();
    for entry in profile.arch_map.into_iter().flatten().filter(|entry| entry.architecture == HERE.0) {
        architectures.push(entry.architecture);
        architectures.extend(entry.sub_architectures.into_iter().flatten());
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let rules = profile.syscalls.into_iter().flatten().filter(|rule| counts(rule, capabilities, &release));
    let mut spec = Map::new();
    spec.insert("defaultAction".to_owned(), profile.default_action.into());
    spec.insert("architectures".to_owned(), architectures.into());
    spec.insert("syscalls".to_owned(), rules.map(rule).collect());
    if let Some(errno) = profile.default_errno_ret {
        spec.insert("defaultErrnoRet".to_owned(), errno.into());
    }
    if let Some(path) = profile.listener_path {
        spec.insert("listenerPath".to_owned(), path.into());
    }
    serde_json::from_value(Value::Object(spec)).map_err(|error| error.to_string())
}

fn rule(rule: Rule) -> Value {
    let names: Vec<String> = rule.names.into_iter().flatten().chain(rule.name).collect();
    let mut made = json!({ "names": names, "action": rule.action });
    if let Some(errno) = rule.errno_ret {
        made["errnoRet"] = errno.into();
    }
    if let Some(args) = rule.args.filter(|args| !args.is_empty()) {
        made["args"] = args.into();
    }
    made
}

/// All that is included has to hold; one that is excluded is enough.
fn counts(rule: &Rule, capabilities: &[String], release: &str) -> bool {
    let held = |cap: &String| capabilities.contains(cap);
    let here = |arch: &String| arch == HERE.1;
    let none = When::default();
    let (with, without) = (rule.includes.as_ref().unwrap_or(&none), rule.excludes.as_ref().unwrap_or(&none));
    let listed = |list: &Option<Vec<String>>| list.iter().flatten().next().is_some();
    let included = (!listed(&with.arches) || with.arches.iter().flatten().any(here))
        && with.caps.iter().flatten().all(held)
        && with.min_kernel.as_ref().is_none_or(|least| version(release) >= version(least));
    let excluded = without.arches.iter().flatten().any(here)
        || without.caps.iter().flatten().any(held)
        || without.min_kernel.as_ref().is_some_and(|least| version(release) >= version(least));
    included && !excluded
}

/// The first two numbers of a kernel's version.
fn version(text: &str) -> (u32, u32) {
    let mut parts = text.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}
