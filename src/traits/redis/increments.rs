//! Increments that this process has not read in the stream yet, and the values that they are added to.
//!
//! Redis adds them, so that those of several proxies count. Until the sum was read, the value in the table is
//! that of this process only: what is written instead of it is the last value that Redis is known to have
//! had. If Redis loses its data, increments that it had and that were not read are added again.
use std::collections::{HashMap, VecDeque};

use crate::engine::evaluate::TraitValue;
use crate::trait_table::{Entry, Stamp};
use crate::traits::redis::wire;
use crate::traits::redis::wire::{Name, StreamId};

/// The increments of all identities.
#[derive(Debug, Default)]
pub struct Increments {
    counters: HashMap<Name, Vec<IncrementedKey>>,
    /// Identities by the entries of the stream that have their increments.
    stored: VecDeque<(StreamId, Name)>,
}

/// The increments of one key.
#[derive(Debug)]
struct IncrementedKey {
    key: Box<str>,
    /// The last value of Redis that was read, with its stamp. `None`: there was no value.
    base: Option<(Stamp, String)>,
    /// The oldest first.
    parts: Vec<Part>,
}

/// Increments that Redis gets as one.
#[derive(Debug)]
struct Part {
    amount: i64,
    stamp: Stamp,
    state: PartState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PartState {
    Unsent,
    /// In the batch with this number, which was not answered yet.
    Sent(u64),
    /// In this entry of the stream.
    Stored(StreamId),
}

/// What happened to the increments of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// They are in this entry of the stream.
    Stored(StreamId),
    /// They count, or cannot be added.
    Settled,
    /// The identity is not there, or not any more.
    NotStored,
}

impl Increments {
    /// Records an increment. `entry` is the key after it; `before` the stamp of the value that it was added
    /// to, `None` if there was none.
    pub fn add(&mut self, name: &Name, entry: &Entry<'_>, amount: i64, before: Option<Stamp>) {
        let counters = self.counters.entry(name.clone()).or_default();
        let part = Part { amount, stamp: entry.stamp, state: PartState::Unsent };
        match counters.iter_mut().find(|counter| *counter.key == *entry.key) {
            Some(counter) => counter.push(part),
            None => {
                let base = before.and_then(|stamp| base_of(entry, amount, stamp));
                counters.push(IncrementedKey { key: entry.key.into(), base, parts: vec![part] });
            }
        }
    }

    /// The key has a new value, to which none of the increments is added.
    pub fn replaced(&mut self, name: &str, key: &str) {
        let Some(counters) = self.counters.get_mut(name) else { return };
        counters.retain(|counter| *counter.key != *key);
        if counters.is_empty() {
            self.counters.remove(name);
        }
    }

    /// The identity is not kept any more.
    pub fn forget(&mut self, name: &str) {
        self.counters.remove(name);
    }

    /// Redis has, or had, this value.
    pub fn read(&mut self, name: &str, entry: &Entry<'_>) {
        let counters = self.counters.get_mut(name).into_iter().flatten();
        for counter in counters.filter(|counter| *counter.key == *entry.key) {
            if counter.base.as_ref().is_none_or(|(stamp, _)| *stamp < entry.stamp) {
                counter.base = Some((entry.stamp, wire::value(entry)));
            }
        }
    }

    /// Whether the table has a sum of this key that is not the value of Redis.
    pub fn has(&self, name: &str, key: &str) -> bool {
        let counters = self.counters.get(name).into_iter().flatten();
        counters.into_iter().any(|counter| *counter.key == *key)
    }

    /// Whether some increments of the identity are to be sent.
    pub fn has_unsent(&self, name: &str) -> bool {
        let parts = self.counters.get(name).into_iter().flatten().flat_map(|counter| &counter.parts);
        parts.into_iter().any(|part| part.state == PartState::Unsent)
    }

    /// The fields of a batch: the values to which is added, if their stamps are at least `since`, and the
    /// increments that were not sent.
    pub fn take(&mut self, name: &str, since: Option<Stamp>, sequence: u64) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        for counter in self.counters.get_mut(name).into_iter().flatten() {
            let base = counter.base.as_ref();
            let base = base.filter(|(stamp, _)| since.is_some_and(|since| *stamp >= since));
            fields.extend(base.map(|(_, value)| (format!("={}", counter.key), value.clone())));
            for part in counter.parts.iter_mut().filter(|part| part.state == PartState::Unsent) {
                part.state = PartState::Sent(sequence);
                fields.push((format!("+{}", counter.key), wire::addition(part.stamp, part.amount)));
            }
        }
        fields
    }

    /// Records the answer to the increments of an identity in a batch.
    pub fn answered(&mut self, name: &Name, sequence: u64, answer: Answer) {
        let Some(counters) = self.counters.get_mut(name) else { return };
        let mut is_stored = false;
        for counter in counters.iter_mut() {
            let is_sent = |part: &Part| part.state == PartState::Sent(sequence);
            match answer {
                Answer::Settled => counter.parts.retain(|part| !is_sent(part)),
                Answer::NotStored => counter.restore(is_sent),
                Answer::Stored(id) => {
                    for part in counter.parts.iter_mut().filter(|part| is_sent(part)) {
                        (part.state, is_stored) = (PartState::Stored(id), true);
                    }
                }
            }
        }
        if let Answer::Stored(id) = answer
            && is_stored
        {
            self.stored.push_back((id, name.clone()));
        }
        self.drop_settled(name);
    }

    /// Forgets increments whose sums were read: those in entries up to this one.
    pub fn settle(&mut self, position: StreamId) {
        while self.stored.front().is_some_and(|(id, _)| *id <= position) {
            let Some((_, name)) = self.stored.pop_front() else { return };
            let is_read = |part: &Part| matches!(part.state, PartState::Stored(id) if id <= position);
            for counter in self.counters.get_mut(&name).into_iter().flatten() {
                counter.parts.retain(|part| !is_read(part));
            }
            self.drop_settled(&name);
        }
    }

    /// Redis has lost the entries that were not read. Returns the identities whose increments were in them:
    /// they are to be sent again.
    pub fn lost(&mut self) -> Vec<Name> {
        let names: Vec<Name> = std::mem::take(&mut self.stored).into_iter().map(|(_, name)| name).collect();
        for name in &names {
            for counter in self.counters.get_mut(name).into_iter().flatten() {
                counter.restore(|part| matches!(part.state, PartState::Stored(_)));
            }
        }
        names
    }

    fn drop_settled(&mut self, name: &str) {
        let Some(counters) = self.counters.get_mut(name) else { return };
        counters.retain(|counter| !counter.parts.is_empty());
        if counters.is_empty() {
            self.counters.remove(name);
        }
    }
}

impl IncrementedKey {
    /// Adds a part, to the last one if that was not sent.
    fn push(&mut self, part: Part) {
        if let Some(last) = self.parts.last_mut().filter(|last| last.state == PartState::Unsent)
            && let Some(sum) = last.amount.checked_add(part.amount)
        {
            (last.amount, last.stamp) = (sum, part.stamp.max(last.stamp));
            return;
        }
        self.parts.push(part);
    }

    /// Parts that Redis does not have are sent again, with those that were not sent yet.
    fn restore(&mut self, is_restored: impl Fn(&Part) -> bool) {
        let is_unsent = |part: &mut Part| part.state == PartState::Unsent || is_restored(part);
        let unsent: Vec<Part> = self.parts.extract_if(.., is_unsent).collect();
        for part in unsent {
            self.push(Part { state: PartState::Unsent, ..part });
        }
    }
}

/// The value before an increment, as Redis has it.
fn base_of(entry: &Entry<'_>, amount: i64, stamp: Stamp) -> Option<(Stamp, String)> {
    let Some(TraitValue::Int(sum)) = entry.value else { return None };
    let value = Some(TraitValue::Int(sum.wrapping_sub(amount)));
    Some((stamp, wire::value(&Entry { value, stamp, ..*entry })))
}
