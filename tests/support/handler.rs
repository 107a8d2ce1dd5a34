//! A snapshot and settings to call `handlers::handle` without a socket.
//!
//! Shared by the test that counts allocations and the benchmark that counts instructions, so that both measure
//! the same work.
use std::sync::Arc;

use edge_proxy::config;
use edge_proxy::config::Inputs;
use edge_proxy::engine::program::Role;
use edge_proxy::handlers::HandlerSettings;
use edge_proxy::snapshot::{DocumentSource, Environment, KeyAccess, PublishedDocument, Slot, Snapshot};

/// A snapshot that serves this environment to `server_key`.
pub fn snapshot(client_key: &str, server_key: &str, environment: Environment) -> Snapshot {
    let slot = Slot {
        client_side_key: client_key.into(),
        document: Some(PublishedDocument::first(Arc::new(environment), DocumentSource::File)),
        freshness: Arc::default(),
        reported: Arc::default(),
        last_error: None,
        number: 1,
    };
    let access = KeyAccess { slot: 0, role: Role::Server, expires_at: None };
    Snapshot::new(1, vec![slot], [(server_key.as_bytes().into(), access)])
}

/// The default settings, with these keys.
pub fn settings(client_key: &str, server_key: &str) -> HandlerSettings {
    let pairs = format!(r#"[{{"server_side_key": "{server_key}", "client_side_key": "{client_key}"}}]"#);
    let variables = [("ENVIRONMENT_KEY_PAIRS".to_owned(), pairs)].into_iter().collect();
    let inputs = Inputs { without_file: true, variables, ..Inputs::default() };
    HandlerSettings::new(&config::load(&inputs).expect("a valid configuration").0)
}
