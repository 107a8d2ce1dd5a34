//! All environments: which are served, and which event streams are open.
use std::collections::{BTreeSet, HashSet};
use std::time::Instant;

use crate::config::{EnvironmentConfig, Level};
use crate::snapshot::Snapshot;
use crate::supervisor::action::Action;
use crate::supervisor::context::EventContext;
use crate::supervisor::discovery::KnownKeys;
use crate::supervisor::environment::{Deadlines, PolledEnvironment};
use crate::supervisor::refresh::{EnvironmentId, LoadError, LoadedDocument, RefreshResult};
use crate::upstream::{DiscoveredEnvironment, ServerKey};

/// Configured and discovered environments, in the order of the slots of a snapshot.
#[derive(Debug, Default)]
pub struct Environments {
    list: Vec<PolledEnvironment>,
    last_id: EnvironmentId,
    open_streams: BTreeSet<EnvironmentId>,
}

/// How many environments a new configuration changed.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConfigChanges {
    pub added: usize,
    pub removed: usize,
    pub changed: usize,
}

impl Environments {
    pub fn due(&self) -> impl Iterator<Item = Instant> + '_ {
        self.list.iter().filter_map(PolledEnvironment::due)
    }

    /// The client-side keys of environments that upstream serves.
    pub fn polled_keys(&self) -> HashSet<&str> {
        let polled = self.list.iter().filter(|environment| environment.config.is_polled());
        polled.map(PolledEnvironment::client_side_key).collect()
    }

    /// The keys that a discovery response is checked against.
    pub fn known_keys(&self) -> KnownKeys {
        let mut known = KnownKeys::default();
        for environment in &self.list {
            let client_side_key = environment.client_side_key().to_owned();
            if let Some(keys) = environment.discovered_keys() {
                known.discovered.insert(client_side_key, keys.to_vec());
            } else if let Some(key) = &environment.config.server_side_key {
                known.configured.insert(key.expose().to_owned(), client_side_key);
            }
        }
        known
    }

    /// A snapshot of all slots and keys.
    pub fn snapshot(&self, version: u64) -> Snapshot {
        let slots = self.list.iter().map(PolledEnvironment::slot).collect();
        let mut keys = Vec::new();
        // A key that is listed twice belongs to the first environment; the map keeps the last entry.
        for (slot, environment) in self.list.iter().enumerate().rev() {
            keys.extend(environment.keys(slot));
        }
        let mut snapshot = Snapshot::new(version, slots, keys);
        snapshot.is_complete = !self.list.iter().any(PolledEnvironment::is_unread);
        snapshot
    }

    /// Starts the refreshes that are due; true if a slot changed.
    pub fn tick(&mut self, context: &mut EventContext<'_>) -> bool {
        let deadlines = Deadlines::new(context.config, self.list.len());
        let mut is_changed = false;
        for environment in &mut self.list {
            is_changed |= environment.tick(deadlines, context);
        }
        is_changed
    }

    /// Applies the result of a refresh; true if a slot changed.
    pub fn refreshed(&mut self, refreshed: RefreshResult, context: &mut EventContext<'_>) -> bool {
        let deadlines = Deadlines::new(context.config, self.list.len());
        // None: removed while the refresh was in flight.
        let environment = self.find(refreshed.id);
        environment.is_some_and(|environment| environment.refreshed(refreshed, deadlines, context))
    }

    pub fn loaded(
        &mut self,
        id: EnvironmentId,
        result: Result<Option<LoadedDocument>, LoadError>,
        context: &mut EventContext<'_>,
    ) {
        if let Some(environment) = self.find(id) {
            environment.loaded(result, context);
        }
    }

    pub fn announced(&mut self, id: EnvironmentId, updated_at: f64, context: &EventContext<'_>) {
        if let Some(environment) = self.find(id) {
            environment.announced(updated_at, context.now);
        }
    }

    fn find(&mut self, id: EnvironmentId) -> Option<&mut PolledEnvironment> {
        self.list.iter_mut().find(|environment| environment.id == id)
    }

    /// Makes an unconditional fetch of every environment due now.
    pub fn refresh_all(&mut self, context: &EventContext<'_>) {
        self.list.iter_mut().for_each(|environment| environment.refresh(context.now));
    }

    fn add(
        &mut self,
        config: EnvironmentConfig,
        discovered: Option<Vec<ServerKey>>,
        context: &mut EventContext<'_>,
    ) {
        self.last_id += 1;
        let id = self.last_id;
        let environment = PolledEnvironment::new(id, config, discovered, context.config, context.now);
        if context.has_storage && environment.config.is_polled() {
            let client_side_key = environment.config.client_side_key.clone();
            context.actions.push(Action::LoadDocument { id, client_side_key });
        }
        self.list.push(environment);
    }

    /// Removes every environment for which `is_kept` is false, with its event stream and its metrics.
    fn retain(
        &mut self,
        context: &mut EventContext<'_>,
        mut is_kept: impl FnMut(&PolledEnvironment) -> bool,
    ) -> Vec<PolledEnvironment> {
        let removed: Vec<_> = self.list.extract_if(.., |environment| !is_kept(environment)).collect();
        for environment in &removed {
            // First the stream: its thread updates metrics too.
            if self.open_streams.remove(&environment.id) {
                context.actions.push(Action::CloseStream(environment.id));
            }
            let client_side_key = environment.client_side_key().to_owned();
            context.actions.push(Action::RemoveMetrics(client_side_key));
        }
        removed
    }

    pub fn remove_discovered(&mut self, context: &mut EventContext<'_>) {
        self.retain(context, |environment| !environment.is_discovered());
    }

    /// Adds, removes and changes environments until those that are configured are exactly these.
    pub fn set_configured(
        &mut self,
        configured: &[EnvironmentConfig],
        context: &mut EventContext<'_>,
    ) -> ConfigChanges {
        let removed = self.retain(context, |environment| {
            let is_configured = |config| is_same(&environment.config, config);
            environment.is_discovered() || configured.iter().any(is_configured)
        });
        for discovered in self.list.iter_mut().filter(|environment| environment.is_discovered()) {
            discovered.reconfigure(discovered.config.clone(), context.config, context.now);
        }
        let mut changes = ConfigChanges { removed: removed.len(), ..ConfigChanges::default() };
        for config in configured {
            // A configured environment replaces a discovered one.
            self.list
                .retain(|environment| !(environment.is_discovered() && is_same(&environment.config, config)));
            match self.list.iter_mut().find(|environment| is_same(&environment.config, config)) {
                Some(environment) => {
                    let is_changed = environment.reconfigure(config.clone(), context.config, context.now);
                    changes.changed += usize::from(is_changed);
                }
                None => {
                    changes.added += 1;
                    self.add(config.clone(), None, context);
                }
            }
        }
        changes
    }

    /// Adds, removes and changes environments until those that are discovered are exactly these; true if
    /// something changed. Configured environments are not touched.
    pub fn set_discovered(
        &mut self,
        discovered: Vec<DiscoveredEnvironment>,
        context: &mut EventContext<'_>,
    ) -> bool {
        let listed: HashSet<String> =
            discovered.iter().map(|environment| environment.client_side_key.clone()).collect();
        let removed = self.retain(context, |environment| {
            !environment.is_discovered() || listed.contains(environment.client_side_key())
        });
        for environment in &removed {
            let fields: [(_, &dyn std::fmt::Display); 1] =
                [("client_side_key", &environment.client_side_key())];
            context.actions.log(Level::Info, "environment_removed", &fields);
        }
        let mut is_changed = !removed.is_empty();
        for DiscoveredEnvironment { client_side_key, server_side_keys } in discovered {
            let same =
                |environment: &&mut PolledEnvironment| environment.client_side_key() == client_side_key;
            match self.list.iter_mut().find(same) {
                Some(environment) if !environment.is_discovered() => {}
                Some(environment) => {
                    is_changed |= environment.set_discovered_keys(server_side_keys, context.now);
                }
                None => {
                    let fields: [(_, &dyn std::fmt::Display); 1] = [("client_side_key", &client_side_key)];
                    context.actions.log(Level::Info, "environment_discovered", &fields);
                    let config = EnvironmentConfig { client_side_key, ..EnvironmentConfig::default() };
                    self.add(config, Some(server_side_keys), context);
                    is_changed = true;
                }
            }
        }
        is_changed
    }

    /// Closes all event streams: their settings changed.
    pub fn close_streams(&mut self, context: &mut EventContext<'_>) {
        for id in std::mem::take(&mut self.open_streams) {
            context.actions.push(Action::CloseStream(id));
        }
    }

    /// Opens the event streams that are missing and closes those that are no longer used. To be called after
    /// each change of the environments or of `realtime.enabled`.
    pub fn update_streams(&mut self, context: &mut EventContext<'_>) {
        let is_followed = |environment: &&PolledEnvironment| {
            context.config.realtime.enabled && environment.config.is_polled()
        };
        let followed: BTreeSet<EnvironmentId> =
            self.list.iter().filter(is_followed).map(|environment| environment.id).collect();
        for id in self.open_streams.difference(&followed) {
            context.actions.push(Action::CloseStream(*id));
        }
        for environment in &self.list {
            let id = environment.id;
            if followed.contains(&id) && !self.open_streams.contains(&id) {
                let client_side_key = environment.client_side_key().to_owned();
                context.actions.push(Action::OpenStream { id, client_side_key });
            }
        }
        self.open_streams = followed;
    }

    /// The stream is opened at the next call of [`update_streams`](Self::update_streams).
    pub fn stream_failed(&mut self, id: EnvironmentId, error: &str, context: &mut EventContext<'_>) {
        self.open_streams.remove(&id);
        let Some(environment) = self.find(id) else { return };
        let client_side_key = environment.client_side_key();
        let fields: [(_, &dyn std::fmt::Display); 2] =
            [("client_side_key", &client_side_key), ("reason", &error)];
        context.actions.log(Level::Warning, "realtime_lost", &fields);
    }
}

/// The same environment, though its keys or its source may differ.
fn is_same(one: &EnvironmentConfig, other: &EnvironmentConfig) -> bool {
    one.client_side_key == other.client_side_key
        && (!one.client_side_key.is_empty() || one.document_path == other.document_path)
}
