//! What instructions make of an image's configuration, and what they leave to do.

use shakedown_runtime::build::config::State;
use shakedown_runtime::build::dockerfile::ast::Dockerfile;
use shakedown_runtime::build::document::Document;
use shakedown_runtime::build::plan::{Plan, Settings};
use shakedown_runtime::build::step::{CopySource, CopyStep, Mode, Origin, RunMount, RunStep, Sharing, Step};
use shakedown_spec::Failure;
use std::sync::Arc;

const BASE: &str = r#"{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin","LANG=C"],"Cmd":["sh"],
    "WorkingDir":"/srv","OnBuild":["ENV TRIGGERED=$LANG"]},"rootfs":{"type":"layers","diff_ids":[]}}"#;

fn plan(text: &str, settings: Settings) -> Result<Arc<Plan>, Failure> {
    let dockerfile = Dockerfile::parse("Dockerfile", text)?;
    Plan::new(Arc::new(dockerfile), settings).map(Arc::new)
}

fn args(pairs: &[(&str, &str)]) -> Settings {
    let args = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Settings { args, ..Settings::default() }
}

/// Every stage that is needed, evaluated; the last one and its steps are given. Images are all `BASE`.
fn evaluate(text: &str, settings: Settings) -> Result<(Document, Vec<Step>), Failure> {
    let plan = plan(text, settings)?;
    let mut states: Vec<Option<State>> = vec![None; plan.bases.len()];
    let mut steps = Vec::new();
    for &index in &plan.order {
        let mut state = match &plan.bases[index] {
            Origin::Stage(base) => State::stage(&plan, index, states[*base].as_ref().unwrap()),
            Origin::Image(_) => State::image(&plan, index, BASE.as_bytes())?,
            _ => State::scratch(&plan, index),
        };
        let triggers = state.triggers()?;
        let own = plan.dockerfile.stages[index].instructions.clone();
        let done = triggers.iter().chain(&own).map(|instruction| state.apply(instruction));
        steps = done.collect::<Result<_, _>>()?;
        states[index] = Some(state);
    }
    let document = states[plan.target].as_ref().unwrap().finish(Vec::new(), "2024-01-01T00:00:00Z");
    Ok((document, steps))
}

#[track_caller]
fn config(text: &str) -> serde_json::Value {
    let document = evaluate(text, Settings::default()).unwrap().0;
    serde_json::to_value(document.config).unwrap()
}

/// The only `RUN` of a Dockerfile.
#[track_caller]
fn run(text: &str, settings: Settings) -> RunStep {
    let steps = evaluate(text, settings).unwrap().1;
    let run = steps.into_iter().rev().find_map(|step| match step {
        Step::Run(run) => Some(run),
        _ => None,
    });
    run.expect("no RUN")
}

#[track_caller]
fn copy(line: &str) -> CopyStep {
    let steps = evaluate(
        &format!("FROM scratch AS one\nFROM scratch\nENV d=/data e=\nWORKDIR /app\n{line}"),
        Settings::default(),
    );
    match steps.unwrap().1.pop() {
        Some(Step::Copy(copy)) => copy,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refusal(text: &str) -> String {
    evaluate(text, Settings::default()).unwrap_err().to_string()
}

/// What every instruction does to the configuration.
#[test]
fn the_configuration_is_docker_s() {
    let text = r#"FROM base
ENV HOME=/home LANG=de_$LANG
ENV PATH=$PATH:$HOME/bin OLD $HOME
LABEL a="x $HOME" b='$HOME'
WORKDIR sub/../data
WORKDIR $HOME
USER ${USERNAME:-shop}:${GROUP-staff}
EXPOSE 80 53/UDP 8000-8002
VOLUME /v ["/w"]
ENTRYPOINT ["/entry", "$HOME"]
STOPSIGNAL SIGINT
HEALTHCHECK --interval=1m --timeout=3s CMD ["check", "me"]
ONBUILD RUN echo "$HOME"
SHELL ["/bin/bash", "-c"]
MAINTAINER Clerk
"#;
    let text = text.replace(" OLD $HOME", "").replace("VOLUME /v [\"/w\"]", "VOLUME /v /w");
    insta::assert_snapshot!(serde_json::to_string_pretty(&config(&text)).unwrap(), @r#"
    {
      "Entrypoint": [
        "/entry",
        "$HOME"
      ],
      "Env": [
        "PATH=/bin:/home/bin",
        "LANG=de_C",
        "TRIGGERED=C",
        "HOME=/home"
      ],
      "ExposedPorts": {
        "53/udp": {},
        "80/tcp": {},
        "8000/tcp": {},
        "8001/tcp": {},
        "8002/tcp": {}
      },
      "Healthcheck": {
        "Interval": 60000000000,
        "Test": [
          "CMD",
          "check",
          "me"
        ],
        "Timeout": 3000000000
      },
      "Labels": {
        "a": "x /home",
        "b": "$HOME"
      },
      "OnBuild": [
        "RUN echo \"$HOME\""
      ],
      "Shell": [
        "/bin/bash",
        "-c"
      ],
      "StopSignal": "SIGINT",
      "User": "shop:staff",
      "Volumes": {
        "/v": {},
        "/w": {}
      },
      "WorkingDir": "/home"
    }
    "#);
}

/// `CMD` of the base image goes with a new `ENTRYPOINT`, that of the same stage stays; empty lists clear.
#[test]
fn entrypoints_take_the_command_of_the_base_away() {
    let commands = |text: &str| {
        let config = config(text);
        (
            config.get("Entrypoint").cloned().unwrap_or_default(),
            config.get("Cmd").cloned().unwrap_or_default(),
        )
    };
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(commands("FROM base\nENTRYPOINT [\"e\"]"), (json("[\"e\"]"), json("null")));
    assert_eq!(
        commands("FROM base\nCMD a b\nENTRYPOINT e"),
        (json(r#"["/bin/sh","-c","e"]"#), json(r#"["/bin/sh","-c","a b"]"#))
    );
    assert_eq!(commands("FROM base\nENTRYPOINT []"), (json("null"), json("null")));
    assert_eq!(
        commands("FROM base\nSHELL [\"bash\",\"-ec\"]\nCMD a"),
        (json("null"), json(r#"["bash","-ec","a"]"#))
    );
}

/// Which `ARG` is seen where, and what wins.
#[test]
fn arguments_have_scopes() {
    let seen = |text: &str, given: &[(&str, &str)], name: &str| {
        let run = run(text, args(given));
        run.env.into_iter().find(|(there, _)| there == name).map(|(_, value)| value)
    };
    let some = |text: &str| Some(text.to_owned());
    // Global ones are seen in a stage only if it says so.
    assert_eq!(seen("ARG V=1\nFROM base\nRUN x", &[], "V"), None);
    assert_eq!(seen("ARG V=1\nFROM base\nARG V\nRUN x", &[], "V"), some("1"));
    assert_eq!(seen("ARG V=1\nFROM base\nARG V=2\nRUN x", &[], "V"), some("2"));
    assert_eq!(seen("ARG V=1\nFROM base\nARG V=2\nRUN x", &[("V", "3")], "V"), some("3"));
    // What was not declared is not seen; proxies always are.
    assert_eq!(seen("FROM base\nRUN x", &[("V", "3")], "V"), None);
    assert_eq!(seen("FROM base\nRUN x", &[("https_proxy", "p")], "https_proxy"), some("p"));
    // An unset one is not there at all, and does not hide the environment.
    assert_eq!(seen("FROM base\nARG LANG\nRUN x", &[], "LANG"), some("C"));
    assert_eq!(seen("FROM base\nARG V\nRUN x", &[], "V"), None);
    assert_eq!(seen("FROM base\nARG V=1\nENV V=2\nRUN x", &[("V", "3")], "V"), some("2"));
    assert_eq!(seen("FROM base\nARG V=1 W=${V}2\nRUN x", &[], "W"), some("12"));
    assert_eq!(seen("FROM base AS a\nARG V=1\nFROM a\nRUN x", &[], "V"), some("1"));
    assert_eq!(seen("FROM base\nARG TARGETOS\nRUN x", &[], "TARGETOS"), some("linux"));
    assert_eq!(seen("FROM base\nRUN x", &[], "TARGETOS"), None);
}

/// Triggers of the base image run first, and are not inherited further.
#[test]
fn triggers_run_in_the_next_build() {
    let config = config("FROM base\nENV AFTER=$TRIGGERED");
    assert_eq!(config["Env"], serde_json::json!(["PATH=/bin", "LANG=C", "TRIGGERED=C", "AFTER=C"]));
    assert_eq!(config.get("OnBuild"), None);
}

/// Only the stages that are needed are built, in their order.
#[test]
fn stages_that_nobody_needs_are_left_out() {
    let text = "ARG B=base\nFROM $B AS one\nFROM base AS two\nRUN --mount=from=one,target=/x y\nFROM base AS unused\n\
        FROM scratch AS last\nCOPY --from=two /a /b\nCOPY --from=busybox:1 /c /d\n";
    let order = |target: Option<&str>| {
        let plan = plan(text, Settings { target: target.map(str::to_owned), ..Settings::default() }).unwrap();
        let images = plan.images().unwrap().into_iter().map(|(image, _)| image).collect::<Vec<_>>().join(" ");
        (plan.order.clone(), images, plan.steps())
    };
    assert_eq!(order(None), (vec![0, 1, 3], "base busybox:1".to_owned(), 6));
    assert_eq!(order(Some("ONE")), (vec![0], "base".to_owned(), 1));
    assert_eq!(order(Some("1")), (vec![0, 1], "base".to_owned(), 3));
}

/// What a `RUN` is to do.
#[test]
fn runs_are_ready_to_run() {
    let argv = |lines: &str| run(&format!("FROM base\n{lines}"), Settings::default()).argv;
    assert_eq!(argv("RUN echo $LANG"), ["/bin/sh", "-c", "echo $LANG"]);
    assert_eq!(argv("RUN [\"echo\", \"$LANG\"]"), ["echo", "$LANG"]);
    assert_eq!(argv("SHELL [\"bash\", \"-ec\"]\nRUN a"), ["bash", "-ec", "a"]);
    assert_eq!(argv("RUN <<-E\n\ta\n\tb\n\tE"), ["/bin/sh", "-c", "a\nb\n"]);
    assert_eq!(argv("RUN cat <<A - <<B\n1\nA\n2\nB"), ["/bin/sh", "-c", "cat <<A - <<B\n1\nA\n2\nB"]);
    let script = run("FROM base\nRUN <<E\n#!/usr/bin/python3\nprint(1)\nE", Settings::default());
    assert_eq!(script.argv, ["/dev/pipes/E"]);
    assert_eq!(script.script, Some(("/dev/pipes/E".into(), "#!/usr/bin/python3\nprint(1)\n".into())));
    let run = run("FROM base\nWORKDIR /app\nUSER shop\nRUN a", Settings::default());
    assert_eq!((run.workdir.as_str(), run.user.as_str()), ("/app", "shop"));
}

/// What the mounts of a `RUN` are.
#[test]
fn mounts_are_read() {
    let mounts = |flags: &str| {
        run(
            &format!("FROM base AS one\nFROM base\nWORKDIR /app\nENV d=/data\nRUN {flags} x"),
            Settings::default(),
        )
        .mounts
    };
    let bind = RunMount::Bind {
        target: "/app/src".into(),
        from: Origin::Context,
        source: "/".into(),
        writable: false,
    };
    assert_eq!(mounts("--mount=target=src"), [bind]);
    let bind = RunMount::Bind {
        target: "/data".into(),
        from: Origin::Stage(0),
        source: "/a".into(),
        writable: true,
    };
    assert_eq!(mounts("--mount=type=bind,from=one,src=../a,dst=$d,rw"), [bind]);
    let cache = RunMount::Cache {
        target: "/root/.cache".into(),
        id: "/root/.cache".into(),
        read_only: false,
        sharing: Sharing::Locked,
        from: None,
        mode: 0o700,
        uid: 1,
        gid: 0,
    };
    assert_eq!(mounts("--mount=type=cache,target=/root/.cache,sharing=locked,mode=0700,uid=1"), [cache]);
    assert_eq!(
        mounts("--mount=type=tmpfs,target=/t,size=64m"),
        [RunMount::Tmpfs { target: "/t".into(), size: Some(64 << 20) }]
    );
    let secret = RunMount::Secret {
        id: "key".into(),
        target: Some("/run/secrets/key".into()),
        env: None,
        required: true,
        mode: 0o400,
        uid: 0,
        gid: 0,
    };
    assert_eq!(mounts("--mount=type=secret,id=key,required"), [secret]);
}

/// What a `COPY` or `ADD` is to do.
#[test]
fn copies_are_ready_to_be_made() {
    let path = |path: &str| CopySource::Path(path.into());
    let step = copy("COPY --chown=$e1:${g:-2} --chmod=755 a \"$d/b\" ./");
    assert_eq!((step.sources, step.destination.as_str()), (vec![path("a"), path("/data/b")], "/app/"));
    assert_eq!((step.chown.as_deref(), step.chmod), (Some(":2"), Some(Mode::Bits(0o755))));
    assert_eq!(copy("COPY a b").destination, "/app/b");
    assert_eq!(copy("COPY a .").destination, "/app/");
    assert_eq!(copy("COPY [\"a b\", \"$d/\"]").destination, "/data/");
    assert_eq!(copy("COPY --from=one a /").from, Origin::Stage(0));
    assert_eq!(copy("COPY --from=0 a /").from, Origin::Stage(0));
    assert_eq!(copy("COPY --from=nginx:1 a /").from, Origin::Image("nginx:1".into()));
    assert_eq!(copy("COPY --chmod=u=rwX,go=rX a /").chmod, Some(Mode::Symbolic("u=rwX,go=rX".into())));
    assert_eq!(
        copy("COPY <<f /\n$d '$d'\nf").sources,
        [CopySource::Inline { name: "f".into(), data: "/data '/data'\n".into() }]
    );
    assert_eq!(
        copy("COPY <<'f' /\n$d\nf").sources,
        [CopySource::Inline { name: "f".into(), data: "$d\n".into() }]
    );
    assert_eq!(
        copy("ADD https://shop.example/a.tar /").sources,
        [CopySource::Address("https://shop.example/a.tar".into())]
    );
    assert_eq!(
        copy("ADD https://shop.example/a.git#v1 /").sources,
        [CopySource::Git("https://shop.example/a.git#v1".into())]
    );
    assert_eq!(copy("ADD a.tar /").sources, [path("a.tar")]);
}

/// What is only known when it is expanded is told with its line, too.
#[test]
fn mistakes_that_show_late_quote_the_line() {
    insta::assert_snapshot!(refusal("FROM base\nENV x=\"${y:?give a y}\""), @r#"
    Dockerfile cannot be built: `y`: give a y
      at:   Dockerfile:2
      line: ENV x="${y:?give a y}"
    "#);
    insta::assert_snapshot!(refusal("FROM $X"), @"
    Dockerfile cannot be built: `$X` is empty
      at:   Dockerfile:1:6
      line: FROM $X
                 ^^
    hint: only `ARG`s before the first `FROM` are seen in a `FROM`; give them a default
    ");
    let cases = [
        "FROM base\nEXPOSE web",
        "FROM base\nEXPOSE 80/http",
        "FROM base\nEXPOSE 90-80",
        "FROM base\nSTOPSIGNAL SIGSTOPP",
        "FROM base\nCOPY a b c",
        "FROM base\nCOPY --chmod=9 a b",
        "FROM base\nCOPY --chmod=rwx a b",
        "FROM base AS a\nCOPY --from=a b c",
        "FROM base AS a\nCOPY --from=b b c\nFROM base AS b\nFROM a",
        "FROM base\nCOPY --from=7 b c",
        "FROM base\nADD --checksum=md5:1 b c",
        "FROM --platform=a/b/c/d base",
        "FROM base\nRUN --mount=type=cache,target=/ x",
        "FROM base\nRUN --mount=type=tmpfs,target=/a,size=x x",
        "FROM base\nUSER \"shop",
        "FROM base\nLABEL ${}=1",
    ];
    let told: Vec<String> =
        cases.iter().map(|text| refusal(text).lines().next().unwrap_or_default().to_owned()).collect();
    insta::assert_snapshot!(told.join("\n"), @r#"
    Dockerfile cannot be built: `web` is not a port, such as `8080`, `53/udp` or `8000-8010`
    Dockerfile cannot be built: `http` is no protocol of a port: there are `tcp`, `udp` and `sctp`
    Dockerfile cannot be built: `90-80` is not a port, such as `8080`, `53/udp` or `8000-8010`
    Dockerfile cannot be built: `SIGSTOPP` is not a signal
    Dockerfile cannot be built: several sources need a destination that ends with `/`
    Dockerfile cannot be built: `9` is not a mode from 0 to 7777
    Dockerfile cannot be built: `rwx` is not a mode, such as `0755` or `u=rwX,go=rX`
    Dockerfile cannot be built: stage `a` cannot take files from itself
    Dockerfile cannot be built: stage `b` comes later
    Dockerfile cannot be built: there is no stage `7`: the first is 0
    Dockerfile cannot be built: `md5:1` is not `sha256:` and 64 hexadecimal digits
    Dockerfile cannot be built: `a/b/c/d` is not a platform such as `linux/amd64` or `linux/arm/v7`
    Dockerfile cannot be built: a mount cannot cover `/`
    Dockerfile cannot be built: `size=x` of a mount is not a size, such as `64m`
    Dockerfile cannot be built: a `"` has no second one
    Dockerfile cannot be built: a `${` has no name
    "#);
    let target = Settings { target: Some("biuld".into()), ..Settings::default() };
    insta::assert_snapshot!(plan("FROM base AS build", target).unwrap_err(), @"
    Dockerfile cannot be built: it has no stage `biuld`
      stages: build
    hint: did you mean `build`?
    ");
}
