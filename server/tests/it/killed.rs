//! The server is killed in the middle of builds: the store is consistent, and the next build works.

use crate::lab::{check, image};
use crate::policy::{Server, Shop};
use futures_util::StreamExt;
use shakedown_runtime::build::BuildEvent;
use shakedown_server::api::BuildLine;
use shakedown_server::client::Client;
use shakedown_spec::Build;
use std::time::Duration;
use tokio::time::timeout;

/// How many builds are killed.
const ROUNDS: u64 = 40;
/// How many steps a build tells of.
const STEPS: u64 = 6;

const DOCKERFILE: &str = "FROM busybox AS base\n\
    RUN for n in $(seq 300); do echo $n > /srv-$n; done; mkdir /srv; mv /srv-* /srv\n\
    COPY Dockerfile /srv/\n\
    FROM base\n\
    RUN rm -r /srv/srv-1* && dd if=/dev/zero of=/srv/zeros bs=1M count=8\n\
    RUN ls /srv | wc -l\n";

/// kill -9 at any moment of a build: whoever opens the store next finds it consistent, and nothing stands in the way.
#[test]
fn killed_builds_leave_a_store_that_works() {
    check(async |lab| {
        let shop = Shop::new(lab, "native");
        shop.write("shakedown.toml", &format!("[images]\nbusybox = \"{}\"\n", image("busybox")));
        shop.write("Dockerfile", DOCKERFILE);
        let socket = lab.path().join("build.sock");
        let mut killed = 0;
        for round in 0..ROUNDS {
            let server = Server::start(&shop, &socket, &[]);
            let client = Client::at(socket.clone()).await.unwrap();
            let lease = client.lease("shop", &shop.directory).await.unwrap();
            let build = Build::directory(".").no_cache();
            let mut lines = client.build(lease.id(), &build, &[]).await.unwrap();
            let mut steps = 0;
            while steps <= round % STEPS
                && let Some(Ok(line)) = lines.next().await
            {
                steps += u64::from(matches!(line, BuildLine::Event(BuildEvent::Step { .. })));
            }
            // Into the step that was just told of, not always equally far.
            let further = async { while let Some(Ok(BuildLine::Event(_))) = lines.next().await {} };
            killed += u32::from(timeout(Duration::from_millis(round * 7 % 50), further).await.is_err());
            drop(server);
            if round % 4 == 3 {
                shop.says(&["images", "verify"]).unwrap();
            }
        }
        assert!(killed > 15, "only {killed} of {ROUNDS} builds were cut off");
        let id = shop.says(&["build", "."]).unwrap();
        assert!(id.starts_with("sha256:"), "{id}");
        shop.says(&["images", "verify"]).unwrap();
    });
}
