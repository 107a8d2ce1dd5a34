//! Records by key in spools, as the writer thread of [`Store`](crate::storage::Store) keeps them.
//!
//! A set of records is changed by stating which keys remain and which records are new, so that a change that
//! failed is repeated together with the next one.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::limits;
use crate::storage::disk::DiskFolder;
use crate::storage::spool::{RecordId, RecoveredRecord, Spool, SpoolError, SpoolOptions};

/// The folder below `cache_dir`.
const FOLDER: &str = "counts";
const OPTIONS: SpoolOptions = SpoolOptions { bytes_max: limits::CACHE_FILE_BYTES_MAX, syncs: true };

/// A record of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// Unique in its set; without line breaks.
    pub key: String,
    pub payload: Vec<u8>,
}

/// A change of a set.
#[derive(Debug, Default)]
pub struct RecordChange {
    /// All keys of the set after the change.
    pub keep: BTreeSet<String>,
    pub add: Vec<StoredRecord>,
    /// The document that had these records before, which is removed afterwards.
    pub replaces: Option<String>,
}

impl RecordChange {
    /// This change after an earlier one that was not made.
    fn after(mut self, earlier: Self) -> Self {
        let is_new = |record: &StoredRecord| self.add.iter().all(|added| added.key != record.key);
        let missing: Vec<StoredRecord> = earlier.add.into_iter().filter(is_new).collect();
        self.add.extend(missing.into_iter().filter(|record| self.keep.contains(&record.key)));
        self.replaces = self.replaces.or(earlier.replaces);
        self
    }
}

/// A file or folder of `cache_dir` that cannot be written.
#[derive(Debug)]
pub struct WriteError {
    pub path: PathBuf,
    pub error: SpoolError,
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.error)
    }
}

impl std::error::Error for WriteError {}

/// The sets of one `cache_dir`.
#[derive(Debug)]
pub struct RecordSets {
    folder: DiskFolder,
    sets: BTreeMap<&'static str, RecordSet>,
    /// Changes that were not made yet.
    changes: BTreeMap<&'static str, RecordChange>,
}

/// A spool, and where each record is that this process has read or added.
#[derive(Debug)]
struct RecordSet {
    spool: Spool,
    ids: BTreeMap<String, RecordId>,
}

impl RecordSets {
    pub fn new(cache_dir: impl Into<DiskFolder>) -> Self {
        Self { folder: cache_dir.into().join(FOLDER), sets: BTreeMap::new(), changes: BTreeMap::new() }
    }

    /// Opens a set, with the records that earlier processes left. Returns them, and how many are damaged.
    ///
    /// # Errors
    /// The spool cannot be opened.
    pub fn load(&mut self, name: &'static str) -> io::Result<(Vec<StoredRecord>, u64)> {
        let mut found = Vec::new();
        let (mut set, mut damaged) =
            self.open(name, |record| found.push((record.id, record.payload.to_vec())))?;
        let mut records = Vec::new();
        for (id, payload) in found {
            if let Some(record) = decode(&payload) {
                set.ids.insert(record.key.clone(), id);
                records.push(record);
            }
        }
        // Those of processes that have ended become records of this one.
        let mut moved = Vec::new();
        while let Some((mut other, recovery)) =
            Spool::open_abandoned(self.folder.join(name), OPTIONS, |record| {
                moved.push((record.id, record.payload.to_vec()))
            })?
        {
            damaged += recovery.damaged;
            let (ids, payloads): (Vec<RecordId>, Vec<Vec<u8>>) =
                std::mem::take(&mut moved).into_iter().unzip();
            for record in payloads.iter().filter_map(|payload| decode(payload)) {
                if !set.ids.contains_key(&record.key) {
                    set.append(&record).map_err(io::Error::other)?;
                    records.push(record);
                }
            }
            set.spool.commit()?;
            set.spool.sync()?;
            other.remove(&ids)?;
        }
        self.sets.insert(name, set);
        Ok((records, damaged))
    }

    fn open(&self, name: &str, recovered: impl FnMut(RecoveredRecord<'_>)) -> io::Result<(RecordSet, u64)> {
        let (spool, recovery) = Spool::open_any(self.folder.join(name), OPTIONS, recovered)?;
        Ok((RecordSet { spool, ids: BTreeMap::new() }, recovery.damaged))
    }

    /// Plans a change, which [`apply`](Self::apply) makes.
    pub fn plan(&mut self, name: &'static str, change: RecordChange) {
        let change = match self.changes.remove(name) {
            Some(earlier) => change.after(earlier),
            None => change,
        };
        self.changes.insert(name, change);
    }

    /// Whether there are changes that were not made.
    pub fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    /// Makes all planned changes. Returns the documents that they replace; those that failed stay planned.
    ///
    /// # Errors
    /// The last failure.
    pub fn apply(&mut self) -> (Vec<String>, Result<(), WriteError>) {
        let (mut replaced, mut result) = (Vec::new(), Ok(()));
        for (name, change) in std::mem::take(&mut self.changes) {
            match self.make(name, &change) {
                Ok(()) => replaced.extend(change.replaces),
                Err(error) => {
                    result = Err(WriteError { path: self.folder.path.join(name), error });
                    self.changes.insert(name, change);
                }
            }
        }
        (replaced, result)
    }

    fn make(&mut self, name: &'static str, change: &RecordChange) -> Result<(), SpoolError> {
        if !self.sets.contains_key(name) {
            // Records that could not be read at the start stay on disk for the next one.
            let (set, _) = self.open(name, |_| {})?;
            self.sets.insert(name, set);
        }
        let Some(set) = self.sets.get_mut(name) else { return Ok(()) };
        for record in &change.add {
            if set.ids.contains_key(&record.key) {
                continue;
            }
            if let Err(error) = set.append(record) {
                set.forget_uncommitted();
                return Err(error);
            }
        }
        if let Err(error) = set.spool.commit().and_then(|()| set.spool.sync()) {
            set.forget_uncommitted();
            return Err(error.into());
        }
        let is_removed = |key: &String| !change.keep.contains(key);
        let removed: Vec<(String, RecordId)> =
            set.ids.iter().filter(|(key, _)| is_removed(key)).map(|(key, id)| (key.clone(), *id)).collect();
        set.spool.remove(&removed.iter().map(|(_, id)| *id).collect::<Vec<_>>())?;
        for (key, _) in removed {
            set.ids.remove(&key);
        }
        Ok(())
    }
}

impl RecordSet {
    fn append(&mut self, record: &StoredRecord) -> Result<(), SpoolError> {
        let payload = [record.key.as_bytes(), b"\n", &record.payload].concat();
        for id in self.spool.append(&[payload])? {
            self.ids.insert(record.key.clone(), id);
        }
        Ok(())
    }

    /// After a failed commit: records that are not in the spool are added again by the next change.
    fn forget_uncommitted(&mut self) {
        let _ = self.spool.commit();
        let spool = &self.spool;
        self.ids.retain(|_, id| spool.contains(*id));
    }
}

fn decode(payload: &[u8]) -> Option<StoredRecord> {
    let end = payload.iter().position(|&byte| byte == b'\n')?;
    let key = std::str::from_utf8(&payload[..end]).ok()?.to_owned();
    Some(StoredRecord { key, payload: payload[end + 1..].to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct SetFolder(PathBuf);

    impl Drop for SetFolder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn record(key: &str) -> StoredRecord {
        StoredRecord { key: key.into(), payload: format!("{{\n\"{key}\"}}").into_bytes() }
    }

    fn change(keep: &[&str], add: &[&str]) -> RecordChange {
        RecordChange {
            keep: keep.iter().map(ToString::to_string).collect(),
            add: add.iter().map(|key| record(key)).collect(),
            replaces: None,
        }
    }

    fn keys(sets: &mut RecordSets) -> Vec<String> {
        let (records, damaged) = sets.load("a").unwrap();
        assert_eq!(damaged, 0);
        assert!(records.iter().all(|found| *found == record(&found.key)));
        records.into_iter().map(|record| record.key).collect()
    }

    #[test]
    fn a_set_has_the_keys_of_the_last_change_also_after_restarts() {
        let folder =
            SetFolder(std::env::temp_dir().join(format!("edge-proxy-records-{}", std::process::id())));
        let _ = std::fs::remove_dir_all(&folder.0);
        let mut first = RecordSets::new(&folder.0);
        assert!(keys(&mut first).is_empty());
        first.plan("a", change(&["x", "y"], &["x", "y"]));
        // Planned before the first one was made.
        let replaces = Some("document".to_owned());
        first.plan("a", RecordChange { replaces, ..change(&["y", "z"], &["z"]) });
        let (replaced, result) = first.apply();
        assert!(replaced == ["document"] && result.is_ok(), "{result:?}");
        assert!(!first.has_changes());
        // Another process at the same time has its own records, and takes over those of one that has ended.
        let mut second = RecordSets::new(&folder.0);
        assert!(keys(&mut second).is_empty());
        second.plan("a", change(&["second"], &["second"]));
        let (replaced, result) = second.apply();
        assert!(replaced.is_empty() && result.is_ok(), "{result:?}");
        drop(second);
        drop(first);
        let mut third = RecordSets::new(&folder.0);
        let mut found = keys(&mut third);
        found.sort();
        assert_eq!(found, ["second", "y", "z"]);
        third.plan("a", change(&[], &[]));
        let (replaced, result) = third.apply();
        assert!(replaced.is_empty() && result.is_ok(), "{result:?}");
        drop(third);
        assert!(keys(&mut RecordSets::new(&folder.0)).is_empty());
    }
}
