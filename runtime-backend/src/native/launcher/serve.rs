//! The launcher process: one loop over the keeper's requests and the ends of its children.

use super::Identity;
use super::protocol::{
    Connection, Envelope, Instead, Job, LARGEST, MOST_DESCRIPTORS, Message, Part, PartKind, Reply, Request,
    Target, WrittenFile,
};
use super::remap::{Shift, Users};
use super::share;
use super::worker::{self, Roots};
use super::{files, gather};
use crate::native::launch::mounts::{is_bind, make_devices, open_bind};
use crate::native::launch::{self, Form, Join, Joined, Joining, Launched, Program, Trouble, Trying, World};
use crate::native::network::addresses::Address;
use crate::native::network::namespace::{ContainerNetwork, Leaving, Networks, Waiting};
use crate::native::rootfs::Rootfs;
use crate::native::seccomp::{self, Filter, Policy};
use crate::native::stacked::{Stacking, VARIABLE, is_refusal};
use crate::native::sys::{self, CallError, Called, Clone, Stack};
use libc::sock_filter;
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, Mount, Process, Spec};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, fsconfig_create, fsmount, fsopen,
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use rustix::process::{Signal, WaitId, WaitIdOptions, waitid};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Runs the launcher until the keeper is gone; returns its exit code.
pub(super) fn run(socket: OwnedFd, identity: Identity) -> i32 {
    sys::reset_signals();
    // The modes of what is made here are meant as they stand.
    rustix::process::umask(Mode::empty());
    // The keeper's end is seen at its socket. Should this process stand still just then, the kernel ends it.
    if rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).is_err() {
        return 1;
    }
    sys::overwrite_arguments("shakedown: launcher");
    let mut buffer = vec![0; LARGEST];
    let hello = receive(&socket, &mut buffer);
    let Ok(Some((Envelope { seq, request: Request::Hello { scratch } }, beside))) = hello else { return 1 };
    match Server::new(&socket, identity, scratch, beside.into_iter().next()) {
        Ok(mut server) => {
            if send(&socket, &Message::Reply { seq, reply: Reply::Done }, &[]).is_err() {
                return 1;
            }
            server.serve(&mut buffer);
            // Everything else in this pid namespace is killed by the kernel as this process ends.
            0
        }
        Err(trouble) => {
            let _ = send(&socket, &Message::Reply { seq, reply: Reply::Trouble(trouble) }, &[]);
            1
        }
    }
}

/// The next request with its descriptors; `None` when the keeper is gone.
fn receive(socket: &OwnedFd, bytes: &mut [u8]) -> Result<Option<(Envelope, Vec<OwnedFd>)>, CallError> {
    let (length, descriptors) =
        receive_message(socket.as_fd(), bytes).call(|| "recvmsg(keeper)".to_owned())?;
    if length == 0 {
        return Ok(None);
    }
    serde_json::from_slice(&bytes[..length])
        .map(|envelope| Some((envelope, descriptors)))
        .map_err(|_| CallError { call: "recvmsg(keeper)".to_owned(), errno: Errno::BADMSG })
}

/// One message and the descriptors beside it; length 0 when the other side is gone.
pub(crate) fn receive_message(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut slices = [IoSliceMut::new(bytes)];
        match rustix::net::recvmsg(socket, &mut slices, &mut beside, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut descriptors = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(list) = message {
            descriptors.extend(list);
        }
    }
    Ok((received.bytes, descriptors))
}

/// Sends one message with descriptors beside it.
pub(crate) fn send_message(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    beside: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !beside.is_empty() && !control.push(SendAncillaryMessage::ScmRights(beside)) {
        return Err(Errno::TOOBIG);
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).map(drop)
}

fn send(socket: &OwnedFd, message: &Message, beside: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let bytes = serde_json::to_vec(message).map_err(|_| Errno::INVAL)?;
    if bytes.len() > LARGEST {
        return Err(Errno::MSGSIZE);
    }
    send_message(socket.as_fd(), &bytes, beside)
}

/// One container.
struct Container {
    rootfs: Rootfs,
    /// Whether its users are others than the launcher's.
    remapped: bool,
    /// The mount of the root that is in the container's mount namespace, once it has one.
    inner: Option<OwnedFd>,
    network: Attached,
    /// A process in its network that waits to be its first one.
    ahead: Option<Waiting>,
    init: Option<Init>,
    /// The request to answer when the last process is gone.
    removal: Option<u64>,
}

impl Container {
    /// Whether it waits for its start, in a network of its own.
    fn is_prepared(&self) -> bool {
        self.init.is_none() && matches!(self.network, Attached::Own(_))
    }
}

/// A container's network, and whose it is.
enum Attached {
    Own(ContainerNetwork),
    /// The host's, or another container's.
    Shared(OwnedFd),
}

impl Attached {
    fn namespace(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(network) => network.namespace.as_fd(),
            Self::Shared(namespace) => namespace.as_fd(),
        }
    }
}

/// A container's first process, as further ones join it.
struct Init {
    child: u64,
    pidfd: OwnedFd,
    /// Its pid namespace, unless it had ended before that was asked for.
    pids: Option<OwnedFd>,
    namespaces: u32,
    /// Whether the container's processes are among another's, and so do not end with it.
    among_others: bool,
    /// Its mount namespace as long as it runs: else the kernel would unmount everything in there before it tells that
    /// the process has ended.
    mounts: Option<OwnedFd>,
}

/// What a container is started with.
struct Start<'a> {
    id: &'a str,
    spec: &'a Spec,
    filter: Filter,
    live_nodes: bool,
    files: &'a [WrittenFile],
    parts: &'a [Part],
    init: bool,
}

struct Server<'a> {
    socket: &'a OwnedFd,
    identity: Identity,
    scratch: PathBuf,
    stack: Stack,
    /// A procfs of this pid namespace; the one at `/proc` counts processes as the host does.
    proc: OwnedFd,
    own_pids: OwnedFd,
    networks: Networks,
    /// Children that take containers from networks, with the requests to answer.
    leaving: BTreeMap<u64, (u64, Leaving)>,
    /// Those of containers whose users are others, from the first such container on.
    users: Option<Users>,
    /// The host's network namespace.
    host: Option<OwnedFd>,
    /// Where the devices of containers are, if nodes can be made.
    devices: Option<PathBuf>,
    containers: BTreeMap<String, Container>,
    children: BTreeMap<u64, Clone>,
    /// Further processes on their way to their program, by the request to answer.
    joining: BTreeMap<u64, Joining>,
    started: u64,
    filters: RefCell<HashMap<Vec<String>, Vec<sock_filter>>>,
}

/// What there is to do.
struct Ready {
    /// A request can be read.
    request: bool,
    /// Further processes that have executed their program, or could not.
    joined: Vec<u64>,
    /// Children that have ended.
    ended: Vec<u64>,
}

impl Ready {
    fn is_empty(&self) -> bool {
        !self.request && self.joined.is_empty() && self.ended.is_empty()
    }
}

/// The addresses of a container, and the sockets of what begins in its network.
type Connected = (Vec<Address>, Vec<OwnedFd>);

/// What a request is answered with.
type Answer = Result<(Reply, Vec<OwnedFd>), Trouble>;

impl<'a> Server<'a> {
    fn new(
        socket: &'a OwnedFd,
        identity: Identity,
        scratch: PathBuf,
        host: Option<OwnedFd>,
    ) -> Result<Self, Trouble> {
        let doing = || "set up the launcher".to_owned();
        rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
            .call(|| "mount(NULL, \"/\", NULL, MS_REC|MS_SLAVE, NULL)".to_owned())
            .trying(doing)?;
        let proc = own_proc()?;
        let own_pids = open_in(&proc, "self/ns/pid").trying(doing)?;
        let devices = (identity == Identity::Root).then(|| scratch.clone());
        let nodes = devices.as_deref().map(make_devices).transpose()?;
        Ok(Self {
            socket,
            identity,
            scratch,
            stack: Stack::new().call(|| "mmap(stack)".to_owned()).trying(doing)?,
            proc,
            own_pids,
            networks: Networks::new(nodes)?,
            leaving: BTreeMap::new(),
            users: None,
            host,
            devices,
            containers: BTreeMap::new(),
            children: BTreeMap::new(),
            joining: BTreeMap::new(),
            started: 0,
            filters: RefCell::default(),
        })
    }

    fn serve(&mut self, buffer: &mut [u8]) {
        loop {
            let ready = self.wait();
            // Before the ends of children: a process that has ended at once is a child first.
            for seq in ready.joined {
                self.has_joined(seq);
            }
            for child in ready.ended {
                self.child_ended(child);
            }
            if ready.request {
                match receive(self.socket, buffer) {
                    Ok(Some((envelope, descriptors))) => self.answer(envelope, descriptors),
                    Ok(None) | Err(_) => return,
                }
            }
        }
    }

    /// Waits for something to do; when there has been nothing for a while, makes a namespace for the next container.
    fn wait(&mut self) -> Ready {
        // Long enough for a container that ends at once to be gone: on a machine with few processors it would have to wait.
        const QUIET: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
        let ready = self.poll(Some(&QUIET));
        if !ready.is_empty() {
            return ready;
        }
        // The keeper is about to ask for the start of a container that is prepared, which would have to wait.
        if !self.is_preparing() {
            self.networks.stock_up();
        }
        self.poll(None)
    }

    /// Whether a container waits for its start.
    fn is_preparing(&self) -> bool {
        self.containers.values().any(Container::is_prepared)
    }

    fn poll(&self, timeout: Option<&Timespec>) -> Ready {
        let mut set = vec![PollFd::new(self.socket, PollFlags::IN)];
        set.extend(self.joining.values().map(|joining| PollFd::new(joining.report(), PollFlags::IN)));
        set.extend(self.children.values().map(|child| PollFd::new(&child.pidfd, PollFlags::IN)));
        while let Err(Errno::INTR) = rustix::event::poll(&mut set, timeout) {}
        let (joining, children) = set[1..].split_at(self.joining.len());
        let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let keys = self.joining.keys().zip(joining).filter(|(_, fd)| ready(fd));
        let joined = keys.map(|(seq, _)| *seq).collect();
        let keys = self.children.keys().zip(children).filter(|(_, fd)| ready(fd));
        Ready { request: ready(&set[0]), joined, ended: keys.map(|(number, _)| *number).collect() }
    }

    /// Answers the request for a further process.
    fn has_joined(&mut self, seq: u64) {
        let Some(joining) = self.joining.remove(&seq) else { return };
        let answer = joining.finish().and_then(|launched| {
            let told = duplicate(&launched.pidfd).inspect_err(|_| put_down(&launched))?;
            let child = self.adopt(launched);
            Ok((Reply::Started { child }, vec![told]))
        });
        self.reply(seq, answer);
    }

    fn child_ended(&mut self, number: u64) {
        let Some(child) = self.children.remove(&number) else { return };
        let status = loop {
            match waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED) {
                Err(Errno::INTR) => {}
                status => break status.ok().flatten(),
            }
        };
        let signal = status.as_ref().and_then(rustix::process::WaitIdStatus::terminating_signal);
        let code = status.as_ref().and_then(rustix::process::WaitIdStatus::exit_status);
        let code = code.unwrap_or_else(|| 128 + signal.unwrap_or(0));
        self.has_left(number, code);
        let mut own = self.containers.values_mut().filter_map(|container| container.init.as_mut());
        let init = own.find(|init| init.child == number);
        let (among_others, mounts) =
            init.map_or((false, None), |init| (init.among_others, init.mounts.take()));
        if let Some(namespace) = mounts.as_ref().filter(|_| among_others).and_then(share::identity) {
            share::kill_all(&self.proc, namespace);
        }
        let _ = send(self.socket, &Message::Exited { child: number, code, signal }, &[]);
        let removed = self.containers.iter().find_map(|(id, container)| {
            let is_init = container.init.as_ref().is_some_and(|init| init.child == number);
            Some((id.clone(), container.removal.filter(|_| is_init)?))
        });
        let mut left: Vec<OwnedFd> = mounts.into_iter().collect();
        if let Some((id, seq)) = removed {
            left.extend(self.forget(&id));
            self.reply(seq, done());
        }
        self.networks.let_go(left);
    }

    /// Answers the request for which this child took a container from a network, if it did.
    fn has_left(&mut self, number: u64, code: i32) {
        let Some((seq, leaving)) = self.leaving.remove(&number) else { return };
        self.networks.has_left(&leaving);
        let gone = match code {
            0 => done(),
            errno => Err(Errno::from_raw_os_error(errno))
                .call(|| "netlink(RTM_DELLINK)".to_owned())
                .trying(|| left(&leaving)),
        };
        self.reply(seq, gone);
    }

    fn answer(&mut self, Envelope { seq, request }: Envelope, descriptors: Vec<OwnedFd>) {
        let answer = match request {
            Request::Remove { id } => {
                self.remove(&id, seq);
                None
            }
            Request::LeaveNetwork { id, key, outbound } => self.leave_network(&id, &key, outbound, seq),
            Request::Exec { id, process, filter } => match self.exec(&id, &process, filter, &descriptors) {
                Ok(joining) => {
                    self.joining.insert(seq, joining);
                    None
                }
                Err(trouble) => Some(Err(trouble)),
            },
            request => Some(self.carry_out(request, descriptors)),
        };
        // What is not answered now is answered when it is done.
        if let Some(answer) = answer {
            self.reply(seq, answer);
        }
    }

    fn reply(&self, seq: u64, answer: Answer) {
        let (reply, beside) = answer.unwrap_or_else(|trouble| (Reply::Trouble(trouble), Vec::new()));
        let beside: Vec<BorrowedFd<'_>> = beside.iter().map(AsFd::as_fd).collect();
        if send(self.socket, &Message::Reply { seq, reply }, &beside).is_err() {
            let trouble = Trouble::new("tell the keeper", "the answer is larger than a message");
            let _ = send(self.socket, &Message::Reply { seq, reply: Reply::Trouble(trouble) }, &[]);
        }
    }

    fn carry_out(&mut self, request: Request, descriptors: Vec<OwnedFd>) -> Answer {
        match request {
            Request::TryExit => self.networks.try_exit().and_then(|()| done()),
            Request::OpenExit { v6 } => {
                let exits = self.networks.open_exit(v6)?;
                Ok((Reply::Done, exits.into_iter().flatten().collect()))
            }
            Request::Prepare { id, layers, upper, shift, connection, paths, otherwise } => {
                let place = (upper.as_deref(), otherwise);
                let (instead, connected) = self.prepare(id.clone(), &layers, place, shift, connection)?;
                let (addresses, exits) = connected;
                Ok((Reply::Prepared { addresses, texts: self.read(&id, &paths)?, instead }, exits))
            }
            Request::Read { id, paths } => Ok((Reply::Text(self.read(&id, &paths)?), Vec::new())),
            Request::Write { id, files } => self.write(&id, &files).and_then(|()| done()),
            Request::Start { id, spec, filter, live_nodes, files, parts, init } => {
                let (id, spec, files, parts) = (&id, &spec, &files, &parts);
                self.start(Start { id, spec, filter, live_nodes, files, parts, init }, descriptors)
            }
            Request::Signal { child, signal } => self.signal(child, signal),
            Request::Sockets { id, count } => self.sockets(&id, count),
            Request::DatagramSocket { id } => {
                let namespace = self.container(&id)?.network.namespace();
                Ok((Reply::Sockets, vec![self.networks.datagram_socket(namespace)?]))
            }
            Request::CreateNetwork { key, internal, plan } => {
                self.networks.create(&key, internal, plan).and_then(|()| done())
            }
            Request::JoinNetwork { id, joining, outbound, resolver } => {
                let (networks, network) = self.own_network(&id)?;
                let (address, sockets) = networks.connect(network, &joining, outbound, resolver)?;
                let addresses = vec![address];
                Ok((Reply::Prepared { addresses, texts: Vec::new(), instead: None }, sockets))
            }
            Request::RemoveNetwork { key } => self.networks.remove(&key).and_then(|()| done()),
            Request::Renew => {
                self.renew();
                done()
            }
            Request::Work { job } => self.work(job, descriptors),
            Request::Hello { .. }
            | Request::Remove { .. }
            | Request::LeaveNetwork { .. }
            | Request::Exec { .. } => done(),
        }
    }

    fn container(&self, id: &str) -> Result<&Container, Trouble> {
        self.containers
            .get(id)
            .ok_or_else(|| Trouble::new("find the container", format!("there is no `{id}`")))
    }

    /// The networks, and the own network of a container.
    fn own_network(&mut self, id: &str) -> Result<(&mut Networks, &mut ContainerNetwork), Trouble> {
        match self.containers.get_mut(id).map(|container| &mut container.network) {
            Some(Attached::Own(network)) => Ok((&mut self.networks, network)),
            Some(Attached::Shared(_)) => {
                Err(Trouble::new("change the container's networks", "its network is not its own"))
            }
            None => Err(Trouble::new("find the container", format!("there is no `{id}`"))),
        }
    }

    /// Takes the container from a network. Answered when its interface is gone, for which a child waits.
    fn leave_network(&mut self, id: &str, key: &str, outbound: bool, seq: u64) -> Option<Answer> {
        let begun =
            self.own_network(id).and_then(|(networks, network)| networks.disconnect(network, key, outbound));
        let leaving = match begun {
            Ok(leaving) => leaving,
            Err(trouble) => return Some(Err(trouble)),
        };
        let remove = || {
            sys::close_other_than(&[]);
            leaving.remove_interface().map_or_else(|error| error.errno.raw_os_error(), |()| 0)
        };
        match sys::fork_namespaces(0, remove) {
            Ok(child) => {
                let child = self.adopt(child);
                self.leaving.insert(child, (seq, leaving));
                None
            }
            Err(_) => {
                let removed = leaving.remove_interface();
                self.networks.has_left(&leaving);
                Some(removed.trying(|| left(&leaving)).and_then(|()| done()))
            }
        }
    }

    fn read(&self, id: &str, paths: &[PathBuf]) -> Result<Vec<String>, Trouble> {
        let root = self.container(id)?.rootfs.own();
        Ok(paths.iter().map(|path| files::read(root, path)).collect())
    }

    fn write(&self, id: &str, files: &[WrittenFile]) -> Result<(), Trouble> {
        let container = self.container(id)?;
        let root = container.rootfs.own();
        let write = || files.iter().try_for_each(|file| files::write(root, file));
        match self.users_of(container) {
            Some(users) if !files.is_empty() => users.act(write),
            _ => write(),
        }
    }

    /// Its users, if they are others than the launcher's.
    fn users_of(&self, container: &Container) -> Option<&Users> {
        self.users.as_ref().filter(|_| container.remapped)
    }

    /// Makes a directory of a container.
    fn make_directory(&self, container: &Container, path: &Path) -> Result<(), Trouble> {
        let make = || make_directory(container.rootfs.own(), path);
        match self.users_of(container) {
            Some(users) => users.act(make),
            None => make(),
        }
    }

    fn prepare(
        &mut self,
        id: String,
        layers: &[PathBuf],
        (upper, otherwise): (Option<&Path>, bool),
        shift: Option<Shift>,
        connection: Connection,
    ) -> Result<(Option<Instead>, Connected), Trouble> {
        let remapped = shift.is_some();
        if let (None, Some(shift)) = (&self.users, shift) {
            self.users = Some(Users::make(&self.proc, shift)?);
        }
        let (rootfs, instead) = match self.users.as_ref().filter(|_| remapped) {
            Some(users) => (Rootfs::mount_for(users, layers, &self.scratch)?, None),
            None => self.mount_root(layers, upper, otherwise)?,
        };
        let (network, ahead, connected) = self.connect(connection, remapped)?;
        let container =
            Container { rootfs, remapped, inner: None, network, ahead, init: None, removal: None };
        self.containers.insert(id, container);
        Ok((instead, connected))
    }

    /// Mounts a root file system; what was used if not the kernel's overlayfs, and why.
    fn mount_root(
        &self,
        layers: &[PathBuf],
        upper: Option<&Path>,
        otherwise: bool,
    ) -> Result<(Rootfs, Option<Instead>), Trouble> {
        let doing = "mount the container's file system";
        let demanded = Stacking::demanded().map_err(|reason| Trouble::new(doing, reason))?;
        let kernel = || Rootfs::mount(layers, self.identity.user_namespace(), &self.scratch, upper);
        let (stacking, reason) = match demanded {
            // What is written in a build's step becomes a layer, as overlayfs leaves it.
            _ if upper.is_some() => return Ok((kernel()?, None)),
            Some(Stacking::Kernel) => return Ok((kernel()?, None)),
            _ if !otherwise => return Ok((kernel()?, None)),
            Some(other) => (other, format!("{VARIABLE} demands it")),
            None => match kernel() {
                Ok(rootfs) => return Ok((rootfs, None)),
                Err(trouble) if is_refusal(&trouble) => (Stacking::instead(), trouble.to_string()),
                Err(trouble) => return Err(trouble),
            },
        };
        let rootfs = match stacking {
            Stacking::Fuse => Rootfs::fused(layers, &self.scratch)?,
            _ => Rootfs::empty()?,
        };
        Ok((rootfs, Some(Instead { stacking, reason })))
    }

    fn connect(
        &mut self,
        connection: Connection,
        remapped: bool,
    ) -> Result<(Attached, Option<Waiting>, Connected), Trouble> {
        let shared = match connection {
            Connection::Own { networks, outbound, resolver } => {
                let users = self.users.as_ref().filter(|_| remapped);
                let joined = self.networks.join(&networks, outbound, resolver, users)?;
                let addresses = joined.network.addresses();
                return Ok((Attached::Own(joined.network), joined.ahead, (addresses, joined.sockets)));
            }
            Connection::Unused => self
                .networks
                .home()
                .try_clone_to_owned()
                .map_err(|error| Trouble::new("refer to a network", error.to_string()))?,
            Connection::Host => {
                let missing = || Trouble::new("join the host's network", "the keeper has not sent it");
                duplicate(self.host.as_ref().ok_or_else(missing)?)?
            }
            Connection::Of(other) => {
                let namespace = self.container(&other)?.network.namespace();
                namespace
                    .try_clone_to_owned()
                    .map_err(|error| Trouble::new("join a network", error.to_string()))?
            }
        };
        Ok((Attached::Shared(shared), None, (Vec::new(), Vec::new())))
    }

    fn start(&mut self, start: Start<'_>, descriptors: Vec<OwnedFd>) -> Answer {
        let Start { id, spec, filter, live_nodes, files, parts, init } = start;
        let process = spec
            .process()
            .as_ref()
            .ok_or_else(|| Trouble::new("run a program", "the spec has no process"))?;
        let ahead = self.take_ahead(id, spec, &filter);
        let meanwhile = ahead.is_some() && launch::has_own_files_only(spec);
        if !meanwhile {
            self.write(id, files)?;
        }
        let container = self.container(id)?;
        self.make_directory(container, process.cwd())?;
        let inner = container.rootfs.share(&self.scratch)?;
        let (stdio, cgroups) = split_streams(descriptors)?;
        let users = self.users_of(container);
        give_streams(users, process, &stdio);
        let world = World {
            root: inner.as_fd(),
            network: Some(container.network.namespace()),
            home: self.networks.home(),
            binds: self.bind_sources(spec, parts)?,
            // What belongs to the launcher's users is out of its reach; it could not change the host's nodes either.
            devices: self.devices.as_deref().filter(|_| users.is_none()),
            dead_nodes: !live_nodes,
            cgroups,
            joins: self.joins(spec)?,
            stdio: stdio.each_ref().map(AsFd::as_fd),
            reaper: init,
            furniture: None,
            complete: None,
        };
        let write = || if meanwhile { self.write(id, files) } else { Ok(()) };
        let begun = ahead.and_then(|(ahead, _)| ahead.launch(spec, &world, self.sets_groups(), write));
        let launched = match begun {
            Some(launched) => launched?,
            None => {
                write()?;
                self.launch(spec, process, filter, &world, users)?
            }
        };
        let namespaces = joined_namespaces(spec.linux().as_ref());
        // From here on nothing fails: a process that nobody knew of could not be taken away.
        let (pids, [kept, told]) = self.parts(&launched).inspect_err(|_| put_down(&launched))?;
        let mounts = open_in(&self.proc, &format!("{}/ns/mnt", launched.pid)).ok();
        let child = self.adopt(launched);
        if let Some(container) = self.containers.get_mut(id) {
            container.inner = Some(inner);
            container.init = Some(Init {
                child,
                pidfd: kept,
                pids,
                namespaces,
                among_others: share::has_others_pids(spec),
                mounts,
            });
        }
        Ok((Reply::Started { child }, vec![told]))
    }

    /// Ends what was made ahead.
    fn renew(&mut self) {
        self.networks.renew();
        let waiting = self.containers.values_mut().filter_map(|container| container.ahead.take());
        for process in waiting.filter_map(|(ahead, _)| ahead.end()).collect::<Vec<_>>() {
            self.adopt(process);
        }
    }

    /// The process that waits to be the container's first one, if it has the right form. The next one will have it.
    fn take_ahead(&mut self, id: &str, spec: &Spec, filter: &Filter) -> Option<Waiting> {
        let container = self.containers.get_mut(id)?;
        let waiting = container.ahead.take();
        let (own, remapped) = (matches!(container.network, Attached::Own(_)), container.remapped);
        if let Some((ahead, form)) = waiting {
            if form.fits(spec, filter) {
                return Some((ahead, form));
            }
            // Its end is heard of as that of any child.
            if let Some(process) = ahead.end() {
                self.adopt(process);
            }
        }
        if own && !remapped {
            self.networks.expect(Form::of(spec, filter, self.devices.as_deref()));
        }
        None
    }

    fn launch(
        &self,
        spec: &Spec,
        process: &Process,
        filter: Filter,
        world: &World<'_>,
        users: Option<&Users>,
    ) -> Result<Launched, Trouble> {
        let program = self.program(process, filter)?;
        launch::launch(spec, &program, world, users.map(Users::namespace), &self.stack)
    }

    fn bind_sources(&self, spec: &Spec, parts: &[Part]) -> Result<Vec<OwnedFd>, Trouble> {
        let binds = spec.mounts().iter().flatten().filter(|mount| is_bind(mount));
        let open = |mount: &Mount| match parts.iter().find(|part| part.target == *mount.destination()) {
            Some(part) => self.part(part),
            None => open_bind(mount.source().as_deref().unwrap_or("/nonexistent".as_ref())),
        };
        binds.map(open).collect()
    }

    fn part(&self, part: &Part) -> Result<OwnedFd, Trouble> {
        let container = self.container(&part.id)?;
        match part.kind {
            PartKind::Found => {}
            PartKind::Made => self.make_directory(container, &part.path)?,
            PartKind::Mounted => return share::mounted(self.running(&part.id)?.0.pidfd.as_fd(), &part.path),
        }
        container.rootfs.part(&part.path, &self.scratch)
    }

    /// The first process of a container that runs, and its id.
    fn running(&self, id: &str) -> Result<(&Init, i32), Trouble> {
        let init = self.container(id)?.init.as_ref();
        let init = init.and_then(|init| Some((init, self.children.get(&init.child)?.pid)));
        init.ok_or_else(|| Trouble::new("share with a container", format!("`{id}` does not run")))
    }

    /// The namespaces of others that the spec names.
    fn joins(&self, spec: &Spec) -> Result<Vec<Join>, Trouble> {
        let open = |(kind, whose): (share::Kind, &str)| {
            let namespace = match whose.strip_prefix("container:") {
                Some(id) => share::namespace(&self.proc, self.running(id)?.1, kind)?,
                None => share::hosts_namespace(kind)?,
            };
            let home = share::own_namespace(&self.proc, kind)?;
            Ok(Join { namespace, home, kind: kind.link() })
        };
        share::shared(spec).map(open).collect()
    }

    /// What the books need of a new first process: its pid namespace, and two more descriptors of it.
    fn parts(&self, launched: &Clone) -> Result<(Option<OwnedFd>, [OwnedFd; 2]), Trouble> {
        let pids = match open_in(&self.proc, &format!("{}/ns/pid", launched.pid)) {
            // A process that has ended at once: its namespaces are shown to root alone if it could not be traced.
            Err(_) if gather::has_ended(&self.proc, launched.pid) => None,
            pids => Some(pids.trying(|| "find the container's processes".to_owned())?),
        };
        Ok((pids, [duplicate(&launched.pidfd)?, duplicate(&launched.pidfd)?]))
    }

    fn exec(
        &mut self,
        id: &str,
        process: &Process,
        filter: Filter,
        descriptors: &[OwnedFd],
    ) -> Result<Joining, Trouble> {
        let program = self.program(process, filter)?;
        let running =
            self.container(id)?.init.as_ref().filter(|init| self.children.contains_key(&init.child));
        let Some((init, pids)) = running.and_then(|init| Some((init, init.pids.as_ref()?))) else {
            return Err(Trouble::new("run a command in the container", "the container does not run"));
        };
        let [stdin, stdout, stderr, cgroups @ ..] = descriptors else {
            return Err(Trouble::new("run a command in the container", "the request has no streams"));
        };
        give_streams(self.users_of(self.container(id)?), process, &descriptors[..3]);
        let joined = Joined {
            init: init.pidfd.as_fd(),
            namespaces: init.namespaces,
            pids: pids.as_fd(),
            own_pids: self.own_pids.as_fd(),
            cgroups,
        };
        let stdio = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        launch::join(&program, &joined, &stdio)
    }

    /// Takes a new child into the books; returns its number.
    fn adopt(&mut self, child: Clone) -> u64 {
        self.started += 1;
        self.children.insert(self.started, child);
        self.started
    }

    fn program(&self, process: &Process, filter: Filter) -> Result<Program, Trouble> {
        let compile = |capabilities: &Vec<String>| Policy::docker_default(capabilities).compile();
        let filter = match filter {
            Filter::Default(capabilities) => {
                let mut filters = self.filters.borrow_mut();
                Some(filters.entry(capabilities).or_insert_with_key(compile).clone())
            }
            other => seccomp::of(&other)?,
        };
        Program::new(process, filter, self.sets_groups())
    }

    /// Whether supplementary groups can be set.
    fn sets_groups(&self) -> bool {
        self.identity != Identity::Single
    }

    fn signal(&self, child: u64, signal: i32) -> Answer {
        let Some(child) = self.children.get(&child) else { return done() };
        let doing = || format!("send signal {signal}");
        match sys::send_signal(child.pidfd.as_fd(), signal) {
            Ok(()) | Err(Errno::SRCH) => done(),
            Err(errno) => Err(errno).call(|| format!("pidfd_send_signal(…, {signal})")).trying(doing),
        }
    }

    fn sockets(&self, id: &str, count: usize) -> Answer {
        let namespace = self.container(id)?.network.namespace();
        Ok((Reply::Sockets, self.networks.sockets(namespace, count.min(MOST_DESCRIPTORS))?))
    }

    /// Kills the container; the answer, if it cannot be given before the last process is gone, comes then.
    fn remove(&mut self, id: &str, seq: u64) {
        if let Some(container) = self.containers.get_mut(id) {
            let running = container.init.as_ref().filter(|init| self.children.contains_key(&init.child));
            if let Some(init) = running {
                let _ = rustix::process::pidfd_send_signal(&init.pidfd, Signal::KILL);
                container.removal = Some(seq);
                return;
            }
        }
        let left = self.forget(id);
        self.reply(seq, done());
        self.networks.let_go(left);
    }

    /// Forgets a container, and the roots that were mounted for it alone. What is returned is all that is left of it: its
    /// files, which nobody can reach.
    fn forget(&mut self, id: &str) -> Vec<OwnedFd> {
        let below = format!("{id}/");
        self.containers.retain(|other, _| !other.starts_with(&below));
        let Some(Container { network, rootfs, inner, ahead, .. }) = self.containers.remove(id) else {
            return Vec::new();
        };
        if let Some(process) = ahead.and_then(|(ahead, _)| ahead.end()) {
            self.adopt(process);
        }
        if let Attached::Own(network) = network {
            self.networks.leave(&network);
        }
        let mut left = rootfs.into_descriptors();
        if !left.is_empty() {
            left.extend(inner);
        }
        left
    }

    /// The files that a job works on.
    fn roots(&self, job: &Job) -> Result<Roots<'_>, Trouble> {
        let own = |id: &String| self.container(id).map(|container| container.rootfs.own());
        Ok(match job {
            Job::CopyIn { id, .. } | Job::CopyOut { id, .. } => {
                let container = self.container(id)?;
                let running =
                    container.init.as_ref().is_some_and(|init| self.children.contains_key(&init.child));
                // What is mounted in a running container is seen through its own mount of the root.
                let inner = container.inner.as_ref().filter(|_| running);
                Roots { target: Some(inner.unwrap_or_else(|| container.rootfs.own())), ..Roots::default() }
            }
            Job::Capture { id, .. } => {
                let kept = || {
                    Trouble::new("read what was written", "it is kept apart by the kernel's overlayfs only")
                };
                let upper = self.container(id)?.rootfs.upper().ok_or_else(kept)?;
                Roots { target: Some(upper), source: Some(own(id)?), users: None }
            }
            Job::MakeDirectory { id, .. } | Job::Fill { id, .. } => {
                Roots { target: Some(own(id)?), ..Roots::default() }
            }
            Job::Gather { id } => {
                let stopped = || Trouble::new("find the container's processes", "it does not run");
                let init = self.container(id)?.init.as_ref().ok_or_else(stopped)?;
                Roots {
                    target: Some(&self.proc),
                    source: Some(init.pids.as_ref().ok_or_else(stopped)?),
                    users: None,
                }
            }
            Job::Digest { from, .. } => {
                Roots { source: from.as_ref().map(own).transpose()?, ..Roots::default() }
            }
            Job::Place { to, from, .. } => {
                let target = match to {
                    Target::Container(id) => Some(own(id)?),
                    Target::Directory(_) => None,
                };
                Roots { target, source: from.as_ref().map(own).transpose()?, users: None }
            }
            Job::Unpack { .. }
            | Job::RemoveTree { .. }
            | Job::MergeTrees { .. }
            | Job::SumTree { .. }
            | Job::MakeCache { .. } => Roots::default(),
        })
    }

    fn work(&mut self, job: Job, descriptors: Vec<OwnedFd>) -> Answer {
        let roots = self.roots(&job)?;
        let users = job.container().and_then(|id| self.containers.get(id));
        let users = users.and_then(|container| self.users_of(container)).map(Users::namespace);
        let roots = Roots { users, ..roots };
        let identity = self.identity;
        let worker = || {
            // Else a worker would keep the files and networks of other containers alive.
            let kept = roots.target.into_iter().chain(roots.source).chain(&descriptors).map(AsFd::as_fd);
            sys::close_other_than(&kept.chain(roots.users).collect::<Vec<_>>());
            worker::run(job, &roots, descriptors, identity)
        };
        let child = sys::fork_namespaces(0, worker)
            .call(|| "clone3(0)".to_owned())
            .trying(|| "start a worker".to_owned())?;
        self.adopt(child);
        done()
    }
}

/// Makes the working directory, as Docker does for a container.
fn make_directory(root: &OwnedFd, path: &Path) -> Result<(), Trouble> {
    files::open_directory(root, path)
        .map(drop)
        .call(|| format!("mkdirat({path:?})"))
        .trying(|| format!("make the working directory `{}`", path.display()))
}

/// The pipes of a process whose users are others belong to its user: it may open `/dev/stdout` again, as programs do
/// that log to a file of that name. The process itself has no right to what belongs to the launcher's users.
fn give_streams(users: Option<&Users>, process: &Process, streams: &[OwnedFd]) {
    let Some(users) = users else { return };
    let owner = users.shift().uid(process.user().uid());
    let is_pipe = |stream: &&OwnedFd| {
        let found = rustix::fs::fstat(stream).map(|stat| FileType::from_raw_mode(stat.st_mode));
        found == Ok(FileType::Fifo)
    };
    for stream in streams.iter().filter(is_pipe) {
        let _ = rustix::fs::fchown(stream, Some(owner), None);
    }
}

/// Ends a process that was started and cannot be entered in the books.
fn put_down(process: &Clone) {
    let _ = rustix::process::pidfd_send_signal(&process.pidfd, Signal::KILL);
    crate::native::reap::collect(&process.pidfd);
}

/// What is being tried with a container that leaves a network.
fn left(leaving: &Leaving) -> String {
    format!("take the container from the network `{}`", leaving.key)
}

fn done() -> Answer {
    Ok((Reply::Done, Vec::new()))
}

fn duplicate(fd: &OwnedFd) -> Result<OwnedFd, Trouble> {
    rustix::io::fcntl_dupfd_cloexec(fd, 3)
        .call(|| "fcntl(F_DUPFD_CLOEXEC)".to_owned())
        .trying(|| "refer to a process".to_owned())
}

/// A procfs of this pid namespace. Containers need one of their own; where that is refused, nothing can run.
fn own_proc() -> Result<OwnedFd, Trouble> {
    let mounted = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).and_then(|context| {
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    });
    let text = || "mount(\"proc\", \"/proc\", \"proc\", MS_NOSUID|MS_NODEV|MS_NOEXEC)".to_owned();
    mounted.call(text).trying(|| "mount /proc".to_owned()).map_err(|trouble| {
        let covered = "part of the outer /proc is covered by other mounts, so the kernel refuses a fresh one";
        Trouble { reason: Some(covered.to_owned()), ..trouble }
    })
}

fn open_in(directory: &OwnedFd, path: &str) -> Result<OwnedFd, CallError> {
    rustix::fs::openat(directory, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .call(|| format!("openat(proc, {path:?})"))
}

fn split_streams(mut descriptors: Vec<OwnedFd>) -> Result<([OwnedFd; 3], Vec<OwnedFd>), Trouble> {
    if descriptors.len() < 3 {
        return Err(Trouble::new("start the container", "the request has no streams"));
    }
    let rest = descriptors.split_off(3);
    let streams = descriptors
        .try_into()
        .map_err(|_| Trouble::new("start the container", "the request has no streams"))?;
    Ok((streams, rest))
}

/// The namespaces a further process joins by the first one's pidfd; the pid namespace is joined in another way.
fn joined_namespaces(linux: Option<&Linux>) -> u32 {
    let list = linux.and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    let kinds = list.iter().map(LinuxNamespace::typ);
    let joined = kinds.filter(|kind| !matches!(kind, LinuxNamespaceType::Pid | LinuxNamespaceType::Time));
    joined.fold(0, |flags, kind| flags | launch::clone_flag(kind) as u32)
}
