//! Bounded reads of regular files, and file versions by which a change is detected.
//!
//! A path from the configuration or from `cache_dir` may name a FIFO, a device or a directory. Opening
//! a FIFO waits for its writer, and a device such as `/dev/zero` has no end.
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// A file written more recently than this may be written again without a change of its times, which have a
/// granularity of milliseconds.
const SETTLE_TIME: Duration = Duration::from_millis(100);

/// Whether the last component of the path may be a symbolic link. Its directories may always be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// For files that users name: Kubernetes mounts ConfigMaps and Secrets as symbolic links.
    Follow,
    /// For files that only this program writes.
    Refuse,
}

/// The version of a file: it changes when the file is written, and when it is replaced by a rename.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileVersion {
    modified: SystemTime,
    bytes: u64,
    inode: u64,
}

impl FileVersion {
    /// The version of the file now. `None` if its metadata cannot be read.
    pub fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self { modified: metadata.modified().ok()?, bytes: metadata.len(), inode: metadata.ino() })
    }

    /// As [`of`](Self::of), but `None` for a file that was written so recently that another write could leave
    /// the same version: the caller reads such a file again.
    pub fn of_settled(path: &Path, now: SystemTime) -> Option<Self> {
        let is_settled =
            |version: &Self| now.duration_since(version.modified).map_or(true, |age| age > SETTLE_TIME);
        Self::of(path).filter(is_settled)
    }
}

/// Reads a regular file of at most `bytes_max` bytes.
///
/// # Errors
/// The file cannot be opened or read, is not a regular file, or is larger than `bytes_max`.
pub fn read(path: &Path, links: Links, bytes_max: u64) -> io::Result<Vec<u8>> {
    let (metadata, no_follow) = match links {
        Links::Follow => (fs::metadata(path)?, 0),
        Links::Refuse => (fs::symlink_metadata(path)?, libc::O_NOFOLLOW),
    };
    // Check before the open: opening a device can have side effects.
    check(&metadata, bytes_max)?;
    // The path may be replaced between check and open: with O_NONBLOCK, opening a FIFO does not wait
    // (open(2)).
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | no_follow;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    check(&metadata, bytes_max)?;
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default());
    // The file may grow while it is read.
    file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max { Err(too_large(bytes_max)) } else { Ok(bytes) }
}

fn check(metadata: &fs::Metadata, bytes_max: u64) -> io::Result<()> {
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if metadata.len() > bytes_max { Err(too_large(bytes_max)) } else { Ok(()) }
}

fn too_large(bytes_max: u64) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {bytes_max} bytes"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("edge-proxy-files-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn reads_a_regular_file_up_to_the_limit() {
        let folder = Folder::new("bound");
        let path = folder.0.join("file");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, Links::Refuse, 5).unwrap(), b"12345");
        let error = read(&path, Links::Refuse, 4).unwrap_err();
        assert_eq!(error.to_string(), "larger than 4 bytes");
        let error = read(&folder.0.join("absent"), Links::Follow, 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn follows_a_link_only_if_allowed() {
        let folder = Folder::new("link");
        let (path, link) = (folder.0.join("file"), folder.0.join("link"));
        fs::write(&path, "12345").unwrap();
        symlink(&path, &link).unwrap();
        assert_eq!(read(&link, Links::Follow, 5).unwrap(), b"12345");
        assert_eq!(read(&link, Links::Refuse, 5).unwrap_err().to_string(), "not a regular file");
    }

    #[test]
    fn rejects_other_file_types_without_blocking() {
        let folder = Folder::new("others");
        let fifo = folder.0.join("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let zero = folder.0.join("zero");
        symlink("/dev/zero", &zero).unwrap();
        let input = folder.0.join("stdin");
        symlink("/dev/stdin", &input).unwrap();
        for path in [&fifo, &zero, &folder.0, Path::new("/dev/zero"), Path::new("/dev/null")] {
            for links in [Links::Follow, Links::Refuse] {
                let error = read(path, links, 1 << 20).unwrap_err();
                assert_eq!(error.to_string(), "not a regular file", "{}", path.display());
            }
        }
        assert_eq!(read(&input, Links::Refuse, 1 << 20).unwrap_err().to_string(), "not a regular file");
    }
}
