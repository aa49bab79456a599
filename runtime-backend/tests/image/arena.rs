//! A directory to unpack into, with things around it that must not be changed, and not even be opened.

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use shakedown_runtime::native::image::{
    Owners, Resolver, UnpackError, UnpackOptions, Unpacked, remove_tree, unpack,
};
use std::collections::BTreeMap;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// A target between canaries.
pub(crate) struct Arena {
    outer: tempfile::TempDir,
    /// Reports whatever is opened, read or changed in the canaries; looking up a name is not reported.
    watch: OwnedFd,
}

type Look = BTreeMap<PathBuf, (u32, u64, u64, i64, i64, u64)>;

/// The directories outside that cases aim at.
const CANARIES: [&str; 2] = ["canary", "target-sibling"];

impl Arena {
    pub(crate) fn new() -> Self {
        let outer = tempfile::tempdir().unwrap();
        fs::create_dir(outer.path().join("target")).unwrap();
        fs::create_dir(outer.path().join("work")).unwrap();
        for name in CANARIES {
            fs::create_dir(outer.path().join(name)).unwrap();
            fs::write(outer.path().join(name).join("file"), "alive").unwrap();
        }
        symlink("file", outer.path().join("canary/link")).unwrap();
        fs::set_permissions(outer.path().join("canary"), fs::Permissions::from_mode(0o751)).unwrap();
        let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
        for name in CANARIES {
            inotify::add_watch(&watch, outer.path().join(name), WatchFlags::ALL_EVENTS).unwrap();
        }
        Self { outer, watch }
    }

    /// A path for what a test makes itself, outside of the target.
    pub(crate) fn work(&self, name: &str) -> PathBuf {
        self.outer.path().join("work").join(name)
    }

    /// Takes away what is in the target, and what the test made itself.
    pub(crate) fn empty(&self) {
        // A temporary directory's own removal stops at directories without rights.
        remove_tree(&self.target()).unwrap();
        remove_tree(&self.work("")).unwrap();
        fs::create_dir(self.target()).unwrap();
        fs::create_dir(self.work("")).unwrap();
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.outer.path().join("target")
    }

    pub(crate) fn canary(&self) -> String {
        self.outer.path().join("canary").to_str().unwrap().to_owned()
    }

    /// Everything outside of the target: type and mode, links, inode, times, size. Nothing is opened but directories.
    fn look(&self) -> Look {
        let mut seen = Look::new();
        let mut todo = vec![self.outer.path().to_owned()];
        while let Some(directory) = todo.pop() {
            for entry in fs::read_dir(&directory).unwrap() {
                let path = entry.unwrap().path();
                if path == self.target() {
                    continue;
                }
                let stat = fs::symlink_metadata(&path).unwrap();
                if stat.is_dir() {
                    todo.push(path.clone());
                }
                let changed = stat.ctime() * 1_000_000_000 + stat.ctime_nsec();
                let own = (stat.mode(), stat.nlink(), stat.ino(), stat.mtime(), changed, stat.len());
                seen.insert(path, own);
            }
        }
        seen
    }

    /// What has been done to the canaries since this was asked last.
    fn events(&self) -> Vec<String> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(self.watch.as_fd(), &mut buffer);
        let mut events = Vec::new();
        while let Ok(event) = reader.next() {
            events.push(format!("{:?} {:?}", event.events(), event.file_name()));
        }
        events
    }

    /// Does something to the target and proves that nothing outside was changed or opened.
    #[track_caller]
    pub(crate) fn guard<T>(&self, name: &str, act: impl FnOnce() -> T) -> T {
        let before = self.look();
        self.events();
        let result = act();
        let events = self.events();
        assert!(events.is_empty(), "{name}: something was done to what is outside of the target: {events:?}");
        assert_eq!(self.look(), before, "{name}: something outside of the target changed");
        result
    }

    /// Unpacks, and proves that nothing outside was touched.
    #[track_caller]
    pub(crate) fn unpack(&self, layer: &[u8], options: &UnpackOptions) -> Result<Unpacked, UnpackError> {
        let target = fs::File::open(self.target()).unwrap();
        self.guard("layer", || unpack(layer, target.as_fd(), options))
    }

    /// Whether the target shows something at this path, which is that of a [`Verdict`](crate::corpus::Verdict).
    pub(crate) fn shows(&self, path: &str) -> bool {
        let path = self.target().join(path.replace("CANARY", self.canary().trim_start_matches('/')));
        fs::symlink_metadata(path).is_ok_and(|stat| !(stat.file_type().is_char_device() && stat.rdev() == 0))
    }

    /// How many bytes of disk the target takes.
    pub(crate) fn disk(&self) -> u64 {
        let (mut bytes, mut todo) = (0, vec![self.target()]);
        while let Some(path) = todo.pop() {
            let Ok(stat) = fs::symlink_metadata(&path) else { continue };
            bytes += stat.blocks() * 512;
            // A directory that this user may not read has no more in it than the one who made it put there.
            for entry in stat.is_dir().then(|| fs::read_dir(&path).ok()).flatten().into_iter().flatten() {
                todo.push(entry.unwrap().path());
            }
        }
        bytes
    }
}

/// The options that can be tried here: owners are kept by root alone.
pub(crate) fn ways() -> Vec<UnpackOptions> {
    let root = rustix::process::geteuid().is_root();
    let owners = if root { vec![Owners::Keep, Owners::Squash] } else { vec![Owners::Squash] };
    let with = |owners: Owners| {
        [Resolver::Auto, Resolver::Walk].map(|resolver| UnpackOptions {
            owners,
            userxattr: owners == Owners::Squash,
            resolver,
            ..UnpackOptions::default()
        })
    };
    owners.into_iter().flat_map(with).collect()
}

/// The arena itself: a canary that is changed is noticed, and one that is only read, too.
#[test]
fn the_canary_sings() {
    let sings = |act: fn(&Path)| {
        let arena = Arena::new();
        let file = Path::new(&arena.canary()).join("file");
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| arena.guard("test", || act(&file)))).is_err()
    };
    assert!(sings(|file| drop(fs::read(file))));
    assert!(sings(|file| fs::write(file, "dead").unwrap()));
    assert!(sings(|file| fs::set_permissions(file, fs::Permissions::from_mode(0o777)).unwrap()));
    assert!(sings(|file| drop(fs::read_dir(file.parent().unwrap()))));
    assert!(!sings(|_| {}));
}
