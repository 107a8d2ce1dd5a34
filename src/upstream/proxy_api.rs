//! What is asked of upstream besides documents: which environments there are, and to take counts.
//!
//! In: the proxy key, parcels of counts. Out: environments with their keys; what became of a parcel.
//! Invariant: as for documents, our keys go to the configured origin only, and no redirect is followed
//! with a body. Contract: compatibility.md 1.4 and 4.3.
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::config::Secret;
use crate::upstream::error::misshapen;
use crate::upstream::{PollError, PollErrorKind, Upstream, refused, upgraded, url};

/// An environment that upstream told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveredEnvironment {
    pub client_side_key: String,
    /// Only the active ones.
    pub server_side_keys: Vec<ServerKey>,
}

/// A server-side key and how long it is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerKey {
    pub key: Secret,
    pub expires_at: Option<SystemTime>,
}

impl ServerKey {
    /// Whether it has not expired by then.
    pub fn is_good_at(&self, clock: SystemTime) -> bool {
        self.expires_at.is_none_or(|expires_at| clock < expires_at)
    }
}

/// What became of something sent.
#[derive(Debug)]
pub enum PostOutcome {
    Accepted,
    /// It never will be accepted. `why` is one line; where `may_divide` one row or the size may be at
    /// fault, so that parts of it may be accepted.
    Refused {
        why: String,
        may_divide: bool,
    },
    /// It may be accepted later.
    Failed(PollError),
}

#[derive(Deserialize)]
struct EnvironmentJson {
    client_side_key: String,
    server_side_keys: Vec<KeyJson>,
}

#[derive(Deserialize)]
struct KeyJson {
    key: String,
    active: bool,
    expires_at: Option<String>,
}

/// Reads the answer of `proxy/config/`.
///
/// # Errors
/// It has not the shape of compatibility.md 4.3.
pub fn parse(answer: &[u8]) -> Result<Vec<DiscoveredEnvironment>, PollError> {
    let fail = |error: String| PollError::new(PollErrorKind::Document, format!("proxy/config/: {error}"));
    let written: Vec<EnvironmentJson> =
        serde_json::from_slice(answer).map_err(|error| fail(misshapen(&error)))?;
    let mut environments = Vec::with_capacity(written.len());
    for environment in written {
        let mut server_side_keys = Vec::new();
        for written in environment.server_side_keys.into_iter().filter(|key| key.active) {
            let expires_at = match &written.expires_at {
                Some(text) => {
                    Some(parse_time(text).ok_or_else(|| fail(format!("expires_at {text:?} is no time")))?)
                }
                None => None,
            };
            server_side_keys.push(ServerKey { key: Secret::new(written.key), expires_at });
        }
        environments
            .push(DiscoveredEnvironment { client_side_key: environment.client_side_key, server_side_keys });
    }
    Ok(environments)
}

/// ISO 8601; without a zone it is UTC (compatibility.md 3).
fn parse_time(text: &str) -> Option<SystemTime> {
    OffsetDateTime::parse(text, &Rfc3339)
        .or_else(|_| OffsetDateTime::parse(&format!("{text}Z"), &Rfc3339))
        .ok()
        .map(SystemTime::from)
}

impl Upstream {
    /// Asks which environments this proxy is to serve. The bytes are what [`parse`] reads.
    ///
    /// # Errors
    /// Anything but a 200 of the right shape.
    pub fn discover(&self) -> Result<(Vec<DiscoveredEnvironment>, Vec<u8>), PollError> {
        let uri = self.address("proxy/config/")?;
        let keys: Vec<_> = self.proxy_key.iter().map(|key| ("x-proxy-key", key.expose())).collect();
        let (answer, trusted) = self.get(&uri, &keys, &[])?;
        if answer.status != 200 {
            return Err(match answer.status {
                401 | 403 => PollError::new(
                    PollErrorKind::Status(answer.status),
                    format!(
                        "{} answered {}: the proxy_key is refused",
                        url::origin(&answer.uri),
                        answer.status
                    ),
                ),
                _ => refused(&answer, trusted),
            });
        }
        let bytes = self.read(answer, self.document_bytes_max)?;
        Ok((parse(&bytes)?, bytes))
    }

    /// Posts `body` to `path` below `api_url`, with a key by which upstream can tell a repetition. All of
    /// it takes `time_max` at most, if there is one.
    pub fn post(
        &self,
        path: &str,
        fields: &[(&str, &str)],
        idempotency_key: &str,
        body: &[u8],
        time_max: Option<Duration>,
    ) -> PostOutcome {
        let uri = match self.address(path) {
            Ok(uri) => uri,
            Err(error) => return PostOutcome::Failed(error),
        };
        let mut fields = fields.to_vec();
        fields.push(("idempotency-key", idempotency_key));
        fields.extend(self.proxy_key.as_ref().map(|key| ("x-proxy-key", key.expose())));
        fields.extend(self.authorization());
        let answer =
            self.client.post(&uri, &fields, body, time_max).and_then(|answer| match upgraded(&answer) {
                // A redirect says that nothing was done with the body.
                Some(target) => self.client.post(&target, &fields, body, time_max),
                None => Ok(answer),
            });
        match answer {
            Ok(answer) => match answer.status {
                200..=299 => PostOutcome::Accepted,
                // Worth another try: who may send can change, and so can how much.
                401 | 403 | 408 | 429 => PostOutcome::Failed(refused(&answer, true)),
                300..=499 => PostOutcome::Refused {
                    why: format!("{} answered {} to {path}", url::origin(&uri), answer.status),
                    may_divide: matches!(answer.status, 400 | 413 | 422),
                },
                _ => PostOutcome::Failed(refused(&answer, true)),
            },
            Err(error) => PostOutcome::Failed(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environments_come_with_their_active_keys() {
        let found = parse(
            br#"[{"id": 1, "name": "a", "client_side_key": "c1", "updated_at": "2026-01-01T00:00:00Z", "project_id": 1,
                "organisation_id": 2, "server_side_keys": [
                  {"key": "ser.1", "active": true, "expires_at": null},
                  {"key": "ser.2", "active": false, "expires_at": null},
                  {"key": "ser.3", "active": true, "expires_at": "1970-01-01T00:01:00+00:00"},
                  {"key": "ser.4", "active": true, "expires_at": "1970-01-01T00:01:00.5"}]},
               {"client_side_key": "c2", "server_side_keys": []}]"#,
        )
        .unwrap();
        assert_eq!(found.len(), 2);
        assert!(found[1].server_side_keys.is_empty());
        let keys: Vec<_> = found[0].server_side_keys.iter().map(|key| key.key.expose()).collect();
        assert_eq!(keys, ["ser.1", "ser.3", "ser.4"]);
        let minute = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(60);
        let good: Vec<_> = found[0].server_side_keys.iter().map(|key| key.is_good_at(minute)).collect();
        assert_eq!(good, [true, false, true]);
    }

    #[test]
    fn what_stands_where_something_else_was_expected_is_not_told() {
        for (answer, words) in [
            (r#"[{"client_side_key": "c", "server_side_keys": ["ser.secret"]}]"#, "of another shape (line 1"),
            (r#""ser.secret""#, "of another shape"),
            (r#"[{"client_side_key": "ser.secret"#, "cut off"),
            ("<ser.secret>", "not JSON"),
        ] {
            let error = parse(answer.as_bytes()).expect_err("another shape").message;
            assert!(error.contains(words) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_wrong_shape_is_refused_whole() {
        for bad in [
            "",
            "{}",
            "null",
            "[{}]",
            r#"[{"client_side_key": "c", "server_side_keys": null}]"#,
            r#"[{"client_side_key": "c", "server_side_keys": [{"key": "k", "active": true, "expires_at": "soon"}]}]"#,
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
