//! What is said about an image besides its files, in instructions of a Dockerfile: `--change` of import and commit.

use crate::build::config::State;
use crate::build::dockerfile::ast::{Dockerfile, Kind};
use crate::build::document::{Document, History};
use crate::build::plan::{Plan, Settings};
use crate::driver::Result;
use crate::image_files::created;
use shakedown_spec::{Failure, FailureKind, Platform};
use std::sync::Arc;

/// The configuration `base` as the instructions change it, with one more layer.
///
/// # Errors
///
/// One is no instruction, or is one that does something to files.
pub(crate) fn apply(base: &[u8], changes: &[String], layer: Layer<'_>) -> Result<Document> {
    let mut document = changed(base, changes)?;
    document.created = Some(created::now());
    if layer.author.is_some() {
        document.author = layer.author.map(str::to_owned);
    }
    document.rootfs.diff_ids.push(layer.diff_id);
    let mut history = History { created: document.created.clone(), ..History::default() };
    layer.created_by.clone_into(&mut history.created_by);
    if let Some(message) = layer.message {
        history.other.insert("comment".to_owned(), message.into());
    }
    if let Some(author) = layer.author {
        history.other.insert("author".to_owned(), author.into());
    }
    document.history.push(history);
    Ok(document)
}

/// What is said of the layer that comes with the changes.
#[derive(Clone, Debug)]
pub(crate) struct Layer<'a> {
    pub(crate) diff_id: String,
    pub(crate) created_by: &'a str,
    pub(crate) message: Option<&'a str>,
    pub(crate) author: Option<&'a str>,
}

/// Checks instructions before anything is done that they would be needed for.
///
/// # Errors
///
/// As [`apply`].
pub(crate) fn check(changes: &[String]) -> Result<()> {
    changed(b"{}", changes).map(drop)
}

/// The configuration of an image that has nothing yet.
pub(crate) fn empty() -> Vec<u8> {
    let Platform { architecture, os, .. } = Platform::here();
    serde_json::json!({ "architecture": architecture, "os": os }).to_string().into_bytes()
}

fn changed(base: &[u8], changes: &[String]) -> Result<Document> {
    let original: Document = serde_json::from_slice(base).map_err(|error| {
        Failure::new(FailureKind::ImageUnusable, "the image's configuration cannot be read")
            .fact("reason", error.to_string())
    })?;
    if changes.is_empty() {
        return Ok(original);
    }
    let text = format!("FROM scratch\n{}\n", changes.join("\n"));
    let plan = Arc::new(Plan::new(Arc::new(Dockerfile::parse("changes", &text)?), Settings::default())?);
    let mut state = State::image(&plan, 0, base)?;
    for instruction in &plan.dockerfile.stages[0].instructions {
        if matches!(
            instruction.kind,
            Kind::Run(_) | Kind::Copy(_) | Kind::Add(_) | Kind::Arg(_) | Kind::Shell(_)
        ) {
            let title = format!("`{}` cannot be a change", instruction.text);
            return Err(Failure::new(FailureKind::Invalid, title).hint(
                "the changes are CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR",
            ));
        }
        state.apply(instruction)?;
    }
    let mut document = state.document().clone();
    document.history = original.history;
    Ok(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(changes: &[&str]) -> Vec<String> {
        changes.iter().map(|change| (*change).to_owned()).collect()
    }

    /// Every instruction that `docker commit --change` takes has its effect.
    #[test]
    fn instructions_change_the_configuration() {
        let base = br#"{"os":"linux","config":{"Env":["A=1"],"Cmd":["old"]},"rootfs":{"type":"layers","diff_ids":["x"]},
            "history":[{"created_by":"before"}]}"#;
        let changes = texts(&[
            r#"CMD ["serve", "--all"]"#,
            "ENV B=2 C=$A",
            "WORKDIR /srv",
            "USER shop:shop",
            "EXPOSE 80 53/udp",
            "LABEL team=orders",
            "VOLUME /data",
            "ENTRYPOINT [\"/entry\"]",
        ]);
        let layer = Layer { diff_id: "y".into(), created_by: "commit", message: Some("m"), author: None };
        let document = apply(base, &changes, layer).unwrap();
        let config = serde_json::to_value(&document.config).unwrap();
        assert_eq!(
            config["Env"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|e| !e.as_str().unwrap().starts_with("PATH"))
                .count(),
            3
        );
        assert_eq!(config["WorkingDir"], "/srv");
        assert_eq!(config["User"], "shop:shop");
        assert_eq!(config["ExposedPorts"], serde_json::json!({"80/tcp": {}, "53/udp": {}}));
        assert_eq!(config["Labels"]["team"], "orders");
        assert_eq!(config["Cmd"], serde_json::json!(["serve", "--all"]));
        assert_eq!(document.rootfs.diff_ids, ["x", "y"]);
        assert_eq!(document.history.len(), 2);
        assert_eq!(document.history[1].other["comment"], "m");
    }

    /// What would need a build is refused before anything is made.
    #[test]
    fn instructions_for_files_are_refused() {
        insta::assert_snapshot!(check(&texts(&["RUN true"])).unwrap_err(), @r"
        `RUN true` cannot be a change
        hint: the changes are CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR
        ");
        let unknown = check(&texts(&["CMDD x"])).unwrap_err().to_string();
        assert!(unknown.contains("CMDD"), "{unknown}");
    }
}
