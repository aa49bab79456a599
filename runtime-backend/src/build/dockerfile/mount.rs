//! `RUN --mount=type=cache,target=/root/.cache,…`.

use crate::build::step::{Origin, RunMount, Sharing};
use std::collections::BTreeMap;

/// What a mount says, before expansion.
#[derive(Debug)]
pub(crate) struct Mount {
    kind: &'static str,
    fields: BTreeMap<&'static str, String>,
}

/// Names as they are written, and the one name they all stand for.
const NAMES: [(&str, &str); 18] = [
    ("from", "from"),
    ("source", "source"),
    ("src", "source"),
    ("target", "target"),
    ("dst", "target"),
    ("destination", "target"),
    ("readonly", "readonly"),
    ("ro", "readonly"),
    ("readwrite", "readwrite"),
    ("rw", "readwrite"),
    ("id", "id"),
    ("sharing", "sharing"),
    ("required", "required"),
    ("size", "size"),
    ("mode", "mode"),
    ("uid", "uid"),
    ("gid", "gid"),
    ("env", "env"),
];

/// What each type of mount may say.
const TYPES: [(&str, &[&str]); 5] = [
    ("bind", &["from", "source", "target", "readonly", "readwrite"]),
    ("cache", &["id", "target", "readonly", "readwrite", "sharing", "from", "source", "mode", "uid", "gid"]),
    ("tmpfs", &["target", "size"]),
    ("secret", &["id", "source", "target", "required", "mode", "uid", "gid", "env"]),
    ("ssh", &["id", "target", "required", "mode", "uid", "gid"]),
];

impl Mount {
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let pairs: Vec<(String, String)> = fields(text)
            .into_iter()
            .map(|field| match field.split_once('=') {
                Some((name, value)) => (name.to_ascii_lowercase(), value.to_owned()),
                None => (field.to_ascii_lowercase(), "true".to_owned()),
            })
            .collect();
        let kind = pairs.iter().rev().find(|(name, _)| name == "type").map_or("bind", |(_, kind)| kind);
        let Some((kind, known)) = TYPES.iter().find(|(name, _)| *name == kind) else {
            let kinds = TYPES.map(|(name, _)| format!("`{name}`")).join(", ");
            return Err(format!("`{kind}` is no type of mount: there are {kinds}"));
        };
        let mut fields = BTreeMap::new();
        for (name, value) in &pairs {
            if name == "type" {
                continue;
            }
            match NAMES.iter().find(|(written, meant)| written == name && known.contains(meant)) {
                Some((_, meant)) => fields.insert(*meant, value.clone()),
                None => return Err(format!("a mount of type `{kind}` has no `{name}`")),
            };
        }
        let mount = Self { kind, fields };
        if let Some(from) = mount.fields.get("from").filter(|from| from.contains('$')) {
            return Err(format!("variables are not expanded in `from={from}` of a mount"));
        }
        if matches!(*kind, "bind" | "cache" | "tmpfs") && !mount.fields.contains_key("target") {
            return Err(format!("a mount of type `{kind}` needs a `target`"));
        }
        Ok(mount)
    }

    /// Which stage or image it takes files from.
    pub(crate) fn from(&self) -> Option<&str> {
        self.fields.get("from").map(String::as_str)
    }

    /// With everything expanded; `absolute` completes a path of the container.
    pub(crate) fn step(
        &self,
        expand: impl Fn(&str) -> Result<String, String>,
        absolute: impl Fn(&str) -> String,
        origin: Origin,
    ) -> Result<RunMount, String> {
        let mut fields = BTreeMap::new();
        for (name, value) in &self.fields {
            fields.insert(*name, expand(value)?);
        }
        let fields = Fields(fields);
        let target = fields.text("target").map(absolute);
        if target.as_deref() == Some("/") {
            return Err("a mount cannot cover `/`".to_owned());
        }
        let needed =
            || target.clone().ok_or_else(|| format!("a mount of type `{}` needs a `target`", self.kind));
        let source = normal(fields.text("source").unwrap_or_default());
        match self.kind {
            "bind" => Ok(RunMount::Bind {
                target: needed()?,
                from: origin,
                source,
                writable: fields.switch("readwrite")?
                    || fields.0.get("readonly").is_some_and(|ro| ro == "false"),
            }),
            "cache" => Ok(RunMount::Cache {
                id: fields.text("id").map_or_else(&needed, |id| Ok(id.to_owned()))?,
                target: needed()?,
                read_only: fields.switch("readonly")?,
                sharing: fields.sharing()?,
                from: self.from().map(|_| (origin, source)),
                mode: fields.number("mode", 8, 0o755)?,
                uid: fields.number("uid", 10, 0)?,
                gid: fields.number("gid", 10, 0)?,
            }),
            "tmpfs" => Ok(RunMount::Tmpfs { target: needed()?, size: fields.size()? }),
            "secret" => secret(&fields, target),
            _ => Ok(RunMount::Ssh {
                id: fields.text("id").unwrap_or("default").to_owned(),
                required: fields.switch("required")?,
            }),
        }
    }
}

fn secret(fields: &Fields, target: Option<String>) -> Result<RunMount, String> {
    let env = fields.text("env").map(str::to_owned);
    let base = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
    let id = fields.text("source").or(fields.text("id")).map(str::to_owned);
    let id = id.or_else(|| target.as_deref().map(base)).ok_or("a secret needs an `id` or a `target`")?;
    let target = match (&target, &env) {
        (None, None) => Some(format!("/run/secrets/{}", base(&id))),
        _ => target,
    };
    Ok(RunMount::Secret {
        id,
        target,
        env,
        required: fields.switch("required")?,
        mode: fields.number("mode", 8, 0o400)?,
        uid: fields.number("uid", 10, 0)?,
        gid: fields.number("gid", 10, 0)?,
    })
}

/// Expanded.
struct Fields(BTreeMap<&'static str, String>);

impl Fields {
    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn switch(&self, name: &str) -> Result<bool, String> {
        match self.0.get(name).map(String::as_str) {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1") => Ok(true),
            Some(other) => Err(format!("`{name}` of a mount is `true` or `false`, not `{other}`")),
        }
    }

    fn number(&self, name: &str, radix: u32, unset: u32) -> Result<u32, String> {
        let Some(text) = self.text(name) else { return Ok(unset) };
        u32::from_str_radix(text, radix).map_err(|_| format!("`{name}={text}` of a mount is not a number"))
    }

    fn sharing(&self) -> Result<Sharing, String> {
        match self.text("sharing") {
            None | Some("shared") => Ok(Sharing::Shared),
            Some("private") => Ok(Sharing::Private),
            Some("locked") => Ok(Sharing::Locked),
            Some(other) => {
                Err(format!("`sharing` of a mount is `shared`, `private` or `locked`, not `{other}`"))
            }
        }
    }

    /// Bytes, or with one of Docker's units, which are powers of 1024.
    fn size(&self) -> Result<Option<u64>, String> {
        let Some(text) = self.text("size") else { return Ok(None) };
        let lower = text.to_ascii_lowercase();
        let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let power = match lower[digits.len()..].trim_end_matches("ib").trim_end_matches('b') {
            "" => Some(0),
            "k" => Some(10),
            "m" => Some(20),
            "g" => Some(30),
            "t" => Some(40),
            _ => None,
        };
        let bytes = digits.parse::<u64>().ok().zip(power);
        let bytes = bytes.and_then(|(number, power)| number.checked_mul(1 << power));
        bytes.map(Some).ok_or_else(|| format!("`size={text}` of a mount is not a size, such as `64m`"))
    }
}

/// Absolute in what it comes from: nothing is above that.
fn normal(path: &str) -> String {
    crate::build::path::absolute("/", path)
}

/// Comma-separated, where a field in double quotes may have commas.
fn fields(text: &str) -> Vec<String> {
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    fields.push(field);
    fields.retain(|field| !field.trim().is_empty());
    fields.iter().map(|field| field.trim().to_owned()).collect()
}
