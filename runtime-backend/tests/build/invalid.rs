//! What is said about a Dockerfile that is wrong.

use shakedown_runtime::build::dockerfile::ast::Dockerfile;

#[track_caller]
fn refusal(text: &str) -> String {
    Dockerfile::parse("Dockerfile", text).unwrap_err().to_string()
}

/// The line is quoted, the word is marked, and a near name is offered.
#[test]
fn the_line_is_quoted() {
    insta::assert_snapshot!(refusal("FROM scratch\n\nRNU apt-get update\n"), @"
    Dockerfile cannot be built: there is no instruction `RNU`
      at:   Dockerfile:3:1
      line: RNU apt-get update
            ^^^
    hint: did you mean `RUN`?
    ");
    insta::assert_snapshot!(refusal("FROM scratch\nCOPY \\\n  --chmood=1 a b\n"), @"
    Dockerfile cannot be built: `COPY` has no flag `--chmood`
      at:   Dockerfile:3:3
      line:   --chmood=1 a b
              ^^^^^^^^
    hint: did you mean `--chmod`?
    ");
    insta::assert_snapshot!(refusal("FROM scratch\nRUN cat <<END\nhello\n"), @"
    Dockerfile cannot be built: the heredoc `END` has no end
      at:   Dockerfile:2:11
      line: RUN cat <<END
                      ^^^
    hint: put a line after it that is `END` and nothing else
    ");
}

/// What is said about each of them, with the hint.
fn told(cases: &[&str]) -> String {
    let one = |text: &&str| {
        let failure = refusal(text);
        let hint = failure.lines().filter(|line| line.starts_with("hint")).collect::<Vec<_>>().join(" ");
        let title = failure.lines().next().unwrap_or_default();
        let shown = text.strip_prefix("FROM a\n").unwrap_or(text);
        format!("{shown:?}\n  {title} {hint}").trim_end().to_owned()
    };
    cases.iter().map(one).collect::<Vec<_>>().join("\n")
}

/// Mistakes in the order of a file are told apart.
#[test]
fn a_wrong_order_is_told() {
    let cases = [
        "",
        "# nothing\n",
        "RUN x",
        "ARG x\n",
        "FROM",
        "FROM a b",
        "FROM a AS 1st",
        "FROM a AS b c",
        "FROM a AS b\nFROM b AS B",
        "# escape=x\nFROM a",
        "# escape=`\n# escape=`\nFROM a",
        "FROM a\nRUN",
    ];
    insta::assert_snapshot!(told(&cases), @r##"
    ""
      Dockerfile cannot be built: it is empty
    "# nothing\n"
      Dockerfile cannot be built: it is empty
    "RUN x"
      Dockerfile cannot be built: only `ARG` may stand before the first `FROM`
    "ARG x\n"
      Dockerfile cannot be built: it has no `FROM`
    "FROM"
      Dockerfile cannot be built: `FROM` needs an argument
    "FROM a b"
      Dockerfile cannot be built: `b` may not stand here: it is `FROM image` or `FROM image AS name`
    "FROM a AS 1st"
      Dockerfile cannot be built: `1st` cannot name a stage: it is a letter, then letters, digits, `-`, `_`, `.`
    "FROM a AS b c"
      Dockerfile cannot be built: one name follows `AS`
    "FROM a AS b\nFROM b AS B"
      Dockerfile cannot be built: there are two stages called `b`
    "# escape=x\nFROM a"
      Dockerfile cannot be built: `x` cannot be the escape character: it is \ or `
    "# escape=`\n# escape=`\nFROM a"
      Dockerfile cannot be built: the directive `escape` is given twice
    "RUN"
      Dockerfile cannot be built: `RUN` needs an argument
    "##);
}

const MISTAKES: [&str; 24] = [
    "FROM a\nCOPY x",
    "FROM a\nCOPY --from=$x a b",
    "FROM a\nCOPY --link=maybe a b",
    "FROM a\nCOPY --chown a b",
    "FROM a\nCOPY --chown=1 --chown=2 a b",
    "FROM a\nCOPY a <<EOF\nEOF\n",
    "FROM a\nENV x",
    "FROM a\nENV x=1 y",
    "FROM a\nENV =1",
    "FROM a\nCMD [\"a\", 1]",
    "FROM a\nSHELL /bin/bash -c",
    "FROM a\nHEALTHCHECK curl",
    "FROM a\nHEALTHCHECK --interval=5 CMD curl",
    "FROM a\nHEALTHCHECK --retries=-1 CMD curl",
    "FROM a\nHEALTHCHECK NONE x",
    "FROM a\nONBUILD ONBUILD RUN x",
    "FROM a\nONBUILD FROM x",
    "FROM a\nONBUILD RNU x",
    "FROM a\nVOLUME [\"\"]",
    "FROM a\nRUN --mount=type=tape,target=/x y",
    "FROM a\nRUN --mount=type=tmpfs,source=/x,target=/y z",
    "FROM a\nRUN --mount=type=cache z",
    "FROM a\nRUN --network=all z",
    "FROM a\nADD --checksum=sha256:1 a b c",
];

/// Mistakes in instructions are told apart.
#[test]
fn mistakes_are_told_apart() {
    insta::assert_snapshot!(told(&MISTAKES), @r#"
    "COPY x"
      Dockerfile cannot be built: `COPY` needs a source and a destination
    "COPY --from=$x a b"
      Dockerfile cannot be built: variables are not expanded in `--from` hint: put an `ARG` before the first `FROM`, name a stage `FROM $… AS name`, and copy `--from=name`
    "COPY --link=maybe a b"
      Dockerfile cannot be built: `--link` is `true` or `false`, not `maybe`
    "COPY --chown a b"
      Dockerfile cannot be built: `--chown` needs a value: `--chown=…`
    "COPY --chown=1 --chown=2 a b"
      Dockerfile cannot be built: `--chown` is given twice
    "COPY a <<EOF\nEOF\n"
      Dockerfile cannot be built: a heredoc cannot be a destination
    "ENV x"
      Dockerfile cannot be built: `ENV` gives `x` no value hint: write `x=value`
    "ENV x=1 y"
      Dockerfile cannot be built: `y` has no `=` hint: put a value with blanks in quotes: `name="a value"`
    "ENV =1"
      Dockerfile cannot be built: `=1` has no name before its `=`
    "CMD [\"a\", 1]"
      Dockerfile cannot be built: `1` is not a string, and a JSON list has to be of strings only
    "SHELL /bin/bash -c"
      Dockerfile cannot be built: `SHELL` is a JSON list of strings hint: write it as `SHELL ["/bin/sh", "-c"]`
    "HEALTHCHECK curl"
      Dockerfile cannot be built: `curl` is no kind of health check: it is `CMD` or `NONE`
    "HEALTHCHECK --interval=5 CMD curl"
      Dockerfile cannot be built: `5` is not a time, such as `30s`, `1m30s` or `500ms`
    "HEALTHCHECK --retries=-1 CMD curl"
      Dockerfile cannot be built: `-1` is no number of retries: it is a whole number from 0
    "HEALTHCHECK NONE x"
      Dockerfile cannot be built: nothing follows `HEALTHCHECK NONE`
    "ONBUILD ONBUILD RUN x"
      Dockerfile cannot be built: `ONBUILD` may not follow `ONBUILD`
    "ONBUILD FROM x"
      Dockerfile cannot be built: `FROM` may not follow `ONBUILD`
    "ONBUILD RNU x"
      Dockerfile cannot be built: there is no instruction `RNU` hint: did you mean `RUN`?
    "VOLUME [\"\"]"
      Dockerfile cannot be built: a volume has an empty path
    "RUN --mount=type=tape,target=/x y"
      Dockerfile cannot be built: `tape` is no type of mount: there are `bind`, `cache`, `tmpfs`, `secret`, `ssh`
    "RUN --mount=type=tmpfs,source=/x,target=/y z"
      Dockerfile cannot be built: a mount of type `tmpfs` has no `source`
    "RUN --mount=type=cache z"
      Dockerfile cannot be built: a mount of type `cache` needs a `target`
    "RUN --network=all z"
      Dockerfile cannot be built: `--network` is `default`, `none` or `host`, not `all`
    "ADD --checksum=sha256:1 a b c"
      Dockerfile cannot be built: `--checksum` needs exactly one source
    "#);
}
