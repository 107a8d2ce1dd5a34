//! The server-side keys of an environment: which one to fetch with, and which ones open it.
use std::time::SystemTime;

use crate::config::{EnvironmentConfig, Secret};
use crate::engine::program::Role;
use crate::snapshot::KeyAccess;
use crate::upstream::ServerKey;

/// Keys from discovery, and the choice among all keys.
#[derive(Debug)]
pub struct ServerKeys {
    /// `None` for a configured environment: its keys are those of the configuration.
    pub discovered: Option<Vec<ServerKey>>,
    /// How many times upstream rejected a key; selects the key of the next request.
    rejected: usize,
}

impl ServerKeys {
    pub fn new(discovered: Option<Vec<ServerKey>>) -> Self {
        Self { discovered, rejected: 0 }
    }

    /// Upstream rejected the last key: the next request uses another one.
    pub fn reject(&mut self) {
        self.rejected = self.rejected.wrapping_add(1);
    }

    /// A key that has not expired.
    pub fn select(&self, config: &EnvironmentConfig, wall: SystemTime) -> Option<Secret> {
        let keys: Vec<&Secret> = match &self.discovered {
            Some(keys) => keys.iter().filter(|key| key.is_valid_at(wall)).map(|key| &key.key).collect(),
            None => config.server_side_keys().collect(),
        };
        keys.get(self.rejected % keys.len().max(1)).map(|key| (*key).clone())
    }

    /// All keys that open slot number `slot`, with the client-side key.
    pub fn access(
        &self,
        config: &EnvironmentConfig,
        client_side_key: &str,
        slot: usize,
    ) -> Vec<(Box<[u8]>, KeyAccess)> {
        let mut keys = Vec::new();
        let mut add = |key: &str, role, expires_at| {
            if !key.is_empty() {
                keys.push((key.as_bytes().into(), KeyAccess { slot, role, expires_at }));
            }
        };
        add(client_side_key, Role::Client, None);
        for key in config.server_side_keys() {
            add(key.expose(), Role::Server, None);
        }
        for key in self.discovered.iter().flatten() {
            add(key.key.expose(), Role::Server, key.expires_at);
        }
        keys
    }
}
