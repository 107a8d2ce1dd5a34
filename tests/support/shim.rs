//! A small library preloaded into the proxy: its wall clock jumps and its resolver fails on demand.
//!
//! In: a scratch directory. Out: variables for `Start::env`, and switches. Invariant: it is compiled
//! with `cc`, which linking Rust needs anyway; the machine's own clock and resolver stay as they are.
use std::path::PathBuf;
use std::process::Command;

use super::{Scratch, Start, fixture};

#[derive(Debug)]
pub struct Shim {
    scratch: Scratch,
    library: PathBuf,
}

impl Shim {
    pub fn new() -> Self {
        let scratch = Scratch::new();
        let library = scratch.path().join("shim.so");
        let source = fixture::root().join("tests/support/shim.c");
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&library)
            .arg(source)
            .arg("-ldl")
            .status();
        assert!(status.expect("cc is there").success(), "the shim compiles");
        Self { scratch, library }
    }

    /// Starts the proxy with it.
    pub fn preload(&self, start: Start) -> Start {
        let library = self.library.to_str().expect("a plain path");
        start.env("LD_PRELOAD", library).env("EDGE_SHIM", self.scratch.path().to_str().expect("a plain path"))
    }

    /// Adds seconds to the wall clock from now on.
    pub fn jump(&self, seconds: i64) {
        // Renamed into place, so that no reader sees half a number.
        let path = self.scratch.write("clock.new", seconds.to_string());
        std::fs::rename(path, self.scratch.path().join("clock")).expect("our own directory");
    }

    /// Makes every name fail to resolve, or resolve again.
    pub fn dns_is_down(&self, is_down: bool) {
        if is_down {
            self.scratch.write("dns_down", "");
        } else {
            std::fs::remove_file(self.scratch.path().join("dns_down")).expect("it was down");
        }
    }
}
