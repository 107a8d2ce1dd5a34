//! The store of kept traits: a thread of the control plane that owns the table.
//!
//! Reactors send writes by their bounded channel; the thread stamps and merges them, hands them to its sinks,
//! and informs the reactors (`crate::trait_table`). A request never waits for it. A [`TraitSink`] persists,
//! shares or forwards: it gets each change of an identity with its keys, values or tombstones, stamps and the
//! order of keys, and returns the changes of other processes, which are merged per identity and key by stamp.
mod accounts;
mod changes;
mod clock;
pub mod disk;
mod forward;
mod memory;
mod redis;
mod shard_set;
mod sink;
pub mod store;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use crate::channel::{TraitLink, TraitStop};
use crate::config::{Config, SettingError, TraitsStore};
use crate::limits;
use crate::log::Log;
use crate::metrics::Metrics;
pub use crate::traits::changes::{Addition, ChangeKind, TraitChanges};
use crate::traits::disk::TraitDisk;
pub use crate::traits::disk::{TraitFileError, TraitFileState, check_file};
pub use crate::traits::forward::ForwardSink;
pub use crate::traits::memory::{RemoteChange, TraitMemory};
pub use crate::traits::redis::check_redis;
use crate::traits::redis::{RedisTarget, TraitRedis};
pub use crate::traits::sink::{Inform, TraitSink};
use crate::traits::store::TraitStore;

/// Ends the store thread.
#[derive(Debug)]
pub struct TraitThread {
    stop: TraitStop,
    ended: Receiver<()>,
}

impl TraitThread {
    /// Waits until everything that reactors have sent is written. Call it when they have ended.
    pub fn stop(self) {
        self.stop.send();
        // The sender is dropped when the thread ends, with or without a panic.
        let _ = self.ended.recv_timeout(limits::TRAIT_STOP_TIMEOUT + STOP_GRACE);
    }
}

/// Checks the settings of a store before anything is started.
///
/// # Errors
/// They were parsed but cannot be used.
pub fn check_settings(config: &Config) -> Result<(), SettingError> {
    match config.traits.store {
        TraitsStore::Redis => RedisTarget::new(config).map(drop),
        _ => Ok(()),
    }
}

/// How much longer than its sinks the end of the process waits for the thread, which logs what is lost.
const STOP_GRACE: Duration = Duration::from_secs(1);
/// How long the start waits for the table to be read.
const LOAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts the thread, and waits until its table is in memory. Changes go to `sinks` too.
///
/// # Errors
/// The thread cannot be started, or the settings cannot be used, which [`check_settings`] finds out before.
pub fn start(
    config: &Config,
    link: TraitLink,
    mut sinks: Vec<Box<dyn TraitSink>>,
    metrics: Arc<Metrics>,
    log: Log,
) -> io::Result<TraitThread> {
    if let Some(folder) = config.traits_folder() {
        sinks.push(Box::new(TraitDisk::new(&folder, metrics.clone(), log.clone())));
    }
    if config.traits.store == TraitsStore::Redis {
        let redis = TraitRedis::new(config, metrics.clone(), log.clone());
        sinks.push(Box::new(redis.map_err(|error| io::Error::other(error.to_string()))?));
    }
    let stop = link.stop();
    let (ended, when_ended) = channel();
    let (loaded, when_loaded) = channel();
    let config = config.clone();
    let run = move || {
        let store = TraitStore::new(&config, link, sinks, metrics, log);
        // The start may have given up waiting.
        let _ = loaded.send(());
        store.run();
        drop(ended);
    };
    thread::Builder::new().name("traits".into()).spawn(run)?;
    let _ = when_loaded.recv_timeout(LOAD_TIMEOUT);
    Ok(TraitThread { stop, ended: when_ended })
}
