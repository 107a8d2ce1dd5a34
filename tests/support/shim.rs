//! Small programs in C around the proxy. One is preloaded: it changes the wall clock, makes the resolver fail and
//! rejects ring flags. One starts the proxy with lower limits or rejected system calls.
//!
//! They are compiled with `cc`, which linking Rust requires too, and affect only the proxy.
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
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
        // The library is loaded by the executable under test, which may be for another architecture.
        let compiler = std::env::var("EDGE_PROXY_EXECUTABLE_CC").unwrap_or_else(|_| "cc".to_owned());
        compile(&compiler, &["-shared", "-fPIC", "-ldl"], &source, &library);
        Self { scratch, library }
    }

    /// Starts the proxy with the library preloaded.
    pub fn preload(&self, start: Start) -> Start {
        let library = self.library.to_str().expect("a plain path");
        start.env("LD_PRELOAD", library).env("EDGE_SHIM", self.scratch.path().to_str().expect("a plain path"))
    }

    /// As [`Shim::preload`], with a kernel that does not support these flags of `io_uring_setup`.
    pub fn without_ring_flags(&self, start: Start, flags: u32) -> Start {
        self.preload(start).env("EDGE_SHIM_RING_FLAGS", &format!("{flags:x}"))
    }

    /// Adds seconds to the wall clock from now on.
    pub fn jump(&self, seconds: i64) {
        // Renamed, so that a partial number is never read.
        let path = self.scratch.write("clock.new", seconds.to_string());
        std::fs::rename(path, self.scratch.path().join("clock")).expect("our own directory");
    }

    /// Blocks the first reactor, or unblocks it.
    pub fn reactor_is_stuck(&self, is_stuck: bool) {
        if is_stuck {
            self.scratch.write("stuck", "");
        } else {
            std::fs::remove_file(self.scratch.path().join("stuck")).expect("it was stuck");
        }
    }

    /// Makes the disk full, or gives space again.
    pub fn disk_is_full(&self, is_full: bool) {
        if is_full {
            self.scratch.write("disk_full", "");
        } else {
            std::fs::remove_file(self.scratch.path().join("disk_full")).expect("it was full");
        }
    }

    /// Blocks writes to the disk, or unblocks them.
    pub fn disk_is_stuck(&self, is_stuck: bool) {
        if is_stuck {
            self.scratch.write("disk_stuck", "");
        } else {
            std::fs::remove_file(self.scratch.path().join("disk_stuck")).expect("it was stuck");
        }
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

/// A program that restricts its process and then executes the proxy.
#[derive(Debug)]
pub struct Launcher {
    scratch: Scratch,
    program: PathBuf,
}

impl Launcher {
    pub fn new() -> Self {
        let scratch = Scratch::new();
        let program = scratch.path().join("launch");
        compile("cc", &[], &fixture::root().join("tests/support/launch.c"), &program);
        Self { scratch, program }
    }

    /// Starts the proxy with these restrictions: `nofile=64`, `memlock=0`, `refuse=425:1` (the number of a system
    /// call and its error).
    pub fn narrow(&self, start: Start, words: &[&str]) -> Start {
        start.under(std::iter::once(self.program.as_os_str()).chain(words.iter().map(OsStr::new)))
    }
}

fn compile(compiler: &str, args: &[&str], source: &Path, output: &Path) {
    let status = Command::new(compiler).args(["-O1", "-o"]).arg(output).arg(source).args(args).status();
    assert!(status.expect("the compiler is there").success(), "{} compiles", source.display());
}
