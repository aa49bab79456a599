//! An image that is built for the test, from a Dockerfile and files in memory.
//!
//! `cargo run --example built_image`

use shakedown::prelude::*;

const DOCKERFILE: &str = r#"
FROM busybox
ARG OPENS=nine
WORKDIR /shop
COPY --chmod=0755 open.sh .
RUN ./open.sh > hours
CMD ["cat", "hours"]
"#;

fn main() -> shakedown::Result {
    let build =
        Build::inline(DOCKERFILE).file("open.sh", "#!/bin/sh\necho open from $OPENS\n").arg("OPENS", "ten");
    let shop = GenericContainer::build(build).name("shop").wait(Wait::exit()).start().blocking()?;
    assert_eq!(shop.logs().blocking()?.stdout(), "open from ten\n");
    Ok(())
}

/// The example runs as a test, too.
#[test]
fn an_image_is_built() -> shakedown::Result {
    main()
}
