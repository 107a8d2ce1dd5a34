//! The lines of the journal.
use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// One change of the queue.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JournalEntry<'a> {
    /// `(environment, identifier, key, JSON of the value, version, Unix seconds)`
    #[serde(rename = "s")]
    Set(Cow<'a, str>, Cow<'a, str>, Cow<'a, str>, Cow<'a, str>, u64, u64),
    /// `(environment, identifier, key, version)`
    #[serde(rename = "d")]
    Done(Cow<'a, str>, Cow<'a, str>, Cow<'a, str>, u64),
}

impl<'a> JournalEntry<'a> {
    pub fn set(
        environment: &'a str,
        identifier: &'a str,
        key: &'a str,
        json: &'a str,
        version: u64,
        at: u64,
    ) -> Self {
        Self::Set(environment.into(), identifier.into(), key.into(), json.into(), version, at)
    }

    pub fn done(environment: &'a str, identifier: &'a str, key: &'a str, version: u64) -> Self {
        Self::Done(environment.into(), identifier.into(), key.into(), version)
    }

    /// Appends its line.
    pub fn append(&self, out: &mut Vec<u8>) {
        // Neither strings nor integers can fail to be written.
        let _ = serde_json::to_writer(&mut *out, self);
        out.push(b'\n');
    }
}
