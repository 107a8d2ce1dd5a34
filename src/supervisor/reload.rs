//! When the configuration is read again.
//!
//! The configuration file and the files of `_FILE` variables are checked every `CONFIG_POLL`; SIGHUP reads
//! them in any case.
use std::time::Instant;

use crate::config::Config;
use crate::files::FileVersion;
use crate::limits;
use crate::supervisor::action::Action;
use crate::supervisor::context::EventContext;

/// Which versions of the configuration file and of the files with secrets were read last, and when to look at
/// them again.
#[derive(Debug)]
pub struct ConfigWatch {
    has_file: bool,
    seen: Option<Vec<FileVersion>>,
    due: Instant,
}

impl ConfigWatch {
    /// `seen` are the versions that were read at start; `None` if they may have changed since.
    pub fn new(config: &Config, seen: Option<Vec<FileVersion>>, now: Instant) -> Self {
        Self { has_file: config.files().next().is_some(), seen, due: now + limits::CONFIG_POLL }
    }

    /// `None` if there is no file.
    pub fn due(&self) -> Option<Instant> {
        self.has_file.then_some(self.due)
    }

    pub fn tick(&mut self, context: &mut EventContext<'_>) {
        if self.due().is_some_and(|due| due <= context.now.instant) {
            self.due = context.now.instant + limits::CONFIG_POLL;
            context.actions.push(Action::CheckConfigFiles);
        }
    }

    /// Whether the files are to be read: their versions differ from the last. A file that is missing may be
    /// in the middle of being replaced.
    pub fn is_new(&mut self, versions: Option<Vec<FileVersion>>) -> bool {
        // The first versions may be None because a file was written just before the start: what was read
        // then may be half of it.
        let is_new = versions.is_some() && versions != self.seen;
        if is_new {
            self.seen = versions;
        }
        is_new
    }
}
