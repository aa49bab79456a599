//! Using a container through the keeper.

use crate::lab::{check, shell};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use shakedown_runtime::ExecRequest;
use shakedown_server::api::LogQuery;
use shakedown_spec::{Configure, File};

fn text(base64: &str) -> String {
    String::from_utf8(STANDARD.decode(base64).unwrap()).unwrap()
}

/// Commands get input and give output; files go in and come out as they went.
#[test]
fn commands_and_files() {
    check(async |lab| {
        std::fs::write(lab.path().join("app.toml"), "host").unwrap();
        let (client, lease) = lab.lease().await;
        let declared =
            shell().file("/etc/orders/app.toml", "declared").copy(File::host("/host.toml", "app.toml"));
        let id = client.start_container(lease.id(), &declared).await.unwrap().id;
        let run = async |argv: &[&str], input: &[u8]| {
            let result = client.exec(&id, ExecRequest::of(argv.iter().copied()), input).await.unwrap();
            (text(&result.stdout), text(&result.stderr), result.exit.code)
        };
        assert_eq!(run(&["cat", "/etc/orders/app.toml", "/host.toml"], b"").await.0, "declaredhost");
        assert_eq!(run(&["cat"], &[b'x'; 300_000]).await.0.len(), 300_000);
        assert_eq!(run(&["sh", "-c", "echo no >&2; exit 5"], b"").await, (String::new(), "no\n".into(), 5));

        let tar: Vec<Bytes> = client.copy_out(&id, "/etc/orders").await.unwrap().try_collect().await.unwrap();
        client.copy_in(&id, "/tmp", stream::iter(tar.into_iter().map(Ok))).await.unwrap();
        assert_eq!(run(&["cat", "/tmp/orders/app.toml"], b"").await.0, "declared");
    });
}

/// A log is followed to its end, and an exit is told with its code.
#[test]
fn logs_and_exit() {
    check(async |lab| {
        let (client, lease) = lab.lease().await;
        let started = client.start_container(lease.id(), &shell()).await.unwrap();
        assert_eq!(client.state(&started.id).await.unwrap().status, "ready");
        let follow =
            client.logs(&started.id, &LogQuery { follow: true, ..LogQuery::default() }).await.unwrap();
        let exit = client.stop(&started.id).await.unwrap();
        assert_eq!(exit.code, 3);
        let lines: Vec<String> = follow.map(|entry| text(&entry.unwrap().bytes)).collect().await;
        assert_eq!(lines, ["ready", "bye"]);
        assert_eq!(client.exit(&started.id).await.unwrap(), exit);
        assert_eq!(client.state(&started.id).await.unwrap().status, "exited");
        assert!(started.timings.launch_us > 0);
    });
}
