//! What the spine needs to answer with no socket: one environment, opened by one server-side key.
//!
//! In: the keys, the environment. Out: the snapshot and the settings of `answer`. Shared by the
//! test that counts allocations and the bench that counts instructions, each with a binary of its
//! own, so that both measure the same thing; nothing here starts a process or opens a socket.
use std::sync::Arc;

use edge_proxy::config;
use edge_proxy::config::Inputs;
use edge_proxy::engine::program::Role;
use edge_proxy::handlers::HandlerSettings;
use edge_proxy::snapshot::{DocumentSource, Environment, KeyAccess, Slot, Snapshot};

/// A snapshot that serves this environment to `server_key`.
pub fn snapshot(client_key: &str, server_key: &str, environment: Environment) -> Snapshot {
    let slot = Slot {
        client_side_key: client_key.into(),
        environment: Some(Arc::new(environment)),
        source: DocumentSource::File,
        freshness: Arc::default(),
        last_error: None,
    };
    let access = KeyAccess { slot: 0, role: Role::Server, expires_at: None };
    Snapshot::new(1, vec![slot], [(server_key.as_bytes().into(), access)])
}

/// The default settings, for these keys.
pub fn settings(client_key: &str, server_key: &str) -> HandlerSettings {
    let pairs = format!(r#"[{{"server_side_key": "{server_key}", "client_side_key": "{client_key}"}}]"#);
    let variables = [("ENVIRONMENT_KEY_PAIRS".to_owned(), pairs)].into_iter().collect();
    let inputs = Inputs { without_file: true, variables, ..Inputs::default() };
    HandlerSettings::new(&config::load(&inputs).expect("a good configuration").0)
}
