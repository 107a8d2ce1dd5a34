//! Discovery of environments, and uploads of counts (compatibility.md 1.4 and 4.3).
//!
//! A redirect of a POST is followed only to the same host by https.
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::config::Secret;
use crate::timestamp;
use crate::upstream::api::Upstream;
use crate::upstream::error::{PollError, PollErrorKind, describe_json};
use crate::upstream::response::{error_for_status, https_redirect};
use crate::upstream::url;

/// An environment that upstream assigns to this proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveredEnvironment {
    pub client_side_key: String,
    /// The active keys.
    pub server_side_keys: Vec<ServerKey>,
}

/// A server-side key and when it expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerKey {
    pub key: Secret,
    pub expires_at: Option<SystemTime>,
}

impl ServerKey {
    /// Whether the key has not expired at that time.
    pub fn is_valid_at(&self, clock: SystemTime) -> bool {
        self.expires_at.is_none_or(|expires_at| clock < expires_at)
    }
}

/// The outcome of a POST.
#[derive(Debug)]
pub enum PostOutcome {
    Accepted,
    /// Upstream will never accept this body. `why` is one line. `may_divide`: the size or a single row may be
    /// the cause, and parts of the body may be accepted.
    Refused {
        why: String,
        may_divide: bool,
    },
    /// Upstream may accept the body later.
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

/// Parses the response of `proxy/config/`.
///
/// # Errors
/// The body does not have the structure of compatibility.md 4.3.
pub fn parse(body: &[u8]) -> Result<Vec<DiscoveredEnvironment>, PollError> {
    let fail = |error: String| PollError::new(PollErrorKind::Document, format!("proxy/config/: {error}"));
    let parsed: Vec<EnvironmentJson> =
        serde_json::from_slice(body).map_err(|error| fail(describe_json(&error)))?;
    let mut environments = Vec::with_capacity(parsed.len());
    for environment in parsed {
        let mut server_side_keys = Vec::new();
        for key in environment.server_side_keys.into_iter().filter(|key| key.active) {
            let expires_at = match &key.expires_at {
                Some(text) => {
                    Some(timestamp::parse_iso8601(text).map(SystemTime::from).ok_or_else(|| {
                        fail(format!("expires_at: expected an ISO 8601 time, got {text:?}"))
                    })?)
                }
                None => None,
            };
            server_side_keys.push(ServerKey { key: Secret::new(key.key), expires_at });
        }
        environments
            .push(DiscoveredEnvironment { client_side_key: environment.client_side_key, server_side_keys });
    }
    Ok(environments)
}

impl Upstream {
    /// Requests the environments that this proxy serves. The bytes are the body, as [`parse`] reads it.
    ///
    /// # Errors
    /// The response is not a 200 with a valid body, or there is none.
    pub fn discover(&self) -> Result<(Vec<DiscoveredEnvironment>, Vec<u8>), PollError> {
        let uri = self.address("proxy/config/")?;
        let keys: Vec<_> = self.proxy_key.iter().map(|key| ("x-proxy-key", key.expose())).collect();
        let (response, trusted) = self.get(&uri, &keys, &[])?;
        if response.status != 200 {
            return Err(match response.status {
                401 | 403 => PollError::new(
                    PollErrorKind::Status(response.status),
                    format!(
                        "{} answered {}: the proxy_key is refused",
                        url::origin(&response.uri),
                        response.status
                    ),
                ),
                _ => error_for_status(&response, trusted),
            });
        }
        let bytes = self.read(response, self.document_bytes_max)?;
        Ok((parse(&bytes)?, bytes))
    }

    /// Posts `body` to `path` below `api_url`. By `idempotency_key` upstream recognizes a repeated request.
    /// `time_max` limits the time for each attempt.
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
        fields.extend(self.own_fields());
        let response = self.client.post(&uri, &fields, body, time_max).and_then(|response| {
            match https_redirect(&response) {
                // A redirect means that upstream has not processed the body.
                Some(target) => self.client.post(&target, &fields, body, time_max),
                None => Ok(response),
            }
        });
        match response {
            Ok(response) => match response.status {
                200..=299 => PostOutcome::Accepted,
                // Retry: permissions and rate limits can change.
                401 | 403 | 408 | 429 => PostOutcome::Failed(error_for_status(&response, true)),
                300..=499 => PostOutcome::Refused {
                    why: format!("{} answered {} to {path}", url::origin(&uri), response.status),
                    may_divide: matches!(response.status, 400 | 413 | 422),
                },
                _ => PostOutcome::Failed(error_for_status(&response, true)),
            },
            Err(error) => PostOutcome::Failed(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_environments_with_their_active_keys() {
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
        let valid: Vec<_> = found[0].server_side_keys.iter().map(|key| key.is_valid_at(minute)).collect();
        assert_eq!(valid, [true, false, true]);
    }

    #[test]
    fn errors_do_not_quote_unexpected_values() {
        for (body, words) in [
            (
                r#"[{"client_side_key": "c", "server_side_keys": ["ser.secret"]}]"#,
                "unexpected JSON structure (line 1",
            ),
            (r#""ser.secret""#, "unexpected JSON structure"),
            (r#"[{"client_side_key": "ser.secret"#, "truncated"),
            ("<ser.secret>", "not JSON"),
        ] {
            let error = parse(body.as_bytes()).expect_err("invalid").message;
            assert!(error.contains(words) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn rejects_an_invalid_structure() {
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
