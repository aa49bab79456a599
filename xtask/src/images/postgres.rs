//! The image `postgres`: the server and its tools, with the contract of the official image.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::recipe::{self, Image, Recipe};
use super::tree::Tree;

const ENTRYPOINT: &str = include_str!("postgres-entrypoint.sh");

/// The ids of the user `postgres`, as in the official image.
const POSTGRES: (u64, u64) = (999, 999);

/// Settings of every cluster that initdb makes. The sample has them as comments, so it is enough to append.
const SETTINGS: &str = "
#------------------------------------------------------------------------------
# CONTAINER
#------------------------------------------------------------------------------

listen_addresses = '*'
jit = off\t\t\t\t# the compiler is not in this image
";

/// How the image is made.
pub(super) fn recipe() -> Recipe {
    Recipe {
        name: "postgres",
        file_name: String::new(),
        variant: "essential",
        // The last three: init files that are compressed, and users that /etc/passwd does not know.
        packages: &["postgresql", "xz-utils", "zstd", "libnss-wrapper"],
        // The package makes the user if there is none, with an id that depends on what else is installed; and a cluster,
        // unless it is told not to.
        before: &[
            "echo postgres:x:999:999::/var/lib/postgresql:/bin/bash >>\"$1/etc/passwd\"",
            "echo postgres:x:999: >>\"$1/etc/group\"",
            "mkdir -p \"$1/etc/postgresql-common\"",
            "echo create_main_cluster = false >\"$1/etc/postgresql-common/createcluster.conf\"",
        ],
        after: &[
            "chroot \"$1\" localedef -i en_US -c -f UTF-8 -A /usr/share/locale/locale.alias en_US.UTF-8",
        ],
        drop: &[
            // The compiler of queries, and the server's own code for it: more than everything else together.
            "usr/lib/*/libLLVM*",
            "usr/lib/*/libz3*",
            "usr/lib/llvm*",
            "usr/lib/postgresql/*/lib/bitcode",
            "usr/lib/postgresql/*/lib/llvmjit*",
            // Debian's management of several clusters.
            "etc/postgresql*",
            "usr/share/postgresql-common",
            "var/lib/postgresql/*",
            // A key made at the time of the build.
            "etc/ssl/certs/*",
            "etc/ssl/private/*",
        ],
        on_base: true,
        source: &[include_str!("postgres.rs"), ENTRYPOINT],
        finish,
    }
}

fn finish(tree: &mut Tree, _scratch: &Path) -> Result<Image> {
    recipe::finish_base(tree);
    let major = tree.paths().find_map(|path| path.strip_prefix("usr/lib/postgresql/")?.split('/').next());
    let major = major.context("the packages have no /usr/lib/postgresql/<version>")?.to_owned();
    link_programs(tree, &major);
    tree.file("usr/local/bin/docker-entrypoint.sh", 0o755, ENTRYPOINT);

    let sample = format!("usr/share/postgresql/{major}/postgresql.conf.sample");
    let text = format!("{}{SETTINGS}", tree.text(&sample)?);
    tree.file(&sample, 0o644, text);

    tree.directory("docker-entrypoint-initdb.d", 0o755, (0, 0));
    tree.directory("var/lib/postgresql", 0o1777, POSTGRES);
    tree.directory("var/lib/postgresql/data", 0o1777, POSTGRES);
    tree.directory("run/postgresql", 0o3777, POSTGRES);

    let version = tree.version_of(&format!("postgresql-{major}"))?;
    let config = json!({
        "Env": [
            format!("{}:/usr/lib/postgresql/{major}/bin", recipe::PATH),
            "LANG=C.UTF-8",
            format!("PG_MAJOR={major}"),
            format!("PG_VERSION={version}"),
            "PGDATA=/var/lib/postgresql/data",
        ],
        "Entrypoint": ["docker-entrypoint.sh"],
        "Cmd": ["postgres"],
        "Volumes": { "/var/lib/postgresql/data": {} },
        "ExposedPorts": { "5432/tcp": {} },
        "StopSignal": "SIGINT",
    });
    Ok(Image { tag: version, config })
}

/// Debian's `psql` and others are links to a script that chooses a cluster; here they are the programs themselves.
fn link_programs(tree: &mut Tree, major: &str) {
    tree.retain_symlinks(|target| !target.contains("postgresql-common"));
    let directory = format!("usr/lib/postgresql/{major}/bin/");
    let names = tree.paths().filter_map(|path| path.strip_prefix(&directory)).map(str::to_owned);
    for name in names.collect::<Vec<String>>() {
        tree.symlink(&format!("usr/bin/{name}"), &format!("../lib/postgresql/{major}/bin/{name}"));
    }
}
