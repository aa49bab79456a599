//! Images that a test makes of containers and files, names, saves and loads.

use crate::check::{assert_message, idle};
use shakedown::prelude::*;
use shakedown::{NewImage, PullPolicy, images};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// A name that no other test has; removed when the test ends, however it ends.
pub(crate) struct Name(pub(crate) String);

impl Name {
    pub(crate) fn new(what: &str) -> Self {
        Self(format!("shakedown-test/{what}-{}:1", std::process::id()))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        // A test that failed before it made the image has none to remove.
        let _ = images::remove(&self.0).blocking();
    }
}

/// Makes a directory the root file system of an image.
pub(crate) fn import(root: &Path, image: NewImage) -> shakedown::Result {
    let packed = tempfile::NamedTempFile::new()?;
    let status = Command::new("tar").arg("-C").arg(root).arg("-cf").arg(packed.path()).arg(".").status()?;
    assert!(status.success());
    images::import(packed.path(), image).blocking()?;
    Ok(())
}

/// What `script` writes in a container of this image.
fn said(image: &str, script: &str) -> shakedown::Result<String> {
    let container = GenericContainer::new(image).name("box").command(["sh", "-c", script]);
    Ok(container.wait(Wait::exit()).start().blocking()?.logs().blocking()?.stdout())
}

/// A seeded container is the start of others: what was written is there, what was deleted is not, and environment and
/// instructions are part of the image.
#[test]
fn a_running_container_becomes_an_image() -> shakedown::Result {
    let name = Name::new("committed");
    let first = idle().env("SHOP", "orders").start().blocking()?;
    let script = "mkdir -p /srv/shop; echo 42 > /srv/shop/orders; rm /bin/true; chmod 4711 /srv/shop/orders";
    first.exec(["sh", "-c", script]).blocking()?.success()?;
    let image =
        NewImage::named(&name.0).change("ENV TILL=open").change("WORKDIR /srv/shop").message("seeded");
    let id = first.commit(image).blocking()?;
    assert!(id.starts_with("sha256:"), "{id}");
    // What comes later is no part of it.
    first.exec(["sh", "-c", "echo late > /srv/shop/late"]).blocking()?.success()?;
    drop(first);
    let seen = said(
        &name.0,
        "cat orders; stat -c %a orders; echo $SHOP $TILL; ls /bin/true /srv/shop/late 2>&1; pwd",
    )?;
    assert_eq!(
        seen,
        "42\n4711\norders open\nls: /bin/true: No such file or directory\n\
         ls: /srv/shop/late: No such file or directory\n/srv/shop\n"
    );
    Ok(())
}

/// A container that has ended is an image as well; its entry point and command are those it was started with.
#[test]
fn an_ended_container_becomes_an_image() -> shakedown::Result {
    let name = Name::new("ended");
    let done = GenericContainer::new("busybox").name("box").command(["sh", "-c", "date > /made; cat /made"]);
    let done = done.wait(Wait::exit()).start().blocking()?;
    let made = done.logs().blocking()?.stdout();
    done.commit(&name.0).blocking()?;
    drop(done);
    assert_eq!(said(&name.0, "cat /made")?, made);
    let again = GenericContainer::new(&name.0).name("box").wait(Wait::exit()).start().blocking()?;
    assert!(!again.logs().blocking()?.stdout().is_empty(), "the command is that of the container");
    Ok(())
}

/// What a test names instead of a container is found by the same rules: a build, too.
#[test]
fn a_build_is_pulled_and_tagged() -> shakedown::Result {
    let name = Name::new("built");
    let shop = tempfile::tempdir().unwrap();
    fs::write(shop.path().join("Dockerfile"), "FROM busybox\nRUN echo 42 > /orders\n").unwrap();
    let source = format!("build:{}", shop.path().display());
    let id = images::pull(&source, PullPolicy::Missing).blocking()?;
    assert!(id.starts_with("sha256:"), "{id}");
    images::tag(&source, &name.0).blocking()?;
    assert_eq!(said(&name.0, "cat /orders")?, "42\n");
    Ok(())
}

/// Instructions that would need a build are refused before anything is made.
#[test]
fn a_wrong_change_is_told() -> shakedown::Result {
    let idle = idle().start().blocking()?;
    let failure = idle.commit(NewImage::named("orders:1").change("RUN true")).blocking().unwrap_err();
    assert_message!(failure, @r"
    `RUN true` cannot be a change
      at tests/suite/images.rs:LINE
    hint: the changes are CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR
    ");
    let failure = idle.commit("Orders").blocking().unwrap_err();
    assert_message!(failure, @r"
    `Orders` cannot be the name of an image
      at tests/suite/images.rs:LINE
      reason: `Orders` is not an image reference: the name has to be lower case; try `orders`
    ");
    Ok(())
}

/// Saved images are loaded again as they were, and a layer that several have is in the file once.
#[test]
fn saved_images_share_layers_and_come_back() -> shakedown::Result {
    let (first, second) = (Name::new("saved-a"), Name::new("saved-b"));
    let container = idle().start().blocking()?;
    for (name, order) in [(&first, "1"), (&second, "2")] {
        container.exec(["sh", "-c", &format!("echo {order} > /order")]).blocking()?.success()?;
        container.commit(&name.0).blocking()?;
    }
    drop(container);
    let place = tempfile::tempdir()?;
    let file = place.path().join("orders.tar");
    images::save([&first.0, &second.0], &file).blocking()?;

    let listed = Command::new("tar").args(["-tvf"]).arg(&file).output()?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    // Mode, owner, size, date, time, name; the engine's archives have directories and links as well.
    let files: Vec<Vec<&str>> = listed
        .lines()
        .filter(|line| line.starts_with('-'))
        .map(|line| line.split_whitespace().collect())
        .collect();
    let names: BTreeSet<_> = files.iter().map(|file| file[5]).collect();
    assert_eq!(names.len(), files.len(), "a file is in the archive twice:\n{listed}");
    let sizes = files.iter().filter_map(|file| file[2].parse::<u64>().ok());
    let large = sizes.filter(|size| *size > 200_000).count();
    assert_eq!(large, 1, "the layer of busybox is in the archive once:\n{listed}");

    images::remove(&first.0).blocking()?;
    images::remove(&second.0).blocking()?;
    let packed = Command::new("gzip").arg(&file).status()?;
    assert!(packed.success());
    let loaded = images::load(file.with_extension("tar.gz")).blocking()?;
    let names: BTreeSet<_> = loaded.iter().flat_map(|image| image.names.clone()).collect();
    assert_eq!(names, BTreeSet::from([first.0.clone(), second.0.clone()]));
    assert_eq!(said(&first.0, "cat /order")?, "1\n");
    assert_eq!(said(&second.0, "cat /order")?, "2\n");
    Ok(())
}

/// A root file system in a tar file is an image, with what is said about it.
#[test]
fn a_root_file_system_is_imported() -> shakedown::Result {
    let name = Name::new("imported");
    let place = tempfile::tempdir()?;
    let base = idle().start().blocking()?;
    base.copy_out("/bin", place.path().join("root/bin")).blocking()?;
    base.copy_out("/lib", place.path().join("root/lib")).blocking().ok();
    base.copy_out("/lib64", place.path().join("root/lib64")).blocking().ok();
    drop(base);
    fs::write(place.path().join("root/orders"), "42\n")?;
    let image = NewImage::named(&name.0).change(r#"CMD ["cat", "/orders"]"#).change("ENV SHOP=orders");
    import(&place.path().join("root"), image)?;
    let run = GenericContainer::new(&name.0).name("box").wait(Wait::exit()).start().blocking()?;
    assert_eq!(run.logs().blocking()?.stdout(), "42\n");
    assert_eq!(said(&name.0, "echo $SHOP")?, "orders\n");
    Ok(())
}

/// An image has several names, is found by its id, and goes with its last name.
#[test]
fn images_are_named_listed_and_removed() -> shakedown::Result {
    let (name, other) = (Name::new("named"), Name::new("named-too"));
    let container = idle().start().blocking()?;
    container.exec(["sh", "-c", "echo named > /order"]).blocking()?.success()?;
    let id = container.commit(&name.0).blocking()?;
    drop(container);
    images::tag(&name.0, &other.0).blocking()?;
    let listed = images::list().blocking()?;
    let image = listed.iter().find(|image| image.id == id).unwrap_or_else(|| panic!("{listed:?}"));
    assert!(image.names.contains(&name.0) && image.names.contains(&other.0), "{image:?}");
    assert!(image.size > 0);
    assert_eq!(images::pull(&id, PullPolicy::Never).blocking()?, id);
    assert_eq!(said(&id, "cat /order")?, "named\n");
    images::remove(&name.0).blocking()?;
    assert_eq!(said(&other.0, "cat /order")?, "named\n");
    images::remove(&other.0).blocking()?;
    let failure = images::pull(&other.0, PullPolicy::Never).blocking().unwrap_err();
    assert_eq!(failure.kind, shakedown::FailureKind::ImageNotFound, "{failure}");
    Ok(())
}
