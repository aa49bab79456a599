//! Builds through the Docker driver, against a real daemon; and what Docker makes of a Dockerfile beside what is
//! evaluated here.

use super::docker::{Lab, check, closed, image};
use bollard::query_parameters::BuildImageOptionsBuilder;
use futures_util::TryStreamExt;
use shakedown_runtime::build::config::State;
use shakedown_runtime::build::plan::Plan;
use shakedown_runtime::build::{BuildEvent, BuildRequest};
use shakedown_runtime::{Driver, Image, LogBook, Result};
use shakedown_spec::{Build, Container, ImageSource, PullPolicy};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Builds, with `busybox` being the test image, and tells what was heard.
async fn build(lab: &Lab, build: Build) -> (Result<Image>, Vec<BuildEvent>) {
    let resolve = |image: &str| match image {
        "busybox" => {
            let source = super::docker::image("busybox").parse().unwrap();
            Ok(shakedown_runtime::Wanted::new(source, PullPolicy::Missing))
        }
        other => panic!("{other} is not to be resolved"),
    };
    let request = match BuildRequest::open(build, Arc::new(resolve)).await {
        Ok(request) => request,
        Err(failure) => return (Err(failure), Vec::new()),
    };
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&events);
    let built = lab.driver.build(request, Arc::new(move |event| heard.lock().unwrap().push(event))).await;
    let events = std::mem::take(&mut *events.lock().unwrap());
    (built, events)
}

/// What a shell says in a container of the image.
async fn says(lab: &Lab, image: &Image, script: &str) -> String {
    let mut container = Container::of(&image.id);
    container.name = Some("built".to_owned());
    container.entrypoint = Some(["/bin/sh", "-c", script].map(str::to_owned).to_vec());
    let (id, _) = lab.create_of(container, image.clone()).await.unwrap();
    let log = Arc::new(LogBook::default());
    lab.driver.start(&id, Arc::clone(&log)).await.unwrap();
    closed(&log).await;
    String::from_utf8(log.text(None)).unwrap()
}

fn write(directory: &Path, files: &[(&str, &str)]) {
    for (path, content) in files {
        let path = directory.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}

/// Every instruction that changes the configuration, in the forms that are easily read wrong.
const SETTINGS: &str = r#"ARG BASE=busybox
FROM $BASE
ARG VERSION=1 NAME
ENV HOME=/home/shop GREETING="hello  $NAME" QUOTE='$HOME' ESCAPED=a\ b
ENV OLD   form of $VERSION "quoted"
ENV PATH=$PATH:$HOME/bin DEFAULT=${NOBODY:-none} SET=${VERSION:+yes}
LABEL version="$VERSION" "long key"=x multi="a\
b"
EXPOSE 80 53/udp $VERSION
EXPOSE 8000-8002
VOLUME /data
VOLUME ["/a b", "/c"]
WORKDIR /srv
WORKDIR sub/../orders
USER shop:$VERSION
ENTRYPOINT exec run "$HOME"
CMD ["--port", "$PORT"]
STOPSIGNAL SIGUSR1
HEALTHCHECK --interval=1m30s --timeout=2s --start-period=500ms --retries=4 CMD check "$HOME"
ONBUILD RUN echo "$HOME"
SHELL ["/bin/sh", "-ec"]
MAINTAINER  The Clerk
"#;

fn evaluated(build: &Build, base: &[u8]) -> serde_json::Value {
    let request = BuildRequest::read(build, shakedown_runtime::build::as_written());
    let plan: Arc<Plan> = request.unwrap().plan;
    let mut state = State::image(&plan, 0, base).unwrap();
    for instruction in &plan.dockerfile.stages[0].instructions {
        state.apply(instruction).unwrap();
    }
    serde_json::to_value(state.finish(Vec::new(), "").config).unwrap()
}

/// What matters of a configuration, in one order and without what Docker adds for its own containers.
fn comparable(mut config: serde_json::Value) -> serde_json::Value {
    let map = config.as_object_mut().unwrap();
    let own = ["Hostname", "Domainname", "Image", "Tty", "OpenStdin", "StdinOnce", "ArgsEscaped"];
    map.retain(|name, value| {
        !value.is_null() && !own.contains(&name.as_str()) && !name.starts_with("Attach")
    });
    for set in ["ExposedPorts", "Volumes"] {
        let mut members: Vec<String> = match map.get(set) {
            Some(serde_json::Value::Object(members)) => members.keys().cloned().collect(),
            Some(members) => serde_json::from_value(members.clone()).unwrap(),
            None => continue,
        };
        members.sort();
        map.insert(set.to_owned(), members.into());
    }
    config
}

pub(crate) fn docker() -> bollard::Docker {
    let host = std::env::var("SHAKEDOWN_DOCKER_HOST").or_else(|_| std::env::var("DOCKER_HOST"));
    bollard::Docker::connect_with_host(&host.unwrap_or("unix:///var/run/docker.sock".into())).unwrap()
}

async fn inspected(id: &str) -> serde_json::Value {
    let inspected = docker().inspect_image(id).await.unwrap();
    serde_json::to_value(inspected.config.unwrap()).unwrap()
}

/// An image has the same configuration whoever reads its Dockerfile: Docker, or this project.
#[tokio::test]
async fn docker_and_the_evaluation_agree() {
    check(async |lab| {
        let asked = Build::inline(SETTINGS).arg("NAME", "clerk").label("built", "here");
        let (built, _) = build(&lab, asked.clone()).await;
        let from_driver = comparable(inspected(&built.unwrap().id).await);

        let base: ImageSource = image("busybox").parse().unwrap();
        let base = lab.driver.resolve(&base, PullPolicy::Missing, Arc::new(|_, _, _| ())).await.unwrap();
        let config = inspected(&base.id).await;
        let document = serde_json::json!({ "os": "linux", "architecture": "amd64", "config": config });
        let here = comparable(evaluated(&asked, document.to_string().as_bytes()));
        assert_eq!(here, from_driver);

        let from_docker = comparable(inspected(&by_docker(SETTINGS, &base.id).await).await);
        assert_eq!(here, from_docker);
    })
    .await;
}

/// What Docker's old builder makes of the text as it is.
async fn by_docker(text: &str, base: &str) -> String {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "Dockerfile", text.as_bytes()).unwrap();
    let body = bollard::body_full(tar.into_inner().unwrap().into());
    let args = HashMap::from([("NAME", "clerk"), ("BASE", base)]);
    let labels = HashMap::from([("built", "here")]);
    let options = BuildImageOptionsBuilder::new().buildargs(&args).labels(&labels).build();
    let docker = docker();
    let answer: Vec<_> = docker.build_image(options, None, Some(body)).try_collect().await.unwrap();
    let said = answer.into_iter().filter_map(|info| info.stream);
    let id =
        said.filter_map(|line| Some(line.strip_prefix("Successfully built ")?.trim().to_owned())).next_back();
    id.unwrap()
}

const SHOP: &str = r#"# syntax=docker/dockerfile:1
ARG TAG=unused
FROM busybox AS base
ARG VERSION=1
RUN echo "version $VERSION" > /version
FROM scratch AS never
COPY missing /
FROM base
COPY . /all
COPY --chown=12:34 --chmod=0700 src/ *.txt /some/
COPY --from=base /version /copied
COPY <<plain <<'quoted' /docs/
home $HOME "$VERSION"
plain
home $HOME
quoted
ENV HOME=/root
RUN <<END
echo "first $VERSION" > /script
cat <<INNER >> /script
inner
INNER
END
RUN <<END
#!/bin/sh -e
cp "$0" /END
END
RUN --mount=type=bind,target=/ctx,source=src --mount=type=cache,target=/cache \
    --mount=type=tmpfs,target=/fast ls /ctx > /mounted && touch /cache/x /fast/y
WORKDIR deep
"#;

/// A real Dockerfile: stages, arguments, heredocs, mounts, a context with a `.dockerignore`.
#[tokio::test]
async fn a_build_takes_everything_with_it() {
    let context = tempfile::tempdir().unwrap();
    let files = [
        (".dockerignore", "*.tmp\n!keep.tmp\nsecret\n"),
        ("a.txt", "a\n"),
        ("b.tmp", "b"),
        ("keep.tmp", "keep"),
        ("secret/key", "key"),
        ("src/main.c", "main"),
        ("docker/Dockerfile", SHOP),
    ];
    write(context.path(), &files);
    check(async |lab| {
        let directory = context.path().to_str().unwrap();
        let asked = Build::directory(directory).dockerfile("docker/Dockerfile").arg("VERSION", "3");
        let image = build(&lab, asked).await.0.unwrap();
        let script = "cd / && find all some | sort && ls -ln some | awk '{print $1,$3,$4,$9}' && \
            cat version copied docs/plain docs/quoted script mounted END; ls cache fast; pwd";
        insta::assert_snapshot!(says(&lab, &image, script).await, @r#"
        all
        all/.dockerignore
        all/a.txt
        all/docker
        all/docker/Dockerfile
        all/keep.tmp
        all/src
        all/src/main.c
        some
        some/a.txt
        some/main.c
        total   
        -rwx------ 12 34 a.txt
        -rwx------ 12 34 main.c
        version 3
        version 3
        home  "3"
        home $HOME
        first 3
        inner
        main.c
        #!/bin/sh -e
        cp "$0" /END
        cache:

        fast:
        /
        "#);
        assert_eq!(image.config.workdir, "/deep");
    })
    .await;
}

/// Someone whose build fails sees the line and what it wrote; a second build does not do again what was done.
#[tokio::test]
async fn a_failed_step_is_shown_with_its_output() {
    check(async |lab| {
        let text = "FROM busybox\nENV X=1\nRUN echo fine\n\n\
            RUN for i in $(seq 30); do echo line $i; done; \\\n  exit 3\n";
        let (built, events) = build(&lab, Build::inline(text)).await;
        insta::assert_snapshot!(built.unwrap_err(), @r"
        the inline Dockerfile could not be built: RUN failed
          at:     the inline Dockerfile:5
          line:   RUN for i in $(seq 30); do echo line $i; done; \
          reason: exit code 3
        --- RUN, last 20 of 30 lines
        | line 11
        | line 12
        | line 13
        | line 14
        | line 15
        | line 16
        | line 17
        | line 18
        | line 19
        | line 20
        | line 21
        | line 22
        | line 23
        | line 24
        | line 25
        | line 26
        | line 27
        | line 28
        | line 29
        | line 30
        ");
        let steps = events.iter().filter_map(|event| match event {
            BuildEvent::Step { number, total, text, line } => {
                Some(format!("{number}/{total} line {line}: {text:.12}"))
            }
            _ => None,
        });
        insta::assert_snapshot!(steps.collect::<Vec<_>>().join("\n"), @"
        1/4 line 1: FROM busybox
        2/4 line 2: ENV X=1
        3/4 line 3: RUN echo fin
        4/4 line 5: RUN for i in
        ");
        let failure = async |text: &str| build(&lab, Build::inline(text)).await.0.unwrap_err();
        insta::assert_snapshot!(failure("FROM busybox\nCOPY orders.txt /\n").await, @r#"
        the inline Dockerfile could not be built: COPY failed
          at:     the inline Dockerfile:2
          line:   COPY orders.txt /
          reason: "/orders.txt" not found: not found
        "#);
        let secret = "FROM busybox\nRUN --mount=type=secret,id=key,required cat /run/secrets/key\n";
        insta::assert_snapshot!(failure(secret).await, @"
        the inline Dockerfile cannot be built: the build was given no secret `key`
          at:   the inline Dockerfile:2:5
          line: RUN --mount=type=secret,id=key,required cat /run/secrets/key
                    ^^^^^^^
        ");
        insta::assert_snapshot!(failure("FROM busybox\nCOPY --exclude=a . /\n").await, @"
        the inline Dockerfile cannot be built: this engine knows no `--exclude`: it needs Docker 29
          at:   the inline Dockerfile:2:6
          line: COPY --exclude=a . /
                     ^^^^^^^^^
        ");
    })
    .await;
}
