//! Beside the copy on disk: which data of Redis it is a copy of, and until when Redis had everything of it.
//!
//! With it a process that starts can distinguish what Redis does not have yet from what others have erased.
use std::fs;
use std::path::{Path, PathBuf};

use crate::trait_table::Stamp;
use crate::traits::redis::wire::StreamId;

const FILE: &str = "redis-1";

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMark {
    pub generation: String,
    /// The last entry of the stream that was read. Data that have no such entry are an older copy.
    pub position: StreamId,
    /// Redis has everything that was written until this clock.
    pub clock: u64,
}

impl StoredMark {
    /// `None`: there was no Redis before, or the file cannot be read.
    pub fn read(folder: &Path) -> Option<Self> {
        let text = fs::read_to_string(folder.join(FILE)).ok()?;
        let mut words = text.split_ascii_whitespace();
        let (generation, position, clock) = (words.next()?, words.next()?, words.next()?);
        let (generation, position) = (generation.to_owned(), StreamId::parse(position)?);
        Some(Self { generation, position, clock: clock.parse().ok()? })
    }

    /// Writes the file. If that fails an older one says less, which is safe.
    pub fn write(&self, folder: &Path) {
        let (path, new): (PathBuf, PathBuf) = (folder.join(FILE), folder.join(format!("{FILE}.new")));
        let text = format!("{} {} {}\n", self.generation, self.position, self.clock);
        let written = fs::write(&new, text).and_then(|()| fs::rename(&new, &path));
        // The next one is written a few seconds later.
        drop(written);
    }

    /// Whether Redis had what has this stamp.
    pub fn covers(&self, stamp: Stamp) -> bool {
        stamp.clock <= self.clock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memo_is_read_back_and_anything_else_is_none() {
        let folder = std::env::temp_dir().join(format!("edge-proxy-memo-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("writable");
        assert_eq!(StoredMark::read(&folder), None);
        let memo = StoredMark {
            generation: "0a".to_owned(),
            position: StreamId { milliseconds: 5, counter: 1 },
            clock: 7,
        };
        memo.write(&folder);
        assert_eq!(StoredMark::read(&folder), Some(memo.clone()));
        assert!(memo.covers(Stamp { clock: 7, proxy: 9 }) && !memo.covers(Stamp { clock: 8, proxy: 0 }));
        for text in ["", "0a", "0a 5-1", "0a 5 7", "0a 5-1 x"] {
            fs::write(folder.join(FILE), text).expect("writable");
            assert_eq!(StoredMark::read(&folder), None);
        }
        fs::remove_dir_all(&folder).expect("removed");
    }
}
