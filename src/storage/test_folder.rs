//! A folder of a test, removed at its end.
use std::fs;
use std::path::PathBuf;

use crate::storage::disk::DiskFolder;

/// A path below the folder of temporary files. Nothing is there at first.
#[derive(Debug)]
pub struct TestFolder(pub PathBuf);

impl TestFolder {
    /// `name` is that of one test only.
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("edge-proxy-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    pub fn disk(&self) -> DiskFolder {
        DiskFolder::from(&self.0)
    }
}

impl Drop for TestFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
