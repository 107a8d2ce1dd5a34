//! A disk in memory: what was not synced is lost with the power, and it fills up, fails, and is cut off
//! between any two steps.
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use edge_proxy::clock;
use edge_proxy::storage::disk::{Disk, DiskEntry, DiskFile};

use crate::random::Random;

/// What a disk writes in one piece: a loss of power keeps any of the pages that were not synced.
const PAGE_BYTES: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskMode {
    Well,
    /// Nothing more can be written beyond the ends of files.
    Full,
    /// Half of all steps fail.
    Failing,
}

#[derive(Debug)]
struct Inode {
    data: Vec<u8>,
    synced: Vec<u8>,
    /// Ranges that were written since the last sync.
    unsynced: Vec<(usize, usize)>,
    modified: SystemTime,
}

impl Inode {
    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if self.data.len() < end {
            self.resize(end);
        }
        self.data[offset..end].copy_from_slice(bytes);
        match self.unsynced.last_mut().filter(|(_, last)| *last == offset) {
            Some((_, last)) => *last = end,
            None => self.unsynced.push((offset, end)),
        }
    }

    fn resize(&mut self, bytes: usize) {
        let before = self.data.len();
        self.data.resize(bytes, 0);
        self.unsynced.push((before.min(bytes), bytes));
    }

    fn sync(&mut self) {
        let Self { data, synced, unsynced, .. } = self;
        synced.resize(data.len(), 0);
        for (start, end) in unsynced.drain(..) {
            let end = end.min(data.len());
            if start < end {
                synced[start..end].copy_from_slice(&data[start..end]);
            }
        }
    }

    /// Of what was not synced, any part may be on the disk.
    fn lose_power(&mut self, random: &mut Random) {
        if self.unsynced.is_empty() {
            return;
        }
        match random.below(4) {
            0 => {}
            1 => self.data.clone_from(&self.synced),
            2 => {
                let cut = random.below(self.data.len() as u64 + 1) as usize;
                let rest = self.synced.get(cut..).unwrap_or_default();
                self.data = [&self.data[..cut], rest].concat();
            }
            _ => {
                let mut kept = self.synced.clone();
                kept.resize(self.data.len(), 0);
                for page in (0..self.data.len()).step_by(PAGE_BYTES) {
                    let end = (page + PAGE_BYTES).min(self.data.len());
                    if kept[page..end] != self.data[page..end] && random.chance(50) {
                        kept[page..end].copy_from_slice(&self.data[page..end]);
                    }
                }
                self.data = kept;
            }
        }
        self.synced = self.data.clone();
        self.unsynced.clear();
    }
}

/// The names in a folder, each with its inode.
#[derive(Debug, Default)]
struct Folder {
    names: BTreeMap<String, usize>,
    synced: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct DiskState {
    folders: BTreeMap<String, Folder>,
    inodes: Vec<Inode>,
    /// Inodes.
    locks: Vec<usize>,
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
    is_locked: bool,
}

fn cut() -> Error {
    Error::other("the process was killed")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("all names are text")
}

/// A folder, and a name in it.
fn split(path: &Path) -> (&str, &str) {
    text(path).rsplit_once('/').expect("an absolute path")
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

    fn folder(&mut self, folder: &str) -> Result<&mut Folder> {
        self.folders.get_mut(folder).ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn inode(&self, path: &Path) -> Result<usize> {
        let (folder, name) = split(path);
        let found = self.folders.get(folder).and_then(|folder| folder.names.get(name));
        found.copied().ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn new_inode(&mut self, path: &Path) -> Result<usize> {
        let (folder, name) = split(path);
        let inode = self.inodes.len();
        self.folder(folder)?.names.insert(name.to_owned(), inode);
        let (data, synced, unsynced) = (Vec::new(), Vec::new(), Vec::new());
        self.inodes.push(Inode { data, synced, unsynced, modified: clock::wall() });
        Ok(inode)
    }
}

impl PlayedDisk {
    pub fn new(seed: u64) -> Self {
        let state = DiskState {
            folders: BTreeMap::new(),
            inodes: Vec::new(),
            locks: Vec::new(),
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

    pub fn is_well(&self) -> bool {
        self.state().mode == DiskMode::Well
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

    /// The process is not killed any more, unless it was.
    pub fn spare(&self) {
        self.state().kill_at = None;
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
        let DiskState { inodes, random, folders, .. } = &mut *state;
        inodes.iter_mut().for_each(|inode| inode.lose_power(random));
        let keeps_names = !random.chance(60);
        for folder in folders.values_mut() {
            let Folder { names, synced } = folder;
            if keeps_names { synced.clone_from(names) } else { names.clone_from(synced) }
        }
    }

    fn file(&self, inode: usize, generation: u64, is_locked: bool) -> Box<dyn DiskFile> {
        Box::new(PlayedFile { disk: self.clone(), inode, generation, is_locked })
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
            // Linux writes an aligned word whole or not at all: it copies a page without looking for signals.
            if bytes.len() == 8 && offset.is_multiple_of(8) {
                count = count % 2 * 8;
            }
        }
        let inode = &mut state.inodes[self.inode];
        if count > 0 {
            inode.write(&bytes[..count], offset);
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

    fn size(&self) -> Result<u64> {
        let mut state = self.disk.state();
        state.whole_step(self.generation, false)?;
        Ok(state.inodes[self.inode].data.len() as u64)
    }

    fn set_len(&self, bytes: u64) -> Result<()> {
        let mut state = self.disk.state();
        state.whole_step(self.generation, true)?;
        state.inodes[self.inode].resize(bytes as usize);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        let mut state = self.disk.state();
        state.whole_step(self.generation, true)?;
        state.inodes[self.inode].sync();
        Ok(())
    }

    fn is_linked(&self) -> bool {
        let state = self.disk.state();
        state.folders.values().any(|folder| folder.names.values().any(|inode| *inode == self.inode))
    }
}

impl Drop for PlayedFile {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if self.is_locked && state.generation == self.generation {
            let inode = self.inode;
            state.locks.retain(|locked| *locked != inode);
        }
    }
}

impl Disk for PlayedDisk {
    /// Folders are on the disk itself immediately: a new `cache_dir` is not what is tested.
    fn create_folder(&self, folder: &Path) -> Result<()> {
        let mut state = self.state();
        let generation = state.generation;
        state.whole_step(generation, true)?;
        for folder in folder.ancestors().map(text) {
            if !state.folders.contains_key(folder) {
                state.folders.insert(folder.to_owned(), Folder::default());
            }
        }
        Ok(())
    }

    fn sync_folder(&self, folder: &Path) -> Result<()> {
        let mut state = self.state();
        let generation = state.generation;
        state.whole_step(generation, true)?;
        let Folder { names, synced } = state.folder(text(folder))?;
        synced.clone_from(names);
        Ok(())
    }

    fn entries(&self, folder: &Path) -> Result<Vec<DiskEntry>> {
        let mut state = self.state();
        let generation = state.generation;
        state.whole_step(generation, false)?;
        let found = state.folders.get(text(folder)).ok_or(ErrorKind::NotFound)?;
        let entry = |(name, inode): (&String, &usize)| DiskEntry {
            name: Some(name.clone()),
            is_file: true,
            modified: Some(state.inodes[*inode].modified),
        };
        Ok(found.names.iter().map(entry).collect())
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
        if state.inode(path).is_ok() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let inode = state.new_inode(path)?;
        drop(state);
        if is_whole { Ok(self.file(inode, generation, false)) } else { Err(cut()) }
    }

    fn open(&self, path: &Path, _writes: bool) -> Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        let generation = state.generation;
        state.whole_step(generation, true)?;
        let inode = state.inode(path)?;
        drop(state);
        Ok(self.file(inode, generation, false))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let mut state = self.state();
        let generation = state.generation;
        let is_whole = state.step(generation, true)?;
        let inode = state.inode(from)?;
        let ((from_folder, from), (to_folder, to)) = (split(from), split(to));
        state.folder(from_folder)?.names.remove(from);
        state.folder(to_folder)?.names.insert(to.to_owned(), inode);
        if is_whole { Ok(()) } else { Err(cut()) }
    }

    fn remove(&self, path: &Path) -> Result<()> {
        let mut state = self.state();
        let generation = state.generation;
        let is_whole = state.step(generation, true)?;
        state.inode(path)?;
        let (folder, name) = split(path);
        state.folder(folder)?.names.remove(name);
        if is_whole { Ok(()) } else { Err(cut()) }
    }

    fn lock(&self, path: &Path) -> Result<Option<Box<dyn DiskFile>>> {
        let mut state = self.state();
        let generation = state.generation;
        state.whole_step(generation, true)?;
        let inode = match state.inode(path) {
            Ok(inode) => inode,
            Err(_) => state.new_inode(path)?,
        };
        if state.locks.contains(&inode) {
            return Ok(None);
        }
        state.locks.push(inode);
        drop(state);
        Ok(Some(self.file(inode, generation, true)))
    }
}
