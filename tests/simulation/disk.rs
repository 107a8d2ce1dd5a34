//! A disk in memory: what was not synced is lost with the power, and it fills up, fails, and is cut off
//! between any two steps.
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use edge_proxy::clock;
use edge_proxy::storage::disk::{Disk, DiskEntry, DiskFile};

use crate::random::Random;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskMode {
    Well,
    /// Nothing more can be written beyond the ends of files.
    Full,
    /// Half of all steps fail.
    Failing,
}

#[derive(Clone, Debug)]
struct Inode {
    data: Vec<u8>,
    synced: Vec<u8>,
    modified: SystemTime,
}

#[derive(Debug)]
struct DiskState {
    folders: BTreeSet<PathBuf>,
    names: BTreeMap<PathBuf, usize>,
    synced_names: BTreeMap<PathBuf, usize>,
    inodes: Vec<Inode>,
    locks: BTreeSet<PathBuf>,
    /// Counts processes: a handle of an earlier one does nothing.
    generation: u64,
    steps: u64,
    /// The step in which the process is killed.
    kill_at: Option<u64>,
    is_cut: bool,
    mode: DiskMode,
    random: Random,
    failures: u64,
}

/// All handles are of one disk.
#[derive(Clone, Debug)]
pub struct PlayedDisk(Arc<Mutex<DiskState>>);

#[derive(Debug)]
struct PlayedFile {
    disk: PlayedDisk,
    inode: usize,
    generation: u64,
    lock: Option<PathBuf>,
}

fn cut() -> Error {
    Error::other("the process was killed")
}

impl DiskState {
    /// One step: false for `Ok` means that it is the last one of its process, and may be done in part.
    fn step(&mut self, generation: u64, can_fail: bool) -> Result<bool> {
        if self.is_cut || generation != self.generation {
            return Err(cut());
        }
        self.steps += 1;
        if self.kill_at.is_some_and(|at| at <= self.steps) {
            self.is_cut = true;
            return Ok(false);
        }
        if can_fail && self.mode == DiskMode::Failing && self.random.chance(50) {
            self.failures += 1;
            return Err(Error::other("input/output error"));
        }
        Ok(true)
    }

    fn whole_step(&mut self, generation: u64, can_fail: bool) -> Result<()> {
        if self.step(generation, can_fail)? { Ok(()) } else { Err(cut()) }
    }

    fn inode(&self, path: &Path) -> Result<usize> {
        self.names.get(path).copied().ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn new_inode(&mut self, path: &Path) -> Result<usize> {
        if !path.parent().is_some_and(|folder| self.folders.contains(folder)) {
            return Err(ErrorKind::NotFound.into());
        }
        self.inodes.push(Inode { data: Vec::new(), synced: Vec::new(), modified: clock::wall() });
        self.names.insert(path.to_owned(), self.inodes.len() - 1);
        Ok(self.inodes.len() - 1)
    }
}

impl PlayedDisk {
    pub fn new(seed: u64) -> Self {
        let state = DiskState {
            folders: BTreeSet::from([PathBuf::from("/")]),
            names: BTreeMap::new(),
            synced_names: BTreeMap::new(),
            inodes: Vec::new(),
            locks: BTreeSet::new(),
            generation: 0,
            steps: 0,
            kill_at: None,
            is_cut: false,
            mode: DiskMode::Well,
            random: Random::new(seed),
            failures: 0,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, DiskState> {
        self.0.lock().expect("no panic while it is locked")
    }

    pub fn set_mode(&self, mode: DiskMode) {
        self.state().mode = mode;
    }

    /// How many steps failed so far.
    pub fn failures(&self) -> u64 {
        self.state().failures
    }

    /// Kills the process in this many steps.
    pub fn kill_after(&self, steps: u64) {
        let mut state = self.state();
        state.kill_at = Some(state.steps + steps);
    }

    /// Whether the process was killed in one of its steps.
    pub fn is_cut(&self) -> bool {
        self.state().is_cut
    }

    /// The process has ended: what it wrote stays, its locks end.
    pub fn end_process(&self) {
        let mut state = self.state();
        state.generation += 1;
        state.kill_at = None;
        state.is_cut = false;
        state.locks.clear();
    }

    /// The power is lost: of what was not synced, any part may be on the disk.
    pub fn lose_power(&self) {
        self.end_process();
        let mut state = self.state();
        let DiskState { inodes, random, .. } = &mut *state;
        for inode in inodes {
            if inode.data == inode.synced {
                continue;
            }
            inode.data = match random.below(3) {
                0 => inode.data.clone(),
                1 => inode.synced.clone(),
                _ => {
                    let cut = random.below(inode.data.len() as u64 + 1) as usize;
                    let rest = inode.synced.get(cut..).unwrap_or_default();
                    [&inode.data[..cut], rest].concat()
                }
            };
            inode.synced = inode.data.clone();
        }
        if state.random.chance(60) {
            state.names = state.synced_names.clone();
        } else {
            state.synced_names = state.names.clone();
        }
    }

    fn file(&self, inode: usize, generation: u64, lock: Option<PathBuf>) -> Box<dyn DiskFile> {
        Box::new(PlayedFile { disk: self.clone(), inode, generation, lock })
    }
}

impl DiskFile for PlayedFile {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let mut state = self.disk.state();
        let is_whole = state.step(self.generation, true)?;
        let (mode, offset) = (state.mode, offset as usize);
        let length = state.inodes[self.inode].data.len();
        let mut count = bytes.len();
        let is_full = mode == DiskMode::Full && offset + bytes.len() > length;
        if is_full || !is_whole {
            count = state.random.below(bytes.len() as u64 + 1) as usize;
        }
        let inode = &mut state.inodes[self.inode];
        if count > 0 {
            let end = (offset + count).max(length);
            inode.data.resize(end, 0);
            inode.data[offset..offset + count].copy_from_slice(&bytes[..count]);
        }
        inode.modified = clock::wall();
        match (is_whole, is_full) {
            (false, _) => Err(cut()),
            (true, true) => {
                state.failures += 1;
                Err(ErrorKind::StorageFull.into())
            }
            (true, false) => Ok(()),
        }
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let mut state = self.disk.state();
        state.whole_step(self.generation, true)?;
        let data = &state.inodes[self.inode].data;
        let offset = offset as usize;
        let found = data.get(offset..offset + bytes.len()).ok_or(ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> Result<()> {
        let mut state = self.disk.state();
        state.whole_step(self.generation, true)?;
        state.inodes[self.inode].data.resize(bytes as usize, 0);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        let mut state = self.disk.state();
        state.whole_step(self.generation, true)?;
        let inode = &mut state.inodes[self.inode];
        inode.synced.clone_from(&inode.data);
        Ok(())
    }

    fn is_linked(&self) -> bool {
        self.disk.state().names.values().any(|inode| *inode == self.inode)
    }
}

impl Drop for PlayedFile {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if let Some(lock) = self.lock.take().filter(|_| state.generation == self.generation) {
            state.locks.remove(&lock);
        }
    }
}

impl Disk for PlayedDisk {
    /// Folders are on the disk itself immediately: a new `cache_dir` is not what is tested.
    fn create_folder(&self, folder: &Path) -> Result<()> {
        let mut state = self.state();
        let generation = state.generation;
        state.whole_step(generation, true)?;
        state.folders.extend(folder.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn sync_folder(&self, folder: &Path) -> Result<()> {
        let mut state = self.state();
        let generation = state.generation;
        state.whole_step(generation, true)?;
        let DiskState { names, synced_names, .. } = &mut *state;
        synced_names.retain(|path, _| path.parent() != Some(folder));
        let here = names.iter().filter(|(path, _)| path.parent() == Some(folder));
        synced_names.extend(here.map(|(path, inode)| (path.clone(), *inode)));
        Ok(())
    }

    fn entries(&self, folder: &Path) -> Result<Vec<DiskEntry>> {
        let mut state = self.state();
        let generation = state.generation;
        state.whole_step(generation, false)?;
        if !state.folders.contains(folder) {
            return Err(ErrorKind::NotFound.into());
        }
        let here = state.names.iter().filter(|(path, _)| path.parent() == Some(folder));
        let entry = |(path, inode): (&PathBuf, &usize)| DiskEntry {
            name: path.file_name().and_then(|name| name.to_str()).map(str::to_owned),
            is_file: true,
            modified: Some(state.inodes[*inode].modified),
        };
        Ok(here.map(entry).collect())
    }

    fn read(&self, path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
        let mut state = self.state();
        let generation = state.generation;
        state.whole_step(generation, false)?;
        let data = &state.inodes[state.inode(path)?].data;
        if data.len() as u64 > bytes_max { Err(ErrorKind::FileTooLarge.into()) } else { Ok(data.clone()) }
    }

    fn create(&self, path: &Path) -> Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        let generation = state.generation;
        let is_whole = state.step(generation, true)?;
        if state.names.contains_key(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let inode = state.new_inode(path)?;
        drop(state);
        if is_whole { Ok(self.file(inode, generation, None)) } else { Err(cut()) }
    }

    fn open(&self, path: &Path, _writes: bool) -> Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        let generation = state.generation;
        state.whole_step(generation, true)?;
        let inode = state.inode(path)?;
        drop(state);
        Ok(self.file(inode, generation, None))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let mut state = self.state();
        let generation = state.generation;
        let is_whole = state.step(generation, true)?;
        let inode = state.inode(from)?;
        state.names.remove(from);
        state.names.insert(to.to_owned(), inode);
        if is_whole { Ok(()) } else { Err(cut()) }
    }

    fn remove(&self, path: &Path) -> Result<()> {
        let mut state = self.state();
        let generation = state.generation;
        let is_whole = state.step(generation, true)?;
        state.inode(path)?;
        state.names.remove(path);
        if is_whole { Ok(()) } else { Err(cut()) }
    }

    fn lock(&self, path: &Path) -> Result<Option<Box<dyn DiskFile>>> {
        let mut state = self.state();
        let generation = state.generation;
        state.whole_step(generation, true)?;
        if state.locks.contains(path) {
            return Ok(None);
        }
        let inode = match state.inode(path) {
            Ok(inode) => inode,
            Err(_) => state.new_inode(path)?,
        };
        state.locks.insert(path.to_owned());
        drop(state);
        Ok(Some(self.file(inode, generation, Some(path.to_owned()))))
    }
}
