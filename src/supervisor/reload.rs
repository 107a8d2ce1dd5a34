//! When the configuration is read again.
//!
//! The configuration file is checked every `CONFIG_POLL`; SIGHUP reads it in any case.
use std::time::Instant;

use crate::config::Config;
use crate::files::FileVersion;
use crate::limits;
use crate::supervisor::action::Action;
use crate::supervisor::context::EventContext;

/// Which version of the configuration file was read last, and when to look at it again.
#[derive(Debug)]
pub struct ConfigWatch {
    has_file: bool,
    seen: Option<FileVersion>,
    due: Instant,
}

impl ConfigWatch {
    /// `seen` is the version that was read at start; `None` if it may have changed since.
    pub fn new(config: &Config, seen: Option<FileVersion>, now: Instant) -> Self {
        Self { has_file: config.path.is_some(), seen, due: now + limits::CONFIG_POLL }
    }

    /// `None` if there is no file.
    pub fn due(&self) -> Option<Instant> {
        self.has_file.then_some(self.due)
    }

    pub fn tick(&mut self, context: &mut EventContext<'_>) {
        if self.due().is_some_and(|due| due <= context.now.instant) {
            self.due = context.now.instant + limits::CONFIG_POLL;
            context.actions.push(Action::CheckConfigFile);
        }
    }

    /// Whether the file is to be read: its version differs from the last. A file that is missing may be in
    /// the middle of being replaced.
    pub fn is_new(&mut self, version: Option<FileVersion>) -> bool {
        // The first version may be None because the file was written just before the start: what was read
        // then may be half of it.
        version.is_some_and(|version| self.seen.replace(version) != Some(version))
    }
}
