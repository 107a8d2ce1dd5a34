//! What each environment keeps, and which identity is removed first.
//!
//! Two queues: identities that were seen once, and those that were seen again. The first is emptied first,
//! the oldest first. The second may fill seven eighths of the limits, so that neither an application with a
//! public key that invents identities evicts the users that return, nor those keep every new one out.
use std::collections::{HashSet, VecDeque};

use crate::limits::{TRAIT_ENVIRONMENT_PART, TRAIT_RECORD_OVERHEAD_BYTES};
use crate::trait_table::{TraitHead, TraitRecord};

/// Entries of a queue beyond twice the identities before it is trimmed.
const QUEUE_SLACK: u64 = 1024;

/// The bounds of all environments.
#[derive(Clone, Copy, Debug)]
pub struct AccountLimits {
    pub identities_max: u64,
    pub bytes_max: u64,
}

/// The sums and queues of one environment.
#[derive(Debug, Default)]
struct Account {
    bytes: u64,
    identities: u64,
    /// The part of identities that were seen again.
    returning_bytes: u64,
    returning: u64,
    /// Hashes of identities seen once, in the order in which they came; some may have left since.
    new_queue: VecDeque<u64>,
    /// Hashes of those seen again, and when they were last seen as of their place in the queue.
    returning_queue: VecDeque<(u64, u32)>,
}

/// The accounts of all environments.
#[derive(Debug)]
pub struct Accounts {
    limits: AccountLimits,
    /// By the position of the environment in the table.
    accounts: Vec<Account>,
    bytes: u64,
    identities: u64,
}

/// What an identity counts.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    bytes: u64,
    head: TraitHead,
}

impl Counted {
    pub fn of(record: &TraitRecord<'_>) -> Self {
        let bytes = record.bytes().len() as u64 + TRAIT_RECORD_OVERHEAD_BYTES;
        Self { bytes, head: record.head() }
    }
}

impl Accounts {
    pub fn new(limits: AccountLimits) -> Self {
        Self { limits, accounts: Vec::new(), bytes: 0, identities: 0 }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn identities(&self) -> u64 {
        self.identities
    }

    /// Records that the record of an identity was replaced. `None`: there was none, or there is none now.
    pub fn replace(&mut self, space: usize, hash: u64, old: Option<Counted>, new: Option<Counted>) {
        if self.accounts.len() <= space {
            self.accounts.resize_with(space + 1, Account::default);
        }
        let Some(account) = self.accounts.get_mut(space) else { return };
        let was_returning = old.is_some_and(|old| old.head.is_promoted);
        if let Some(Counted { bytes, .. }) = old {
            (self.bytes, self.identities) = (self.bytes - bytes, self.identities - 1);
            (account.bytes, account.identities) = (account.bytes - bytes, account.identities - 1);
            if was_returning {
                (account.returning_bytes, account.returning) =
                    (account.returning_bytes - bytes, account.returning - 1);
            }
        }
        if let Some(Counted { bytes, head }) = new {
            (self.bytes, self.identities) = (self.bytes + bytes, self.identities + 1);
            (account.bytes, account.identities) = (account.bytes + bytes, account.identities + 1);
            if head.is_promoted {
                (account.returning_bytes, account.returning) =
                    (account.returning_bytes + bytes, account.returning + 1);
            }
            match (old, head.is_promoted) {
                (Some(_), true) if was_returning => {}
                (_, true) => account.returning_queue.push_back((hash, head.seen)),
                (None, false) => account.new_queue.push_back(hash),
                (Some(_), false) => {}
            }
        }
    }

    /// The next identity to remove: the position of its environment and its hash. `None`: all limits are
    /// kept. `find` returns the record of a hash. The caller removes it and records that with
    /// [`replace`](Self::replace).
    pub fn next_victim<'t>(
        &mut self,
        find: impl Fn(usize, u64) -> Option<TraitRecord<'t>>,
    ) -> Option<(usize, u64)> {
        let (share, limits) = (self.limits.bytes_max / TRAIT_ENVIRONMENT_PART, self.limits);
        for (space, account) in self.accounts.iter_mut().enumerate() {
            account.trim(|hash| find(space, hash));
        }
        let is_crowded = |account: &Account| {
            account.returning_bytes > share / 8 * 7 || account.returning > limits.identities_max / 8 * 7
        };
        if let Some(space) = self.accounts.iter().position(is_crowded) {
            return self.accounts[space].pop_returning(|hash| find(space, hash)).map(|hash| (space, hash));
        }
        if let Some(space) = self.accounts.iter().position(|account| account.bytes > share) {
            return self.accounts[space].pop(|hash| find(space, hash)).map(|hash| (space, hash));
        }
        if self.bytes <= limits.bytes_max && self.identities <= limits.identities_max {
            return None;
        }
        // The environment that takes most of what is short gives some of it.
        let is_bytes = self.bytes > limits.bytes_max;
        let size = |account: &Account| if is_bytes { account.bytes } else { account.identities };
        let largest = self.accounts.iter_mut().enumerate().max_by_key(|(_, account)| size(account));
        let (space, account) = largest?;
        account.pop(|hash| find(space, hash)).map(|hash| (space, hash))
    }
}

impl Account {
    /// Drops what is not there any more from queues that identities have left again and again.
    fn trim<'t>(&mut self, find: impl Fn(u64) -> Option<TraitRecord<'t>>) {
        let is_long = |length: usize, count: u64| length as u64 > count * 2 + QUEUE_SLACK;
        let (mut seen, returning) = (HashSet::new(), self.returning);
        if is_long(self.new_queue.len(), self.identities - returning) {
            let is_new = |hash: u64| find(hash).is_some_and(|record| !record.head().is_promoted);
            self.new_queue.retain(|hash| seen.insert(*hash) && is_new(*hash));
        }
        seen.clear();
        if is_long(self.returning_queue.len(), returning) {
            let is_there = |hash: u64| find(hash).is_some_and(|record| record.head().is_promoted);
            self.returning_queue.retain(|(hash, _)| seen.insert(*hash) && is_there(*hash));
        }
    }

    fn pop<'t>(&mut self, find: impl Fn(u64) -> Option<TraitRecord<'t>>) -> Option<u64> {
        while let Some(hash) = self.new_queue.pop_front() {
            if find(hash).is_some_and(|record| !record.head().is_promoted) {
                return Some(hash);
            }
        }
        self.pop_returning(find)
    }

    fn pop_returning<'t>(&mut self, find: impl Fn(u64) -> Option<TraitRecord<'t>>) -> Option<u64> {
        // Each gets one more chance if it was seen since.
        for _ in 0..self.returning_queue.len().saturating_mul(2) {
            let (hash, queued) = self.returning_queue.pop_front()?;
            let Some(record) = find(hash).filter(|record| record.head().is_promoted) else {
                continue;
            };
            if record.head().seen <= queued {
                return Some(hash);
            }
            self.returning_queue.push_back((hash, record.head().seen));
        }
        None
    }
}
