//! What is read from a Dockerfile.

use shakedown_runtime::build::dockerfile::ast::{Dockerfile, Heredoc, Kind, Source};

#[track_caller]
fn parse(text: &str) -> Dockerfile {
    Dockerfile::parse("Dockerfile", text).unwrap()
}

/// The one instruction of a stage.
#[track_caller]
fn kind(line: &str) -> Kind {
    let mut dockerfile = parse(&format!("FROM scratch\n{line}"));
    let instruction = dockerfile.stages.remove(0).instructions.remove(0);
    instruction.kind
}

#[track_caller]
fn reads(line: &str, expected: &str) {
    assert_eq!(format!("{:?}", kind(line)), expected, "{line}");
}

/// Each instruction is understood in each of its forms.
#[test]
fn instructions_are_read() {
    reads(
        "run  echo hi",
        r#"Run(Run { command: Shell("echo hi"), heredocs: [], mounts: [], network: Default, security: Sandbox })"#,
    );
    reads(r#"CMD ["a", "b c"]"#, r#"Cmd(Exec(["a", "b c"]))"#);
    reads("CMD ['a']", r#"Cmd(Shell("['a']"))"#);
    reads("ENTRYPOINT []", "Entrypoint(Exec([]))");
    reads("ENV a=1 b='x y' c=$a\\ z", r#"Env([("a", "1"), ("b", "'x y'"), ("c", "$a\\ z")])"#);
    reads("ENV name  the rest = of it", r#"Env([("name", "the rest = of it")])"#);
    reads("LABEL \"com.shop\"=\"x\" y=", r#"Label([("\"com.shop\"", "\"x\""), ("y", "")])"#);
    reads("ARG a b=1 c=", r#"Arg([("a", None), ("b", Some("1")), ("c", Some(""))])"#);
    reads("EXPOSE 80 443/tcp $more", r#"Expose(["80", "443/tcp", "$more"])"#);
    reads("VOLUME /a /b", r#"Volume(["/a", "/b"])"#);
    reads(r#"VOLUME ["/a b"]"#, r#"Volume(["/a b"])"#);
    reads(r#"SHELL ["/bin/bash", "-c"]"#, r#"Shell(["/bin/bash", "-c"])"#);
    reads("STOPSIGNAL SIGINT", r#"StopSignal("SIGINT")"#);
    reads("HEALTHCHECK NONE", "Healthcheck(None)");
    reads(
        "HEALTHCHECK --interval=5s --retries=2 CMD curl -f http://localhost/",
        r#"Healthcheck(Some(Check { command: Shell("curl -f http://localhost/"), interval: Some(5s), timeout: None, start_period: None, start_interval: None, retries: Some(2) }))"#,
    );
    reads("ONBUILD COPY . /app", r#"Onbuild("COPY . /app")"#);
    reads("MAINTAINER A. Clerk", r#"Maintainer("A. Clerk")"#);
}

/// Flags reach the instruction, quoted ones too.
#[test]
fn flags_are_read() {
    let Kind::Copy(copy) =
        kind(r#"COPY --from=build --chown=1:2 --chmod=0755 --link --exclude=*.md --exclude="a b" a b /c/"#)
    else {
        panic!("no COPY");
    };
    assert_eq!(copy.from.as_deref(), Some("build"));
    assert_eq!((copy.chown.as_deref(), copy.chmod.as_deref(), copy.link), (Some("1:2"), Some("0755"), true));
    assert_eq!(copy.exclude, ["*.md", "a b"]);
    assert_eq!(copy.sources, [Source::Path("a".into()), Source::Path("b".into())]);
    let Kind::Run(run) =
        kind("RUN --mount=type=cache,target=/a --mount=type=tmpfs,dst=/b --network=none make")
    else {
        panic!("no RUN");
    };
    assert_eq!(run.mounts, ["type=cache,target=/a", "type=tmpfs,dst=/b"]);
    reads(
        "RUN --mount=type=secret,id=key -- --odd",
        r#"Run(Run { command: Shell("--odd"), heredocs: [], mounts: ["type=secret,id=key"], network: Default, security: Sandbox })"#,
    );
}

/// A command over several lines is one, comments and empty lines within it are skipped.
#[test]
fn continued_lines_are_joined() {
    let dockerfile = parse(
        "\u{feff}# a comment\n\nFROM scratch\n  RUN a \\\n  # why\n\n    && b \\  \n && c\nENV x=\\\\\n",
    );
    let [run, env] = dockerfile.stages[0].instructions.as_slice() else { panic!("{dockerfile:?}") };
    assert_eq!(run.text, "RUN a     && b  && c");
    assert_eq!((run.lines.first, run.lines.last), (4, 8));
    assert_eq!(env.kind, Kind::Env(vec![("x".into(), "\\\\".into())]));
    let windows = parse("# escape=`\r\nFROM scratch\r\nRUN a `\r\n b\\\r\n");
    assert_eq!((windows.escape, windows.stages[0].instructions[0].text.as_str()), ('`', "RUN a  b\\"));
}

/// Only the top of the file has directives, and one that there is not is a comment.
#[test]
fn directives_are_read_at_the_top() {
    assert_eq!(parse("# syntax=docker/dockerfile:1\n# check=skip=all\n# escape = `\nFROM a").escape, '`');
    assert_eq!(parse("# hello\n# escape=`\nFROM a").escape, '\\');
    assert_eq!(parse("# other=1\n# escape=`\nFROM a").escape, '\\');
}

fn heredoc(name: &str, data: &str, expand: bool, strip_tabs: bool) -> Heredoc {
    Heredoc { name: name.into(), data: data.into(), expand, strip_tabs }
}

/// Documents in the Dockerfile belong to the instruction they begin in.
#[test]
fn heredocs_are_gathered() {
    let Kind::Run(run) = kind("RUN <<EOF\na\n  # no comment\n\nb \\\nEOF\n") else { panic!("no RUN") };
    assert_eq!(run.heredocs, [heredoc("EOF", "a\n  # no comment\n\nb \\\n", true, false)]);
    let Kind::Run(run) = kind("RUN cat <<'A' 3<<-\"B\" > /x\none $x\nA\n\ttwo\n\tB\n") else {
        panic!("no RUN")
    };
    assert_eq!(run.heredocs, [heredoc("A", "one $x\n", false, false), heredoc("B", "\ttwo\n", false, true)]);
    assert_eq!(run.heredocs[1].content(), "two\n");
    let Kind::Copy(copy) = kind("COPY <<a.txt x <<b.txt /d/\n1\na.txt\n2\nb.txt\n") else {
        panic!("no COPY")
    };
    let expected = [
        Source::Heredoc(heredoc("a.txt", "1\n", true, false)),
        Source::Path("x".into()),
        Source::Heredoc(heredoc("b.txt", "2\n", true, false)),
    ];
    assert_eq!(copy.sources, expected);
    let after = parse("FROM scratch\nRUN <<E\nFROM x\nE\nUSER u");
    assert_eq!((after.stages.len(), after.stages[0].instructions[1].lines.first), (1, 5));
    // A shift is no heredoc, nor is one in a JSON list or in another instruction.
    for line in ["RUN echo $((1<<2))", "RUN [\"a\", \"<<EOF\"]", "CMD cat <<EOF", "RUN cat <<<word"] {
        assert!(!format!("{:?}", kind(line)).contains("Heredoc"), "{line}");
    }
    reads("ONBUILD RUN <<E\nx\nE", r#"Onbuild("RUN <<E\nx\nE")"#);
}

/// Stages have names, in lower case, and what stands before the first belongs to all.
#[test]
fn stages_are_read() {
    let dockerfile = parse(
        "ARG V=1\nFROM --platform=$BUILDPLATFORM debian:$V AS Build\nRUN x\nFROM build\nCOPY --from=0 a b\n",
    );
    assert_eq!(dockerfile.global_args.len(), 1);
    let stages: Vec<_> = dockerfile
        .stages
        .iter()
        .map(|s| (s.from.as_str(), s.name.as_deref(), s.instructions.len()))
        .collect();
    assert_eq!(stages, [("debian:$V", Some("build"), 1), ("build", None, 1)]);
    assert_eq!(dockerfile.stages[0].platform.as_deref(), Some("$BUILDPLATFORM"));
}
