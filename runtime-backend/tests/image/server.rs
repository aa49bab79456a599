//! A real registry: Docker's own.

use crate::images::{Parts, bytes};
use shakedown_runtime::native::image::Digest;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

/// Docker's own registry, on a free port, with `more` lines in its configuration. It ends with the test.
pub(crate) struct Registry {
    process: Child,
    pub(crate) address: String,
    log: Arc<Mutex<Vec<String>>>,
    ended: Receiver<()>,
    _data: tempfile::TempDir,
}

impl Registry {
    pub(crate) fn start(more: &str) -> Self {
        let data = tempfile::tempdir().unwrap();
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n{more}",
            data.path().display()
        );
        let path = data.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("`docker-registry` has to be installed: apt install docker-registry");
        let log = Arc::new(Mutex::new(Vec::new()));
        let (found, address) = channel();
        let (end, ended) = channel::<()>();
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(process.stdout.take().unwrap()), Box::new(process.stderr.take().unwrap())];
        for stream in streams {
            let (log, found, end) = (Arc::clone(&log), found.clone(), end.clone());
            std::thread::spawn(move || {
                let _end = end;
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if let Some((_, rest)) = line.split_once("listening on ") {
                        let end = rest
                            .find(|c: char| c != '.' && c != ':' && !c.is_ascii_digit())
                            .unwrap_or(rest.len());
                        let _ = found.send(rest[..end].to_owned());
                    }
                    log.lock().unwrap().push(line);
                }
            });
        }
        let address = address.recv().expect("the registry says where it listens");
        Self { process, address, log, ended, _data: data }
    }

    /// Puts an image there, in the plain protocol.
    pub(crate) fn push(&self, parts: &Parts, repository: &str, tag: &str, headers: &str) {
        let config = bytes(&parts.config);
        for blob in parts.blobs.iter().chain([&config]) {
            let (status, head) = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), headers, b"");
            assert!(status == 202, "{head}");
            let location = head.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap();
            let path = location.trim().split_once(&self.address).map_or(location, |(_, path)| path).trim();
            let target = format!("{path}&digest={}", Digest::of(blob));
            let (status, head) = self.send("PUT", &target, headers, blob);
            assert!(status == 201, "{head}");
        }
        let headers = format!("{headers}Content-Type: application/vnd.oci.image.manifest.v1+json\r\n");
        let path = format!("/v2/{repository}/manifests/{tag}");
        let (status, head) = self.send("PUT", &path, &headers, &bytes(&parts.manifest));
        assert!(status == 201, "{head}");
    }

    pub(crate) fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n",
            self.address
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
    }

    /// Ends the registry and gives everything it logged.
    pub(crate) fn finish(mut self) -> Vec<String> {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        // Both readers have let go: the log is whole.
        let _ = self.ended.recv();
        std::mem::take(&mut *self.log.lock().unwrap())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The text of a failure, with the address of this run taken out.
pub(crate) fn shown(failure: &shakedown_spec::Failure, address: &str, work: &Path) -> String {
    failure.to_string().replace(address, "127.0.0.1:5000").replace(work.to_str().unwrap(), "DIR")
}
