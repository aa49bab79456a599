//! Commands in a running container.

use crate::check::{assert_message, idle, missing};
use shakedown::{Exec, FailureKind, Start};

/// The two streams and the exit code come apart.
#[test]
fn streams_and_code_are_apart() -> shakedown::Result {
    let container = idle().start().blocking()?;
    let ended = container.exec(["sh", "-c", "echo out; echo err >&2; exit 7"]).blocking()?;
    assert_eq!((ended.code(), &*ended.stdout(), &*ended.stderr()), (7, "out\n", "err\n"));
    assert_message!(ended.success().unwrap_err(), @r"
    `sh -c echo out; echo err >&2; exit 7` failed: code 7
      at tests/suite/exec.rs:LINE
      stdout: out
      stderr: err
    ");
    Ok(())
}

/// A command that a signal ends counts as shells count.
#[test]
fn a_signal_is_128_and_its_number() -> shakedown::Result {
    let container = idle().start().blocking()?;
    assert_eq!(container.exec(["sh", "-c", "kill -9 $$"]).blocking()?.code(), 137);
    Ok(())
}

/// Environment, directory and input are the command's own; the container's environment lies beneath.
#[test]
fn options_apply_to_the_command() -> shakedown::Result {
    use shakedown::Configure;
    let container = idle().env("SHOP", "open").env("TILL", "one").start().blocking()?;
    let command = Exec::new(["sh", "-c", "echo $SHOP $TILL $PWD; cat"]);
    let command = command.env("TILL", "two").workdir("/tmp").input("from the test\n");
    let ended = container.exec(command).blocking()?.success()?;
    assert_eq!(ended.stdout(), "open two /tmp\nfrom the test\n");
    Ok(())
}

/// A command runs as the user it asks for; where a container has one user only, it is refused.
#[test]
fn a_command_has_its_user() -> shakedown::Result {
    let container = idle().start().blocking()?;
    let ended =
        container.exec(Exec::new(["sh", "-c", "echo $(id -u):$(id -g)"]).user("1000:1001")).blocking();
    match missing("several users") {
        None => assert_eq!(ended?.success()?.stdout(), "1000:1001\n"),
        Some(_) => assert_eq!(ended.unwrap_err().kind, FailureKind::ExecFailed),
    }
    Ok(())
}

/// Without input a command that reads ends at once.
#[test]
fn there_is_no_input_unless_given() -> shakedown::Result {
    let container = idle().start().blocking()?;
    assert_eq!(container.exec(["cat"]).blocking()?.success()?.stdout(), "");
    Ok(())
}

/// Output of any size and any bytes arrives whole.
#[test]
fn output_is_not_cut() -> shakedown::Result {
    let container = idle().start().blocking()?;
    let ended =
        container.exec(["sh", "-c", "head -c 3000000 /dev/zero; printf '\\377'"]).blocking()?.success()?;
    assert_eq!(ended.stdout_bytes().len(), 3_000_001);
    assert_eq!(ended.stdout_bytes().last(), Some(&0xff));
    Ok(())
}

/// A misspelt program is told as such.
#[test]
fn a_missing_program_is_a_failure() -> shakedown::Result {
    let container = idle().start().blocking()?;
    let failure = container.exec(["redis-cil", "ping"]).blocking().unwrap_err();
    assert_eq!(failure.kind, FailureKind::ExecFailed, "{failure}");
    assert!(failure.title.contains("redis-cil"), "{failure}");
    Ok(())
}

/// Many commands at once do not get in each other's way.
#[tokio::test]
async fn commands_run_side_by_side() -> shakedown::Result {
    let container = idle().start().await?;
    let commands = (0..16).map(|n| container.exec(["sh".to_owned(), "-c".to_owned(), format!("echo {n}")]));
    for (n, ended) in futures::future::try_join_all(commands).await?.into_iter().enumerate() {
        assert_eq!(ended.stdout().trim(), n.to_string());
    }
    Ok(())
}
