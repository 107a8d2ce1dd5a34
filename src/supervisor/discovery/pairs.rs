//! Which key pairs of a discovery response can be used: the rules of `environment_key_pairs`.
//!
//! A client-side key is public. Accepted as a server-side key, it would open the whole document, so that keys
//! of the wrong type are rejected. A server-side key belongs to one environment: to the configured one, else
//! to the one that had it before, else to the first that lists it.
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::SystemTime;

use crate::config::{EnvironmentConfig, Secret};
use crate::upstream::{DiscoveredEnvironment, ServerKey};

/// A pair that is not used.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RejectedPair {
    pub client_side_key: String,
    /// `None`: the environment is rejected with all its keys.
    pub server_side_key: Option<Secret>,
    pub reason: &'static str,
}

impl fmt::Display for RejectedPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "environment {}", Secret::new(self.client_side_key.as_str()))?;
        if let Some(key) = &self.server_side_key {
            write!(f, ", server_side_key {key}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// A discovery response after the check.
#[derive(Debug, Default)]
pub struct CheckedPairs {
    pub usable: Vec<DiscoveredEnvironment>,
    pub rejected: Vec<RejectedPair>,
}

/// The keys that were known before the response.
#[derive(Debug, Default)]
pub struct KnownKeys {
    /// Configured: the client-side key of each server-side key.
    pub configured: HashMap<String, String>,
    /// Discovered: the server-side keys of each client-side key.
    pub discovered: HashMap<String, Vec<ServerKey>>,
}

impl KnownKeys {
    /// The keys of a configuration, before any response.
    pub fn configured(environments: &[EnvironmentConfig]) -> Self {
        let pair = |one: &EnvironmentConfig| {
            let server_side_key = one.server_side_key.as_ref()?.expose().to_owned();
            Some((server_side_key, one.client_side_key.clone()))
        };
        Self { configured: environments.iter().filter_map(pair).collect(), ..Self::default() }
    }
}

/// Keeps the environments with a valid client-side key and a server-side key that is valid at `clock`. An
/// environment whose keys are all rejected keeps those it had, so that a fault upstream does not end its
/// service.
pub fn check(listed: Vec<DiscoveredEnvironment>, known: &KnownKeys, clock: SystemTime) -> CheckedPairs {
    let mut checked = CheckedPairs::default();
    let merged = merged(listed, &mut checked.rejected);
    let owners = owners(&merged, known);
    let is_own =
        |client: &str, key: &ServerKey| owners.get(key.key.expose()).is_none_or(|owner| owner == client);
    for DiscoveredEnvironment { client_side_key, server_side_keys } in merged {
        let rejected_before = checked.rejected.len();
        let mut keys = Vec::with_capacity(server_side_keys.len());
        for key in server_side_keys {
            let reason = if !is_server_side_key(&key.key) {
                "not a server-side key, which starts with \"ser.\""
            } else if !is_own(&client_side_key, &key) {
                "the server-side key of another environment"
            } else {
                keys.push(key);
                continue;
            };
            let (client_side_key, server_side_key) = (client_side_key.clone(), Some(key.key));
            checked.rejected.push(RejectedPair { client_side_key, server_side_key, reason });
        }
        if keys.is_empty() && checked.rejected.len() > rejected_before {
            let known_keys = known.discovered.get(&client_side_key).into_iter().flatten();
            keys.extend(known_keys.filter(|key| is_own(&client_side_key, key)).cloned());
        }
        if keys.iter().any(|key| key.is_valid_at(clock)) {
            checked.usable.push(DiscoveredEnvironment { client_side_key, server_side_keys: keys });
        }
    }
    checked
}

/// Merges the entries of each environment into one with all its keys.
fn merged(
    listed: Vec<DiscoveredEnvironment>,
    rejected: &mut Vec<RejectedPair>,
) -> Vec<DiscoveredEnvironment> {
    let mut merged: Vec<DiscoveredEnvironment> = Vec::with_capacity(listed.len());
    let mut positions: HashMap<String, usize> = HashMap::new();
    for environment in listed {
        let key = &environment.client_side_key;
        if !is_key(key) || key.starts_with("ser.") {
            let reason = "not a client-side key";
            rejected.push(RejectedPair { client_side_key: key.clone(), server_side_key: None, reason });
            continue;
        }
        match positions.get(key) {
            Some(&position) => merged[position].server_side_keys.extend(environment.server_side_keys),
            None => {
                positions.insert(key.clone(), merged.len());
                merged.push(environment);
            }
        }
    }
    for environment in &mut merged {
        let mut seen = HashSet::new();
        environment.server_side_keys.retain(|key| seen.insert(key.key.clone()));
    }
    merged
}

/// The client-side key of the environment that each server-side key belongs to.
fn owners(merged: &[DiscoveredEnvironment], known: &KnownKeys) -> HashMap<String, String> {
    let mut owners = known.configured.clone();
    let mut claim = |key: &Secret, client: &str| {
        owners.entry(key.expose().to_owned()).or_insert_with(|| client.to_owned());
    };
    for DiscoveredEnvironment { client_side_key, server_side_keys } in merged {
        let known_keys = known.discovered.get(client_side_key).into_iter().flatten();
        let listed: HashSet<&Secret> = server_side_keys.iter().map(|key| &key.key).collect();
        // This environment keeps the keys it has, so that no other environment may claim them.
        let is_all_wrong = !listed.is_empty() && !listed.iter().any(|key| is_server_side_key(key));
        known_keys
            .filter(|key| is_all_wrong || listed.contains(&key.key))
            .for_each(|key| claim(&key.key, client_side_key));
    }
    for DiscoveredEnvironment { client_side_key, server_side_keys } in merged {
        server_side_keys.iter().for_each(|key| claim(&key.key, client_side_key));
    }
    owners
}

fn is_server_side_key(key: &Secret) -> bool {
    is_key(key.expose()) && key.expose().starts_with("ser.")
}

/// A key is sent as a header field value, so that it must be visible ASCII, as in the configuration.
fn is_key(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn listed(client_side_key: &str, keys: &[(&str, bool)]) -> DiscoveredEnvironment {
        let over = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        let key = |(key, is_good): &(&str, bool)| ServerKey {
            key: Secret::new(*key),
            expires_at: (!is_good).then_some(over),
        };
        DiscoveredEnvironment {
            client_side_key: client_side_key.into(),
            server_side_keys: keys.iter().map(key).collect(),
        }
    }

    fn checked(
        answer: &[DiscoveredEnvironment],
        known: &KnownKeys,
    ) -> (Vec<DiscoveredEnvironment>, Vec<(String, String)>) {
        let CheckedPairs { usable, rejected } = check(answer.to_vec(), known, SystemTime::now());
        let rejected = rejected.into_iter().map(|pair| {
            (pair.client_side_key, pair.server_side_key.map_or(String::new(), |key| key.expose().to_owned()))
        });
        (usable, rejected.collect())
    }

    fn pair(client: &str, server: &str) -> (String, String) {
        (client.to_owned(), server.to_owned())
    }

    #[test]
    fn merges_the_entries_of_an_environment() {
        let answer = [
            listed("a", &[("ser.1", true)]),
            listed("", &[("ser.2", true)]),
            listed("b", &[("ser.3", false)]),
            listed("a", &[("ser.1", true), ("ser.4", false)]),
        ];
        let (usable, rejected) = checked(&answer, &KnownKeys::default());
        assert_eq!(usable, [listed("a", &[("ser.1", true), ("ser.4", false)])]);
        assert_eq!(rejected, [pair("", "")]);
    }

    #[test]
    fn rejects_keys_of_the_wrong_type_and_keeps_the_others() {
        let answer = [
            listed("a", &[("b", true), ("ser.a", true)]),
            listed("b", &[("ser.a", true), ("ser.b", true)]),
            listed("ser.c", &[("ser.c", true)]),
            listed("d", &[("a", true)]),
            listed("e", &[("ser.e\n", true), ("ser.config", true)]),
            listed("f", &[("ser.f", true)]),
        ];
        let mut known = KnownKeys::default();
        known.configured.insert("ser.config".into(), "static".into());
        let (usable, rejected) = checked(&answer, &known);
        let expected = [
            listed("a", &[("ser.a", true)]),
            listed("b", &[("ser.b", true)]),
            listed("f", &[("ser.f", true)]),
        ];
        assert_eq!(usable, expected);
        let expected = [
            pair("ser.c", ""),
            pair("a", "b"),
            pair("b", "ser.a"),
            pair("d", "a"),
            pair("e", "ser.e\n"),
            pair("e", "ser.config"),
        ];
        assert_eq!(rejected, expected);
    }

    #[test]
    fn keeps_the_keys_of_an_environment_whose_new_keys_are_all_rejected() {
        let mut known = KnownKeys::default();
        known.discovered.insert("old".into(), listed("old", &[("ser.old", true)]).server_side_keys);
        // Another environment claims the key, and comes first.
        let answer = [listed("new", &[("ser.old", true)]), listed("old", &[("ser.old", true)])];
        let (usable, rejected) = checked(&answer, &known);
        assert_eq!(
            (&usable[..], &rejected[..]),
            (&[listed("old", &[("ser.old", true)])][..], &[pair("new", "ser.old")][..])
        );
        // All its keys are invalid: a fault upstream. Without any key it is removed.
        let (usable, rejected) = checked(&[listed("old", &[("a", true)])], &known);
        assert_eq!((&usable[..], rejected.len()), (&[listed("old", &[("ser.old", true)])][..], 1));
        assert_eq!(checked(&[listed("old", &[])], &known), (vec![], vec![]));
        // A key that was replaced is removed immediately.
        let (usable, _) = checked(&[listed("old", &[("ser.new", true), ("a", true)])], &known);
        assert_eq!(usable, [listed("old", &[("ser.new", true)])]);
    }
}
