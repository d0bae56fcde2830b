//! Whether a set of files has changed, found by looking.
//!
//! Polling, not inotify: it works on every file system, and it sees what Kubernetes does with mounted ConfigMaps and
//! Secrets, where the file's own link stays and `..data` above it is swapped. A change counts once it was seen twice
//! the same: a file that is being written is left alone.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// What tells one content of a file from another, without reading it. `None`: there is no such file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp(Option<Facts>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    /// With all links resolved: a swapped directory shows here.
    path: PathBuf,
    device: u64,
    inode: u64,
    length: u64,
    modified: Option<SystemTime>,
}

/// Files that are watched.
#[derive(Debug)]
pub struct Watch {
    files: Vec<PathBuf>,
    settle: Settle<Vec<Stamp>>,
}

/// Lets a change through once it stays.
#[derive(Debug)]
struct Settle<T> {
    taken: T,
    next: Option<T>,
}

impl Stamp {
    /// Of the file as it is now. A file that cannot be looked at is as good as none.
    pub fn of(path: &Path) -> Self {
        let look = || -> io::Result<Facts> {
            let path = fs::canonicalize(path)?;
            let metadata = fs::metadata(&path)?;
            Ok(Facts {
                device: metadata.dev(),
                inode: metadata.ino(),
                length: metadata.len(),
                modified: metadata.modified().ok(),
                path,
            })
        };
        Self(look().ok())
    }
}

impl Watch {
    /// Watches `files`, as they are now.
    pub fn new(files: Vec<PathBuf>) -> Self {
        let settle = Settle { taken: stamps(&files), next: None };
        Self { files, settle }
    }

    /// Looks; true once for each change, when it was there at the look before too.
    pub fn changed(&mut self) -> bool {
        self.settle.look(stamps(&self.files))
    }

    /// The files.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Watches these from now on; the ones it watched already keep what was seen of them.
    pub fn replace(&mut self, files: Vec<PathBuf>) {
        let known = |path: &PathBuf| self.files.iter().position(|old| old == path);
        let taken = files.iter().map(|path| match known(path) {
            Some(index) => self.settle.taken[index].clone(),
            None => Stamp::of(path),
        });
        self.settle = Settle { taken: taken.collect(), next: None };
        self.files = files;
    }
}

impl<T: PartialEq> Settle<T> {
    fn look(&mut self, now: T) -> bool {
        if now == self.taken {
            self.next = None;
        } else if self.next.as_ref() == Some(&now) {
            self.next = None;
            self.taken = now;
            return true;
        } else {
            self.next = Some(now);
        }
        false
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    files.iter().map(|path| Stamp::of(path)).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A directory of a test's own, removed at its end.
    pub(crate) struct Folder(pub(crate) PathBuf);

    impl Folder {
        pub(crate) fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("sluicegate-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, text).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_change_counts_when_it_stays() {
        let mut settle = Settle { taken: 1, next: None };
        let seen: Vec<_> = [1, 2, 3, 3, 3, 2, 3, 4, 4].into_iter().map(|now| settle.look(now)).collect();
        assert_eq!(seen, [false, false, false, true, false, false, false, false, true]);
    }

    #[test]
    fn content_replacement_and_loss() {
        let folder = Folder::new("stamp");
        let file = folder.write("a", "1");
        let mut watch = Watch::new(vec![file.clone()]);
        let mut looks = || [watch.changed(), watch.changed(), watch.changed()];
        assert_eq!(looks(), [false; 3]);
        folder.write("a", "22");
        assert_eq!(looks(), [false, true, false]);
        // As editors do: another file takes the name.
        fs::rename(folder.write("b", "33"), &file).unwrap();
        assert_eq!(looks(), [false, true, false]);
        fs::remove_file(&file).unwrap();
        assert_eq!(looks(), [false, true, false]);
        folder.write("a", "1");
        assert_eq!(looks(), [false, true, false]);
    }

    #[test]
    fn a_swapped_directory_is_a_change() {
        let folder = Folder::new("stamp-data");
        for version in ["..1", "..2"] {
            fs::create_dir(folder.0.join(version)).unwrap();
            folder.write(&format!("{version}/file"), "same length");
        }
        let (data, file) = (folder.0.join("..data"), folder.0.join("file"));
        symlink("..1", &data).unwrap();
        symlink("..data/file", &file).unwrap();
        let mut watch = Watch::new(vec![file]);
        assert!(!watch.changed());
        symlink("..2", folder.0.join("..data_tmp")).unwrap();
        fs::rename(folder.0.join("..data_tmp"), &data).unwrap();
        assert_eq!([watch.changed(), watch.changed(), watch.changed()], [false, true, false]);
    }

    #[test]
    fn a_new_set_keeps_what_was_seen() {
        let folder = Folder::new("stamp-set");
        let (a, b) = (folder.write("a", "1"), folder.write("b", "1"));
        let mut watch = Watch::new(vec![a.clone()]);
        folder.write("a", "22");
        watch.replace(vec![b, a]);
        assert_eq!([watch.changed(), watch.changed()], [false, true]);
    }
}
