//! Readiness: whether every required environment has a document, and whether it is fresh.
//!
//! Staleness is computed here, from the age of the last successful fetch, so that it shows even if the
//! supervisor has stopped. A 304 from upstream counts as a success; a document from a file or from the
//! program itself is never stale (compatibility.md 2.6, differences.md 25).
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::config::{Config, Require, Staleness};
use crate::json::write;
use crate::snapshot::{DocumentSource, LastError, Slot, Snapshot};
use crate::timestamp::{self, YEAR_10000_SECONDS};

/// The rules of `health_check` by which an environment is ready.
#[derive(Debug)]
pub struct ReadinessRules {
    staleness: Staleness,
    require: Require,
    ready_from_cache: bool,
}

/// Who reads a health body: decides how much of an error it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Clients of the main port: only the kind of an error, because its text names upstream hosts and files.
    Public,
    /// Clients of the admin port.
    Operator,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EnvironmentHealth {
    Fresh,
    Stale,
    /// Loaded from the cache directory, and not confirmed by upstream yet.
    Cache,
    Missing,
}

impl EnvironmentHealth {
    fn name(self) -> &'static str {
        match self {
            EnvironmentHealth::Fresh => "fresh",
            EnvironmentHealth::Stale => "stale",
            EnvironmentHealth::Cache => "cache",
            EnvironmentHealth::Missing => "missing",
        }
    }
}

impl ReadinessRules {
    pub fn new(config: &Config) -> Self {
        let health = &config.health_check;
        Self {
            staleness: config.staleness(),
            require: health.require,
            ready_from_cache: health.ready_from_cache,
        }
    }

    fn state(&self, slot: &Slot, age_max: Option<Duration>) -> EnvironmentHealth {
        match slot.document.as_ref().map(|document| document.source) {
            None => EnvironmentHealth::Missing,
            Some(DocumentSource::File | DocumentSource::Embedded) => EnvironmentHealth::Fresh,
            Some(DocumentSource::Cache) => EnvironmentHealth::Cache,
            Some(DocumentSource::Upstream) => match (slot.freshness.age(), age_max) {
                (Some(age), Some(age_max)) if age > age_max => EnvironmentHealth::Stale,
                (None, _) => EnvironmentHealth::Missing,
                _ => EnvironmentHealth::Fresh,
            },
        }
    }

    fn is_ready(&self, state: EnvironmentHealth) -> bool {
        state == EnvironmentHealth::Fresh || (state == EnvironmentHealth::Cache && self.ready_from_cache)
    }

    /// Why the proxy is not ready, or `None` if it is.
    pub fn reason(&self, snapshot: &Snapshot) -> Option<&'static str> {
        if snapshot.draining {
            return Some("shutting down.");
        }
        // Memory ordering: relaxed, because nothing that was written before the flag is read.
        if snapshot.trait_store.as_ref().is_some_and(|is_available| !is_available.load(Ordering::Relaxed)) {
            return Some("store of kept traits not available.");
        }
        let age_max = self.staleness.age_max(snapshot.slots.len());
        let mut states = snapshot.slots.iter().map(|slot| self.state(slot, age_max));
        let is_ready = match self.require {
            Require::All => !snapshot.slots.is_empty() && states.all(|state| self.is_ready(state)),
            Require::Any => states.any(|state| self.is_ready(state)),
        };
        if is_ready {
            return None;
        }
        let mut states = snapshot.slots.iter().map(|slot| self.state(slot, age_max));
        let is_stale = states.all(|state| self.is_ready(state) || state == EnvironmentHealth::Stale);
        match is_stale && !snapshot.slots.is_empty() {
            true => Some("environment document(s) stale."),
            false => Some("environment document(s) not updated."),
        }
    }
}

/// The state of each slot of the snapshot: fresh, stale, cache or missing.
pub fn states(config: &Config, snapshot: &Snapshot) -> Vec<&'static str> {
    let rules = ReadinessRules::new(config);
    let age_max = rules.staleness.age_max(snapshot.slots.len());
    snapshot.slots.iter().map(|slot| rules.state(slot, age_max).name()).collect()
}

/// The body of the readiness response of the admin listener, and why the proxy is not ready; `None` if it is.
pub fn report(config: &Config, snapshot: &Snapshot) -> (String, Option<&'static str>) {
    let rules = ReadinessRules::new(config);
    let reason = rules.reason(snapshot);
    let mut body = Vec::new();
    write(&rules, snapshot, reason, Audience::Operator, &mut body);
    (String::from_utf8_lossy(&body).into_owned(), reason)
}

/// Appends the body of a readiness response.
pub fn write(
    rules: &ReadinessRules,
    snapshot: &Snapshot,
    reason: Option<&str>,
    audience: Audience,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(match reason {
        None => b"{\"status\":\"ok\",\"reason\":null,\"last_successful_update\":",
        Some(_) => b"{\"status\":\"error\",\"reason\":",
    });
    if let Some(reason) = reason {
        write::string(reason, out);
        out.extend_from_slice(b",\"last_successful_update\":");
    }
    // All environments are as new as the oldest of their last successes.
    let complete = snapshot.slots.iter().map(|slot| slot.freshness.last_success()).min().flatten();
    write_time(complete, out);
    out.extend_from_slice(b",\"environments\":[");
    let age_max = rules.staleness.age_max(snapshot.slots.len());
    for (index, slot) in snapshot.slots.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_slot(slot, rules.state(slot, age_max), audience, out);
    }
    out.extend_from_slice(b"]}");
}

fn write_slot(slot: &Slot, state: EnvironmentHealth, audience: Audience, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"client_side_key\":");
    let shown =
        slot.client_side_key.char_indices().nth(6).map_or("", |(end, _)| &slot.client_side_key[..end]);
    write::string(&format!("{shown}..."), out);
    out.extend_from_slice(b",\"state\":");
    write::string(state.name(), out);
    out.extend_from_slice(b",\"source\":");
    // Until there is a document: upstream.
    let source = slot.document.as_ref().map_or(DocumentSource::Upstream, |document| document.source);
    write::string(source.name(), out);
    out.extend_from_slice(b",\"last_successful_update\":");
    write_time(slot.freshness.last_success(), out);
    out.extend_from_slice(b",\"document_updated_at\":");
    let seconds = slot.document.as_ref().and_then(|document| document.updated_at);
    let seconds = seconds.filter(|seconds| (0.0..YEAR_10000_SECONDS as f64).contains(seconds));
    write_time(seconds.map(|seconds| UNIX_EPOCH + Duration::from_secs_f64(seconds)), out);
    out.extend_from_slice(b",\"last_error\":");
    match (&slot.last_error, audience) {
        (Some(LastError { kind, .. }), Audience::Public) => write::string(kind, out),
        (Some(LastError { text, .. }), Audience::Operator) => write::string(text, out),
        (None, _) => out.extend_from_slice(b"null"),
    }
    out.push(b'}');
}

fn write_time(at: Option<SystemTime>, out: &mut Vec<u8>) {
    match at {
        Some(at) => write::string(&timestamp::rfc3339(at), out),
        None => out.extend_from_slice(b"null"),
    }
}
