//! One set of types in every runtime, and in none.

use crate::check::idle;
use shakedown::{GenericContainer, Running, Start};

async fn use_it() -> shakedown::Result {
    let (one, two) = idle().start().and(idle().start()).await?;
    assert_eq!(one.exec(["echo", "one"]).await?.stdout(), "one\n");
    two.exec(["true"]).await?.success()?;
    Ok(())
}

#[tokio::test]
async fn tokio_with_one_thread() -> shakedown::Result {
    use_it().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokio_with_several_threads() -> shakedown::Result {
    tokio::spawn(use_it()).await??;
    Ok(())
}

#[test]
fn another_executor() -> shakedown::Result {
    futures::executor::block_on(use_it())
}

#[test]
fn no_executor() -> shakedown::Result {
    let container = idle().start().blocking()?;
    container.exec(["true"]).blocking()?.success()?;
    Ok(())
}

/// A helper that blocks may be called from an async test.
#[tokio::test]
async fn blocking_inside_tokio() -> shakedown::Result {
    let container = idle().start().blocking()?;
    container.exec(["true"]).blocking()?.success()?;
    drop(container);
    use_it().await
}

#[test]
fn blocking_inside_another_executor() -> shakedown::Result {
    futures::executor::block_on(async { idle().start().blocking().map(drop) })?;
    Ok(())
}

/// A container may be kept in a static, sent to another thread and dropped there.
#[test]
fn it_goes_from_thread_to_thread() -> shakedown::Result {
    fn sent<T: Send + Sync + 'static>(value: T) -> T {
        value
    }
    let container: Running<GenericContainer> = sent(idle().start().blocking()?);
    std::thread::spawn(move || drop(container)).join().unwrap();
    Ok(())
}
