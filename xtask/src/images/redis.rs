//! The image `redis`: the server and its tools, with the contract of the official image.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::recipe::{self, Image, Recipe};
use super::tree::Tree;

const ENTRYPOINT: &str = include_str!("redis-entrypoint.sh");

/// The ids of the user `redis`, as in the official image.
const REDIS: (u64, u64) = (999, 999);

/// How the image is made.
pub(super) fn recipe() -> Recipe {
    Recipe {
        name: "redis",
        file_name: String::new(),
        variant: "essential",
        packages: &["redis-server", "redis-tools"],
        // The package makes the user if there is none, with an id that depends on what else is installed.
        before: &[
            "echo redis:x:999:999::/data:/usr/sbin/nologin >>\"$1/etc/passwd\"",
            "echo redis:x:999: >>\"$1/etc/group\"",
        ],
        after: &[],
        // The configuration is for a service of the machine: it binds loopback only. None is the official default.
        drop: &["etc/redis", "var/lib/redis"],
        on_base: true,
        source: &[include_str!("redis.rs"), ENTRYPOINT],
        finish,
    }
}

fn finish(tree: &mut Tree, _scratch: &Path) -> Result<Image> {
    recipe::finish_base(tree);
    tree.file("usr/local/bin/docker-entrypoint.sh", 0o755, ENTRYPOINT);
    tree.directory("data", 0o755, REDIS);

    let version = tree.version_of("redis-server")?;
    let config = json!({
        "Env": [recipe::PATH, format!("REDIS_VERSION={version}")],
        "Entrypoint": ["docker-entrypoint.sh"],
        "Cmd": ["redis-server"],
        "WorkingDir": "/data",
        "Volumes": { "/data": {} },
        "ExposedPorts": { "6379/tcp": {} },
    });
    Ok(Image { tag: version, config })
}
