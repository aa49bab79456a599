//! B0–BF: images whose documents and blobs contradict each other, lead elsewhere, or are not there.

use super::{Case, Content, Verdict};
use crate::images::{Parts, bytes, descriptor, gzip};
use crate::tape::Tape;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

const WRONG: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub(super) fn cases() -> Vec<Case> {
    let mut all = digests();
    all.extend(diff_id_lists());
    all.extend(blobs());
    all.extend(documents());
    all.extend(contradictions());
    all.extend(indexes());
    all.extend(compressions());
    all
}

fn image(
    name: &'static str,
    change: impl Fn(&mut Parts, &Path) + Send + Sync + 'static,
    reason: &'static str,
) -> Case {
    Case::new(name, Content::Image(Box::new(change)), Verdict::Refused(reason))
}

fn diff_ids(parts: &mut Parts) -> &mut Vec<Value> {
    parts.config["rootfs"]["diff_ids"].as_array_mut().unwrap()
}

fn digests() -> Vec<Case> {
    let last = |parts: &mut Parts| parts.blobs.len() - 1;
    vec![
        image(
            "B0-wrong-diff-id",
            |parts, _| {
                *diff_ids(parts).last_mut().unwrap() = json!(WRONG);
                parts.describe();
            },
            "does not match its digest",
        ),
        image(
            "B1-corrupt-blob",
            move |parts, _| {
                let at = last(parts);
                parts.blobs[at][40] ^= 1;
            },
            "does not match its digest",
        ),
        image(
            "B1a-cut-blob",
            move |parts, _| {
                let at = last(parts);
                parts.blobs[at].truncate(90);
            },
            "is shorter than its manifest says",
        ),
        image(
            "B1b-longer-blob",
            move |parts, _| {
                let at = last(parts);
                parts.blobs[at].extend([0; 9]);
            },
            "is longer than its manifest says",
        ),
        image(
            "B1c-empty-blob",
            move |parts, _| {
                let at = last(parts);
                parts.blobs[at].clear();
            },
            "is shorter than its manifest says",
        ),
        image(
            "B2-wrong-size",
            |parts, _| parts.manifest["layers"][0]["size"] = json!(7),
            "is longer than its manifest says",
        ),
        image("B2a-negative-size", |parts, _| parts.manifest["layers"][0]["size"] = json!(-1), "is negative")
            .stricter("nothing has a negative size"),
        image(
            "B2b-size-2-62",
            |parts, _| parts.manifest["layers"][0]["size"] = json!(1_u64 << 62),
            "is shorter than its manifest says",
        ),
    ]
}

fn diff_id_lists() -> Vec<Case> {
    vec![
        image(
            "B3-diff-ids-short",
            |parts, _| {
                diff_ids(parts).pop();
                parts.describe();
            },
            "contradicts itself",
        ),
        image(
            "B3a-no-rootfs",
            |parts, _| {
                parts.config.as_object_mut().unwrap().remove("rootfs");
                parts.describe();
            },
            "",
        ),
        image(
            "B4-diff-ids-long",
            |parts, _| {
                diff_ids(parts).push(json!(WRONG));
                parts.describe();
            },
            "contradicts itself",
        ),
        image(
            "B4a-diff-id-path",
            |parts, _| {
                *diff_ids(parts).last_mut().unwrap() = json!("sha256:../../../etc/passwd");
                parts.describe();
            },
            "64 lower-case hexadecimal digits",
        ),
        image(
            "B4b-diff-id-upper-case",
            |parts, _| {
                let id = diff_ids(parts)[0].as_str().unwrap().to_uppercase().replace("SHA256", "sha256");
                diff_ids(parts)[0] = json!(id);
                parts.describe();
            },
            "64 lower-case hexadecimal digits",
        ),
    ]
}

/// Where the blob of a descriptor lies.
fn place(layout: &Path, descriptor: &Value) -> PathBuf {
    layout.join("blobs").join(descriptor["digest"].as_str().unwrap().replace(':', "/"))
}

/// Writes the honest layout and then does something to the first layer's blob.
fn to_blob(parts: &mut Parts, layout: &Path, act: impl Fn(&Path)) {
    parts.layout(layout, "1");
    let blob = place(layout, &parts.manifest["layers"][0]);
    fs::remove_file(&blob).unwrap();
    act(&blob);
}

fn blobs() -> Vec<Case> {
    let fifo = |path: &Path| {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    };
    vec![
        image("B8-missing-blob", |parts, layout| to_blob(parts, layout, |_| {}), "is incomplete"),
        image(
            "B8a-blob-is-directory",
            |parts, layout| to_blob(parts, layout, |blob| fs::create_dir(blob).unwrap()),
            "",
        ),
        image("B8b-blob-is-fifo", move |parts, layout| to_blob(parts, layout, fifo), "is no regular file"),
        // Layouts of symlinks are made by build systems; what they lead to has to have the digest.
        image(
            "B8c-blob-is-symlink-to-another-file",
            |parts, layout| {
                to_blob(parts, layout, |blob| std::os::unix::fs::symlink("../../oci-layout", blob).unwrap());
            },
            "its manifest says",
        ),
        image(
            "B8d-blob-is-device",
            |parts, layout| {
                to_blob(parts, layout, |blob| std::os::unix::fs::symlink("/dev/zero", blob).unwrap());
            },
            "is no regular file",
        ),
        image(
            "B8e-missing-config",
            |parts, layout| {
                parts.layout(layout, "1");
                fs::remove_file(place(layout, &parts.manifest["config"])).unwrap();
            },
            "is incomplete",
        ),
        image(
            "B8f-foreign-layer-elsewhere",
            |parts, layout| {
                parts.manifest["layers"][0]["mediaType"] =
                    json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
                parts.manifest["layers"][0]["urls"] = json!(["http://127.0.0.1:9/never"]);
                parts.layout(layout, "1");
                fs::remove_file(place(layout, &parts.manifest["layers"][0])).unwrap();
            },
            "is incomplete",
        ),
    ]
}

fn documents() -> Vec<Case> {
    vec![
        image(
            "B5-config-of-5-mib",
            |parts, _| {
                parts.config["comment"] = json!("x".repeat(5 << 20));
                parts.describe();
            },
            "4194304",
        )
        .stricter("a document of more than 4 MiB fills memory (CVE-2020-1702)"),
        image(
            "B5a-manifest-of-5-mib",
            |parts, _| parts.manifest["annotations"] = json!({"x": "x".repeat(5 << 20)}),
            "4194304",
        )
        .stricter("a document of more than 4 MiB fills memory (CVE-2020-1702)"),
        image(
            "B5b-config-nested-deep",
            |parts, layout| {
                let deep = "[".repeat(100_000) + &"]".repeat(100_000);
                with_config(parts, layout, deep.as_bytes());
            },
            "",
        ),
        image("B5c-config-no-json", |parts, layout| with_config(parts, layout, b"<html>"), ""),
        image(
            "B6-foreign-layer",
            |parts, _| {
                parts.manifest["layers"][0]["urls"] = json!(["http://127.0.0.1:9/never"]);
                parts.manifest["layers"][0]["size"] = json!(1);
            },
            "is longer than its manifest says",
        ),
        image(
            "B7-unknown-media-type",
            |parts, _| parts.manifest["layers"][0]["mediaType"] = json!("application/x-rar"),
            "cannot be unpacked",
        ),
        image(
            "B7a-encrypted-layer",
            |parts, _| {
                parts.manifest["layers"][0]["mediaType"] =
                    json!("application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
            },
            "cannot be unpacked",
        ),
        image(
            "B7b-helm-chart",
            |parts, _| {
                parts.manifest["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
            },
            "is no container image",
        ),
    ]
}

fn contradictions() -> Vec<Case> {
    vec![
        image(
            "B9-digest-is-path",
            |parts, _| {
                parts.manifest["layers"][0]["digest"] = json!("sha256:../../../../../etc/passwd");
                parts.blobs.clear();
            },
            "64 lower-case hexadecimal digits",
        ),
        image(
            "B9a-config-digest-is-path",
            |parts, layout| {
                fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
                parts.manifest["config"]["digest"] = json!("sha256:../../elsewhere");
            },
            "64 lower-case hexadecimal digits",
        ),
        image(
            "B9b-unknown-algorithm",
            |parts, layout| {
                fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
                parts.manifest["layers"][0]["digest"] = json!("md5:d41d8cd98f00b204e9800998ecf8427e");
            },
            "64 lower-case hexadecimal digits",
        ),
        image(
            "BE-config-digest",
            |parts, _| parts.config["os"] = json!("linuX"),
            "the configuration does not match its digest",
        ),
        image(
            "BEa-index-and-manifest",
            |parts, _| parts.manifest["manifests"] = json!([]),
            "an index and a manifest at once",
        ),
        image(
            "BEb-manifest-calls-itself-index",
            |parts, _| parts.manifest["mediaType"] = json!(INDEX),
            "calls itself",
        ),
        image(
            "BEc-schema-1",
            |parts, _| {
                parts.manifest["schemaVersion"] = json!(1);
            },
            "schema 1",
        )
        .stricter("a document of schema 1 has another form; who reads it as schema 2 reads another image"),
    ]
}

/// Writes an honest layout whose configuration is these bytes.
fn with_config(parts: &mut Parts, layout: &Path, config: &[u8]) {
    let kind = "application/vnd.oci.image.config.v1+json";
    parts.manifest["config"] = descriptor(kind, config);
    parts.layout(layout, "1");
    fs::write(place(layout, &parts.manifest["config"]), config).unwrap();
}

fn with_index(layout: &Path, index: &[u8]) {
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    fs::write(layout.join("index.json"), index).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// An index as a blob; its descriptor.
fn nested(layout: &Path, manifests: &Value) -> Value {
    let document = bytes(&json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}));
    let mut own = descriptor(INDEX, &document);
    fs::write(place(layout, &own), document).unwrap();
    own["annotations"] = json!({"org.opencontainers.image.ref.name": "1"});
    own
}

fn indexes() -> Vec<Case> {
    vec![
        image(
            "BF-index-digest-is-path",
            |_, layout| {
                let entry = json!({"mediaType": INDEX, "digest": "sha256:../../../x", "size": 1, "annotations": {"org.opencontainers.image.ref.name": "1"}});
                with_index(layout, &bytes(&json!({"schemaVersion": 2, "manifests": [entry]})));
            },
            "64 lower-case hexadecimal digits",
        ),
        image(
            "BFa-index-empty",
            |_, layout| with_index(layout, &bytes(&json!({"schemaVersion": 2, "manifests": []}))),
            "",
        ),
        image("BFb-index-no-json", |_, layout| with_index(layout, b"{"), ""),
        image(
            "BFc-index-nested-deep",
            |parts, layout| {
                parts.layout(layout, "1");
                let index: Value =
                    serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
                let top =
                    (0..40).fold(index["manifests"][0].clone(), |inner, _| nested(layout, &json!([inner])));
                with_index(layout, &bytes(&json!({"schemaVersion": 2, "manifests": [top]})));
            },
            "nested too deep",
        ),
        image(
            "BFd-other-platform-only",
            |parts, layout| {
                parts.layout(layout, "1");
                let mut index: Value =
                    serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
                index["manifests"][0]["platform"] = json!({"os": "linux", "architecture": "s390x"});
                let top = nested(layout, &index["manifests"]);
                with_index(layout, &bytes(&json!({"schemaVersion": 2, "manifests": [top]})));
            },
            "s390x",
        ),
        image(
            "BFe-no-manifest-blob",
            |parts, layout| {
                parts.layout(layout, "1");
                let index: Value =
                    serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
                fs::remove_file(place(layout, &index["manifests"][0])).unwrap();
            },
            "is incomplete",
        ),
    ]
}

/// An image of one layer, stored as these bytes.
fn stored(name: &'static str, store: fn(&[u8]) -> Vec<u8>, kind: &'static str, verdict: Verdict) -> Case {
    let change = move |parts: &mut Parts, _: &Path| {
        let plain = Tape::default().file("a", &"x".repeat(100_000)).done();
        *parts = super::of_this_machine(std::slice::from_ref(&plain));
        parts.blobs = vec![store(&plain)];
        parts.describe();
        parts.manifest["layers"][0]["mediaType"] =
            json!(format!("application/vnd.oci.image.layer.v1.{kind}"));
    };
    Case::new(name, Content::Image(Box::new(change)), verdict)
}

fn compressions() -> Vec<Case> {
    let broken = Verdict::Refused("cannot be decompressed");
    let whole = Verdict::Taken(&["a"]);
    vec![
        stored(
            "BA-gzip-members",
            |plain| [gzip(&plain[..700]), gzip(&plain[700..])].concat(),
            "tar+gzip",
            whole,
        ),
        stored("BB-gzip-garbage", |plain| [gzip(plain), b"garbage".to_vec()].concat(), "tar+gzip", broken),
        stored("BC-gzip-cut", |plain| gzip(plain)[..80].to_vec(), "tar+gzip", broken),
        stored(
            "BCa-gzip-wrong-sum",
            |plain| {
                let mut bytes = gzip(plain);
                let at = bytes.len() - 6;
                bytes[at] ^= 1;
                bytes
            },
            "tar+gzip",
            broken,
        ),
        stored("BD-plain", <[u8]>::to_vec, "tar", whole),
        stored("BDa-zstd", |plain| zstd::encode_all(plain, 3).unwrap(), "tar+zstd", whole),
        stored(
            "BDb-zstd-cut",
            |plain| zstd::encode_all(plain, 3).unwrap()[..20].to_vec(),
            "tar+zstd",
            broken,
        ),
        stored("BDc-gzip-said-to-be-plain", gzip, "tar", whole),
        stored("BDd-xz", |_| b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4\x46".to_vec(), "tar+gzip", Verdict::Refused("")),
    ]
}
