//! The keeper's side of the launcher: fork it, ask it, hear of its children's ends.

use super::identity::{NotMapped, namespaces_forbidden};
use super::protocol::{Envelope, LARGEST, Message, Reply, Request};
use super::serve::{receive_message, send_message};
use super::start;
use super::{Identity, Job};
use crate::detect::Refusal;
use crate::native::launch::{Trouble, Trying};
use crate::native::sys::{self, Called, Clone};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

/// A launcher that was forked and is ready, before there is a runtime to talk to it.
#[derive(Debug)]
pub struct Launcher {
    socket: OwnedFd,
    process: Clone,
    identity: Identity,
}

fn refused(reason: impl Into<String>) -> Refusal {
    Refusal::new("native", reason)
}

impl Launcher {
    /// Forks the launcher. `scratch` is an existing directory of this session. The launcher is this program, executed
    /// with the environment variable `role`, which has to lead it to [`launcher_main`](super::launcher_main).
    ///
    /// Must be called while the process has one thread; it is refused otherwise.
    ///
    /// # Errors
    ///
    /// This machine does not let this user make the namespaces that containers need.
    pub fn fork(scratch: &Path, role: (&str, &str)) -> Result<Self, Refusal> {
        if threads() != Some(1) {
            return Err(refused("the launcher has to be forked before this process has threads"));
        }
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(|errno| refused(format!("socketpair() = {}", sys::errno_name(errno))))?;
        raise_descriptor_limit();
        let wanted = Identity::detect();
        let child = || start::enter(&theirs, role);
        let process = sys::fork_namespaces(wanted.namespaces(), child)
            .call(|| format!("clone3({:#x})", wanted.namespaces()))
            .map_err(|error| {
                let (reason, hints) = namespaces_forbidden(&error);
                Refusal { driver: "native".to_owned(), reason, hints }
            })?;
        let mut launcher = Self { socket: ours, process, identity: wanted };
        launcher.prepare(wanted, scratch)?;
        Ok(launcher)
    }

    fn prepare(&mut self, wanted: Identity, scratch: &Path) -> Result<(), Refusal> {
        self.identity = wanted.map(self.process.pid).map_err(|NotMapped(reason)| refused(reason))?;
        let lost =
            |errno: Errno| refused(format!("the launcher ended at its start: {}", sys::errno_name(errno)));
        let identity = self.identity.name().as_bytes();
        send_message(self.socket.as_fd(), identity, &[]).map_err(lost)?;
        let hello = Envelope { seq: 0, request: Request::Hello { scratch: scratch.to_owned() } };
        let hello = serde_json::to_vec(&hello).map_err(|error| refused(error.to_string()))?;
        let network = fs::File::open("/proc/self/ns/net")
            .map_err(|error| refused(format!("opening /proc/self/ns/net: {error}")))?;
        send_message(self.socket.as_fd(), &hello, &[network.as_fd()]).map_err(lost)?;
        let mut bytes = vec![0; LARGEST];
        let (length, _) = receive_message(self.socket.as_fd(), &mut bytes).map_err(lost)?;
        match serde_json::from_slice(&bytes[..length]) {
            Ok(Message::Reply { reply: Reply::Done, .. }) => Ok(()),
            Ok(Message::Reply { reply: Reply::Trouble(trouble), .. }) => Err(refused(trouble.to_string())),
            _ => Err(refused("the launcher ended at its start")),
        }
    }

    /// Talks to the launcher from now on; must be called within a tokio runtime.
    pub(crate) fn connect(self) -> Result<Handle, Trouble> {
        let doing = || "talk to the launcher".to_owned();
        rustix::io::ioctl_fionbio(&self.socket, true).call(|| "ioctl(FIONBIO)".to_owned()).trying(doing)?;
        let socket = sys::watch(self.socket).map_err(|error| Trouble::new(doing(), error.to_string()))?;
        let shared = Arc::new(Shared {
            socket,
            identity: self.identity,
            pid: self.process.pid,
            books: Mutex::default(),
            sequence: AtomicU64::new(1),
            lost: watch::Sender::new(false),
        });
        tokio::spawn(Shared::listen(Arc::clone(&shared)));
        Ok(Handle { shared })
    }
}

/// The launcher holds a handful of descriptors for each container, and containers inherit the limit, as they do from a
/// daemon that raised it.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}

fn threads() -> Option<u32> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("Threads:"))?.trim().parse().ok()
}

/// The keeper's connection to the launcher.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    shared: Arc<Shared>,
}

/// How a process ended: its exit code, and the signal that ended it.
pub(crate) type Ended = (i32, Option<i32>);

type EndSender = watch::Sender<Option<Ended>>;
type EndReceiver = watch::Receiver<Option<Ended>>;

/// A process the launcher has started.
#[derive(Debug)]
pub(crate) struct Child {
    /// The launcher's number for it.
    pub(crate) number: u64,
    /// Refers to it.
    pub(crate) pidfd: OwnedFd,
    /// Its end: exit code and signal.
    pub(crate) exit: EndReceiver,
}

#[derive(Debug)]
struct Shared {
    socket: AsyncFd<OwnedFd>,
    identity: Identity,
    pid: i32,
    books: Mutex<Books>,
    sequence: AtomicU64,
    lost: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Books {
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    children: HashMap<u64, EndSender>,
}

#[derive(Debug)]
struct Answer {
    reply: Reply,
    beside: Vec<OwnedFd>,
    exit: Option<EndReceiver>,
}

/// A request that was sent and is not answered yet. Requests are carried out in the order in which they were sent.
#[derive(Debug)]
pub(crate) struct Pending(oneshot::Receiver<Answer>);

impl Pending {
    async fn wait(self) -> Result<Answer, Trouble> {
        match self.0.await.map_err(|_| lost())? {
            Answer { reply: Reply::Trouble(trouble), .. } => Err(trouble),
            answer => Ok(answer),
        }
    }

    /// Its answer, with the descriptors beside it.
    pub(crate) async fn answer(self) -> Result<(Reply, Vec<OwnedFd>), Trouble> {
        self.wait().await.map(|answer| (answer.reply, answer.beside))
    }

    /// The process that it started.
    pub(crate) async fn child(self) -> Result<Child, Trouble> {
        let answer = self.wait().await?;
        let pidfd = answer.beside.into_iter().next();
        match (answer.reply, pidfd, answer.exit) {
            (Reply::Started { child: number }, Some(pidfd), Some(exit)) => Ok(Child { number, pidfd, exit }),
            _ => Err(misunderstood()),
        }
    }
}

impl Handle {
    /// As whom containers run.
    pub(crate) fn identity(&self) -> Identity {
        self.shared.identity
    }

    /// The launcher's process id as this process sees it.
    pub(crate) fn pid(&self) -> i32 {
        self.shared.pid
    }

    /// Resolves when the launcher has ended.
    pub(crate) async fn lost(&self) {
        // The sender lives as long as this handle.
        let _ = self.shared.lost.subscribe().wait_for(|lost| *lost).await;
    }

    /// Whether the launcher has ended. The kernel closes its socket before it kills the containers (`do_exit`).
    pub(crate) fn is_lost(&self) -> bool {
        let socket = self.shared.socket.get_ref();
        let mut ends = [PollFd::new(socket, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        *self.shared.lost.borrow() || matches!(poll(&mut ends, Some(&now)), Ok(1..))
    }

    /// Asks for something that is answered without descriptors.
    pub(crate) async fn ask(&self, request: Request) -> Result<Reply, Trouble> {
        self.shared.exchange(request, &[]).await.map(|answer| answer.reply)
    }

    /// Asks for something that may be answered with descriptors.
    pub(crate) async fn ask_for(&self, request: Request) -> Result<(Reply, Vec<OwnedFd>), Trouble> {
        self.shared.exchange(request, &[]).await.map(|answer| (answer.reply, answer.beside))
    }

    /// Starts a process; `descriptors` are its streams and control groups.
    pub(crate) async fn start(
        &self,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Child, Trouble> {
        self.post(request, descriptors).await?.child().await
    }

    /// Asks for something without waiting for the answer.
    pub(crate) async fn post(
        &self,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Pending, Trouble> {
        self.shared.post(request, descriptors).await
    }

    /// Makes sockets in a container's network.
    pub(crate) async fn sockets(&self, id: &str, count: usize) -> Result<Vec<OwnedFd>, Trouble> {
        let request = Request::Sockets { id: id.to_owned(), count };
        Ok(self.shared.exchange(request, &[]).await?.beside)
    }

    /// Makes a UDP socket in a container's network.
    pub(crate) async fn datagram_socket(&self, id: &str) -> Result<OwnedFd, Trouble> {
        let (_, made) = self.ask_for(Request::DatagramSocket { id: id.to_owned() }).await?;
        made.into_iter().next().ok_or_else(misunderstood)
    }

    /// Lets a worker do a job. `data` is the pipe or file it works on; the outcome is what it writes to a second pipe.
    pub(crate) async fn work<T: serde::de::DeserializeOwned>(
        &self,
        job: Job,
        data: BorrowedFd<'_>,
    ) -> Result<T, Trouble> {
        self.work_on(job, &[data]).await
    }

    /// The same, for a job on several pipes or files.
    pub(crate) async fn work_on<T: serde::de::DeserializeOwned>(
        &self,
        job: Job,
        data: &[BorrowedFd<'_>],
    ) -> Result<T, Trouble> {
        use tokio::io::AsyncReadExt;
        let doing = || "hear from a worker".to_owned();
        let (mut outcome, theirs) = receiving_pipe().trying(doing)?;
        self.shared.exchange(Request::Work { job }, &[data, &[theirs.as_fd()]].concat()).await?;
        drop(theirs);
        let mut text = Vec::new();
        outcome.read_to_end(&mut text).await.map_err(|error| Trouble::new(doing(), error.to_string()))?;
        let ended = |_| Trouble::new("finish the work", "the worker ended before it was done");
        serde_json::from_slice::<Result<T, Trouble>>(&text).map_err(ended)?
    }
}

/// A pipe whose reading end belongs to the runtime and whose writing end goes to another process.
pub(crate) fn receiving_pipe() -> Result<(tokio::net::unix::pipe::Receiver, OwnedFd), sys::CallError> {
    let text = || "pipe2(O_CLOEXEC)".to_owned();
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).call(text)?;
    let read = tokio::net::unix::pipe::Receiver::from_owned_fd(read).map_err(|_| Errno::IO).call(text)?;
    Ok((read, write))
}

/// A pipe whose writing end belongs to the runtime and whose reading end goes to another process.
pub(crate) fn sending_pipe() -> Result<(tokio::net::unix::pipe::Sender, OwnedFd), sys::CallError> {
    let text = || "pipe2(O_CLOEXEC)".to_owned();
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).call(text)?;
    let write = tokio::net::unix::pipe::Sender::from_owned_fd(write).map_err(|_| Errno::IO).call(text)?;
    Ok((write, read))
}

fn misunderstood() -> Trouble {
    Trouble::new("understand the launcher", "its answer does not fit the request")
}

fn lost() -> Trouble {
    Trouble::new("reach the launcher", "it has ended, and every container with it")
}

impl Shared {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn exchange(&self, request: Request, beside: &[BorrowedFd<'_>]) -> Result<Answer, Trouble> {
        self.post(request, beside).await?.wait().await
    }

    async fn post(&self, request: Request, beside: &[BorrowedFd<'_>]) -> Result<Pending, Trouble> {
        let seq = self.sequence.fetch_add(1, Ordering::Relaxed);
        let bytes = serde_json::to_vec(&Envelope { seq, request })
            .map_err(|error| Trouble::new("tell the launcher", error.to_string()))?;
        if bytes.len() > LARGEST {
            let reason = format!(
                "the declaration is {} KiB; command, environment and mounts may have {} KiB",
                bytes.len() >> 10,
                LARGEST >> 10
            );
            return Err(Trouble::new("tell the launcher", reason));
        }
        let (answered, answer) = oneshot::channel();
        {
            let mut books = self.books();
            if *self.lost.borrow() {
                return Err(lost());
            }
            books.waiting.insert(seq, answered);
        }
        let sent = self
            .socket
            .async_io(Interest::WRITABLE, |socket| Ok(send_message(socket.as_fd(), &bytes, beside)?))
            .await;
        if sent.is_err() {
            self.books().waiting.remove(&seq);
            return Err(lost());
        }
        Ok(Pending(answer))
    }

    /// Hears the launcher until one of the two ends.
    async fn listen(self: Arc<Self>) {
        let mut bytes = vec![0; LARGEST];
        loop {
            let read = |socket: &OwnedFd| Ok(receive_message(socket.as_fd(), &mut bytes)?);
            let Ok((length, beside)) = self.socket.async_io(Interest::READABLE, read).await else { break };
            let Ok(message) = serde_json::from_slice(&bytes[..length]) else { break };
            self.hear(message, beside);
        }
        // A launcher that could not be understood has to end as well.
        let _ = rustix::net::shutdown(self.socket.get_ref(), rustix::net::Shutdown::Both);
        let mut books = self.books();
        self.lost.send_replace(true);
        books.waiting.clear();
        books.children.clear();
    }

    fn hear(&self, message: Message, beside: Vec<OwnedFd>) {
        let mut books = self.books();
        match message {
            Message::Exited { child, code, signal } => {
                if let Some(told) = books.children.remove(&child) {
                    told.send_replace(Some((code, signal)));
                }
            }
            Message::Reply { seq, reply } => {
                // Before the next message is read: it may be this child's end.
                let exit = match reply {
                    Reply::Started { child } => {
                        let (told, exit) = watch::channel(None);
                        books.children.insert(child, told);
                        Some(exit)
                    }
                    _ => None,
                };
                if let Some(waiting) = books.waiting.remove(&seq) {
                    let _ = waiting.send(Answer { reply, beside, exit });
                }
            }
        }
    }
}
