//! The wait stage against real containers. The tests that need a Docker daemon are in the module `docker`.

mod docker {
    use crate::docker::{Lab, busybox, check, image};
    use shakedown_runtime::Driver;
    use shakedown_runtime::wait::{Target, ready};
    use shakedown_spec::{
        Container, Failure, FailureKind, Healthcheck, HttpCheck, Pattern, Port, ProbeProtocol, PullPolicy,
        Stream, Wait, WaitKind,
    };
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    async fn start(lab: &Lab, container: Container) -> Result<String, Failure> {
        let source = container.image.parse().unwrap();
        let image = lab.driver.resolve(&source, PullPolicy::Missing, Arc::new(|_, _, _| ())).await?;
        let (id, _, log) = lab.start(container.clone()).await?;
        let driver: Arc<dyn Driver> = Arc::clone(&lab.driver) as _;
        ready(&Target::new(driver, id.clone(), container, image.config, log)).await?;
        Ok(id)
    }

    fn waiting(line: &str, wait: Wait) -> Container {
        let mut container = busybox(line);
        container.waits.push(wait);
        container.timeout = Some(Duration::from_secs(20));
        container
    }

    /// The container becomes ready.
    async fn becomes_ready(line: &str, wait: Wait) {
        check(async |lab| {
            start(&lab, waiting(line, wait)).await.unwrap();
        })
        .await;
    }

    /// The container does not become ready, and the failure is told at once or after `limit`.
    async fn fails(container: Container) -> Failure {
        let mut failure = None;
        check(async |lab| failure = Some(start(&lab, container).await.unwrap_err())).await;
        stable(failure.unwrap())
    }

    /// Replaces what differs from run to run.
    fn stable(mut failure: Failure) -> Failure {
        let images = image("busybox").rsplit_once('/').unwrap().0.to_owned();
        for (label, value) in &mut failure.facts {
            *value = value.replace(&images, "oci:images");
            if let Some(at) = value.find(" checks, the last ").filter(|_| label == "last check") {
                let open = value[..at].rfind('(').unwrap();
                *value = format!("{}(N checks, the last N ms ago)", &value[..open]);
            }
            if label == "last check" && value.ends_with(" ms ago)") && value.contains("(1 check, ") {
                let open = value.rfind('(').unwrap();
                *value = format!("{}(1 check, N ms ago)", &value[..open]);
            }
            if label == "container" {
                let image = value.find(", image").unwrap();
                *value = format!("running N s{}", &value[image..]);
            }
        }
        failure
    }

    const WEB: &str = "mkdir -p /www/cgi-bin; echo 'all well' > /www/health; exec httpd -f -p 80 -h /www";

    /// The weakest condition: the first process runs.
    #[tokio::test]
    async fn running() {
        becomes_ready("exec sleep 1000", Wait::running()).await;
    }

    /// A listener counts, published or not.
    #[tokio::test]
    async fn port() {
        becomes_ready(WEB, Wait::port(80)).await;
    }

    /// Without conditions, a declared port is the condition.
    #[tokio::test]
    async fn declared_ports_are_awaited() {
        check(async |lab| {
            let mut container = busybox(&format!("sleep 0.3; {WEB}"));
            container.ports.push(Port::tcp(80));
            let id = start(&lab, container).await.unwrap();
            assert!(lab.driver.listening(&id, 80).await.unwrap());
        })
        .await;
    }

    /// A text that is written in two pieces is found.
    #[tokio::test]
    async fn log_text_across_writes() {
        becomes_ready("printf 'rea'; sleep 0.2; printf 'dy'; exec sleep 1000", Wait::log("ready")).await;
    }

    /// Matches are counted, and only on the stream that was asked for.
    #[tokio::test]
    async fn log_regex_so_many_times_on_one_stream() {
        let line = "echo ready 1 >&2; echo ready 2; echo ready 3 >&2; exec sleep 1000";
        becomes_ready(line, Wait::log_regex(r"^ready \d$").times(2).stream(Stream::Stderr)).await;
    }

    /// A job that ends right after its message was ready.
    #[tokio::test]
    async fn a_log_counts_even_if_the_container_ends() {
        becomes_ready("echo done", Wait::log("done")).await;
    }

    /// A page that is answered with success.
    #[tokio::test]
    async fn http() {
        becomes_ready(WEB, Wait::http(80, "/health")).await;
    }

    /// A status of the user's choice, then a text in the answer.
    #[tokio::test]
    async fn http_with_a_status_and_a_text() {
        let missing =
            HttpCheck { port: Some(80), path: "/no".into(), status: vec![404], ..HttpCheck::default() };
        let text = Some(Pattern::Text("all well".to_owned()));
        let answered =
            HttpCheck { port: Some(80), path: "/health".into(), response: text, ..HttpCheck::default() };
        becomes_ready(WEB, Wait::from(missing).and(answered.into())).await;
    }

    /// A command that fails at first.
    #[tokio::test]
    async fn command() {
        becomes_ready("sleep 0.2; echo 7 > /stock; exec sleep 1000", Wait::command(["cat", "/stock"])).await;
    }

    /// A command with an exit code and an output of the user's choice.
    #[tokio::test]
    async fn command_with_code_and_output() {
        let output = Some(Pattern::Text("7".to_owned()));
        let argv = ["sh", "-c", "cat /stock; exit 3"].map(str::to_owned).to_vec();
        let wait = WaitKind::Command { argv, exit_code: 3, output };
        becomes_ready("sleep 0.2; echo 7 > /stock; exec sleep 1000", wait.into()).await;
    }

    /// A job that has done its work.
    #[tokio::test]
    async fn exit() {
        becomes_ready("exit 0", Wait::exit()).await;
    }

    /// A job whose message and exit code both count.
    #[tokio::test]
    async fn exit_with_code_after_a_log() {
        becomes_ready("echo migrated; exit 4", Wait::log("migrated").and(Wait::exit_code(4))).await;
    }

    /// One condition is enough, whatever the other does.
    #[tokio::test]
    async fn either() {
        becomes_ready("echo up; exec sleep 1000", Wait::port(80).or(Wait::log("up"))).await;
    }

    /// One of two conditions may be the end of the container.
    #[tokio::test]
    async fn either_with_the_exit() {
        becomes_ready("exit 0", Wait::port(80).or(Wait::exit())).await;
    }

    /// A composed condition that has to hold repeatedly.
    #[tokio::test]
    async fn several_times_in_a_row() {
        becomes_ready(WEB, Wait::http(80, "/health").and(Wait::port(80)).times(3)).await;
    }

    /// The health check is run here, at once and not every 30 s.
    #[tokio::test]
    async fn healthy() {
        check(async |lab| {
            let mut container = waiting("sleep 0.2; touch /well; exec sleep 1000", Wait::healthy());
            container.healthcheck = Some(Healthcheck::shell("test -e /well"));
            start(&lab, container).await.unwrap();
        })
        .await;
    }

    /// A real server behind the probe, through its published port and without one.
    #[tokio::test]
    async fn redis() {
        check(async |lab| {
            for ports in [vec![Port::tcp(6379)], Vec::new()] {
                let mut container = Container::of(image("redis"));
                container.ports = ports;
                container.waits.push(Wait::probe(ProbeProtocol::Redis, 6379));
                let id = start(&lab, container).await.unwrap();
                assert!(lab.driver.listening(&id, 6379).await.unwrap());
            }
        })
        .await;
    }

    /// A real server that wants a password is ready, too.
    #[tokio::test]
    async fn redis_with_a_password() {
        check(async |lab| {
            let mut container = Container::of(image("redis"));
            container.command = Some(["redis-server", "--requirepass", "secret"].map(str::to_owned).to_vec());
            container.waits.push(Wait::probe(ProbeProtocol::Redis, 6379));
            start(&lab, container).await.unwrap();
        })
        .await;
    }

    /// The server that the entry point starts for initialisation does not count: after the wait, the database of the
    /// declaration is there and takes connections over TCP.
    #[tokio::test]
    async fn postgres() {
        check(async |lab| {
            let mut container = Container::of(image("postgres"));
            container.ports.push(Port::tcp(5432));
            container.env.insert("POSTGRES_PASSWORD".to_owned(), "secret".to_owned());
            container.env.insert("POSTGRES_DB".to_owned(), "orders".to_owned());
            container.waits.push(Wait::probe(ProbeProtocol::Postgres, 5432));
            let id = start(&lab, container).await.unwrap();
            let query = "PGPASSWORD=secret psql -h 127.0.0.1 -U postgres -tAc 'select 42' orders";
            let request = shakedown_runtime::ExecRequest::of(["sh", "-c", query]);
            let output = lab.driver.exec(&id, request).await.unwrap().collect().await.unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), "42\n", "{output:?}");
        })
        .await;
    }

    /// The report of a timeout.
    #[tokio::test]
    async fn a_timeout_is_reported() {
        let mut container = waiting("echo loading; exec sleep 1000", Wait::port(80));
        container.name = Some("orders".to_owned());
        container.timeout = Some(Duration::from_secs(1));
        insta::assert_snapshot!(fails(container).await, @r"
        orders was not ready after 1 s
          waited for: port 80 to accept connections
          last check: connection refused (N checks, the last N ms ago)
          container:  running N s, image oci:images/busybox
        --- orders, all of its log
        | loading
        ");
    }

    /// The own time of a condition ends it before the container's.
    #[tokio::test]
    async fn a_condition_has_its_own_time() {
        let begin = Instant::now();
        let wait = Wait::running().and(Wait::log("ready").timeout(Duration::from_millis(500)));
        let failure = fails(waiting("echo READY; exec sleep 1000", wait)).await;
        assert!(begin.elapsed() < Duration::from_secs(15));
        assert_eq!(failure.kind, FailureKind::NotReady);
        assert_eq!(failure.hints, ["the log has it in other upper and lower case"]);
    }

    /// Where one of several conditions would do, each one's status is told.
    #[tokio::test]
    async fn a_timeout_of_several_tells_each_status() {
        let mut container = waiting("exec sleep 1000", Wait::port(80).or(Wait::exit()));
        container.timeout = Some(Duration::from_millis(500));
        let failure = fails(container).await;
        let (_, status) = failure.facts.iter().find(|(label, _)| label == "last check").unwrap();
        assert!(status.contains("connection refused") && status.contains("it still runs"), "{failure}");
    }

    /// A container that listens elsewhere than it was asked: the hint says where.
    #[tokio::test]
    async fn the_port_that_is_open_is_told() {
        let mut container = waiting(WEB, Wait::port(8080));
        container.ports = vec![Port::tcp(8080), Port::tcp(80)];
        container.timeout = Some(Duration::from_secs(2));
        assert_eq!(fails(container).await.hints, ["the container listens on port 80"]);
    }

    /// The exit ends a wait at once, with the last lines.
    #[tokio::test]
    async fn an_early_exit_is_reported() {
        let container = waiting("echo 'no password set' >&2; exit 3", Wait::http(80, "/"));
        let mut failure = fails(container).await;
        // Whether a check was made before the end is chance.
        failure.facts.retain(|(label, _)| label != "last check");
        insta::assert_snapshot!(failure, @r"
        busybox exited before it was ready
          exit:       code 3
          waited for: GET / on port 80
          image:      oci:images/busybox
        --- busybox, all of its log
        | no password set
        ");
    }

    /// The wrong exit code fails at once.
    #[tokio::test]
    async fn a_wrong_exit_code_is_reported() {
        insta::assert_snapshot!(fails(waiting("exit 3", Wait::exit())).await, @r"
        busybox exited before it was ready
          exit:       code 3
          waited for: the container to exit with code 0
          image:      oci:images/busybox
        --- busybox: the log is empty
        ");
    }

    /// The end by the kernel's hand has a name, and the declared limit with it.
    #[tokio::test]
    async fn running_out_of_memory_is_reported() {
        let mut container = waiting("tail /dev/zero", Wait::port(80));
        container.resources.memory = Some(16 << 20);
        container.resources.memory_swap = Some(16 << 20);
        let mut failure = fails(container).await;
        failure.facts.retain(|(label, _)| label != "last check");
        insta::assert_snapshot!(failure, @r"
        busybox was killed for its use of memory
          exit:       killed for its use of memory (code 137)
          waited for: port 80 to accept connections
          image:      oci:images/busybox
          limit:      16 MiB
        --- busybox: the log is empty
        hint: raise the limit with `.memory(..)`
        ");
    }

    /// What a command said last is the status.
    #[tokio::test]
    async fn a_command_that_fails_is_quoted() {
        let wait = Wait::command(["cat", "/stock"]);
        let mut container = waiting("exec sleep 1000", wait);
        container.timeout = Some(Duration::from_secs(1));
        let failure = fails(container).await;
        let check = failure.facts.iter().find(|(label, _)| label == "last check").unwrap();
        assert!(check.1.starts_with("exit code 1: cat: can't open '/stock'"), "{failure}");
    }

    /// A command that is not in the image is told, and is no crash.
    #[tokio::test]
    async fn a_missing_command_is_told() {
        let mut container = waiting("exec sleep 1000", Wait::command(["pg_isready"]));
        container.timeout = Some(Duration::from_secs(1));
        let failure = fails(container).await;
        assert_eq!(failure.kind, FailureKind::NotReady);
        assert!(failure.to_string().contains("pg_isready"), "{failure}");
    }
}
