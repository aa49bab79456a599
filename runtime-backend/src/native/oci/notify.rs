//! `NOTIFY_SOCKET`: a service in the container says that it is ready (sd_notify(3)), and who waits for this program hears of
//! it.
//!
//! The container does not get the caller's socket, at which more can be said than that, but one of its own; of what is said
//! there, `READY=1` is passed on. As in crun, it finds it as `notify` in a directory that has the name of the caller's.

use super::state::Place;
use crate::native::launch::{Trouble, Trying};
use crate::native::sys::Called;
use oci_spec::runtime::{MountBuilder, Spec};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::net::{RecvFlags, SendFlags};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

const VARIABLE: &str = "NOTIFY_SOCKET";
const SOCKET: &str = "notify";
const READY: &[u8] = b"READY=1";

/// The caller's socket. One without a path cannot be shown in the container.
fn wanted() -> Option<PathBuf> {
    let path = std::env::var_os(VARIABLE).filter(|path: &OsString| path.to_str().is_some());
    path.map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Tells the container's process where the socket is, and shows it there.
pub(super) fn announce(spec: &mut Spec, place: &Place) {
    let Some(path) = wanted() else { return };
    let options = ["bind", "ro", "nosuid", "nodev", "noexec"].map(str::to_owned).to_vec();
    let mount = MountBuilder::default().destination(&path).typ("bind").source(place.notify_directory());
    let Ok(mount) = mount.options(options).build() else { return };
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.push(mount);
    spec.set_mounts(Some(mounts));
    let Some(process) = spec.process_mut() else { return };
    let mut env = process.env().clone().unwrap_or_default();
    env.retain(|pair| pair.split_once('=').is_none_or(|(name, _)| name != VARIABLE));
    env.push(format!("{VARIABLE}={}", path.join(SOCKET).display()));
    process.set_env(Some(env));
}

/// Makes the directory of the socket, which nobody but the container's user can enter.
pub(super) fn make_directory(spec: &Spec, place: &Place) -> Result<(), Trouble> {
    if wanted().is_none() {
        return Ok(());
    }
    let directory = place.notify_directory();
    let made = fs::DirBuilder::new().mode(0o700).create(&directory);
    made.map_err(|error| Trouble::new("make the directory of the notify socket", error.to_string()))?;
    if let Some((uid, gid)) = super::ids::user_outside(spec) {
        // An ordinary user has no other user to give it to.
        let _ = rustix::fs::chown(&directory, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    }
    Ok(())
}

/// The container's socket.
#[derive(Debug)]
pub(super) struct Notify(OwnedFd);

impl Notify {
    /// Begins to listen, if the container was made with a socket and the caller still has one.
    pub(super) fn listen(place: &Place) -> Result<Option<Self>, Trouble> {
        let doing = || "make the notify socket".to_owned();
        let path = place.notify_directory();
        if wanted().is_none() || !path.is_dir() {
            return Ok(None);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory =
            rustix::fs::open(&path, flags, Mode::empty()).call(|| format!("open({path:?})")).trying(doing)?;
        // The path of the state may be longer than an address takes, hence the detour.
        let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(SOCKET);
        let _ = fs::remove_file(&path);
        // Who can enter the directory may write to the socket.
        let before = rustix::process::umask(Mode::empty());
        let bound = UnixDatagram::bind(&path);
        rustix::process::umask(before);
        bound
            .map(|socket| Some(Self(socket.into())))
            .map_err(|error| Trouble::new(doing(), error.to_string()))
    }

    /// What to wait for.
    pub(super) fn polled(&self) -> PollFd<'_> {
        PollFd::new(&self.0, PollFlags::IN)
    }

    /// Reads one message; whether the service is ready, of which the caller has then been told.
    pub(super) fn hear(&self) -> bool {
        let mut text = [0; 4096];
        let Ok((length, _)) = rustix::net::recv(&self.0, &mut text[..], RecvFlags::DONTWAIT) else {
            return false;
        };
        let ready = text[..length].split(|byte| *byte == b'\n').any(|line| line == READY);
        if ready {
            // Who has gone away meanwhile does not wait either.
            let _ = wanted().map(|path| tell(&path));
        }
        ready
    }

    /// Waits until the service is ready, or the process has ended.
    pub(super) fn wait(self, process: &OwnedFd) {
        loop {
            let mut set = [self.polled(), PollFd::new(process, PollFlags::IN)];
            match rustix::event::poll(&mut set, None) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return,
                Ok(_) => {}
            }
            let [told, ended] = set.map(|one| !one.revents().is_empty());
            if told && self.hear() || ended && !told {
                return;
            }
        }
    }
}

fn tell(path: &Path) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    rustix::net::send(&socket, READY, SendFlags::NOSIGNAL)?;
    Ok(())
}
