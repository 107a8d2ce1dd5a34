//! Single requests to upstream, for `edge-proxy check`.
//!
//! They use the same client as polling (proxies, certificates, limits), so that what succeeds here succeeds
//! there. Nothing is stored, published or retried.
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use http::Uri;

use crate::config::{Config, Secret, SettingError};
use crate::engine::compile::CompileWarning;
use crate::files;
use crate::files::Links;
use crate::snapshot::Environment;
use crate::supervisor::discovery::{CheckedPairs, KnownKeys, check_pairs};
use crate::supervisor::refresh;
use crate::upstream::{DeltaOutcome, DocumentResponse, EventsOutcome, KnownDocument, PollError, Upstream};

/// A client for single requests.
#[derive(Debug)]
pub struct Probe {
    upstream: Upstream,
}

/// A valid document.
#[derive(Debug)]
pub struct ProbedDocument {
    pub environment: Environment,
    pub warnings: Vec<CompileWarning>,
    pub bytes: usize,
}

/// Why there is no valid document.
#[derive(Debug)]
pub enum ProbeError {
    /// The environment has no server-side key.
    NoKey,
    /// Upstream answered 304 to an unconditional request.
    NotModified,
    File {
        path: PathBuf,
        error: std::io::Error,
    },
    Poll(PollError),
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKey => f.write_str("server_side_key is not set"),
            Self::NotModified => f.write_str("upstream answered 304 to an unconditional request"),
            Self::File { path, error } => write!(f, "{}: {error}", path.display()),
            Self::Poll(error) => error.fmt(f),
        }
    }
}

impl From<PollError> for ProbeError {
    fn from(error: PollError) -> Self {
        Self::Poll(error)
    }
}

/// Why `events.url` does not accept experiment events.
#[derive(Debug)]
pub enum EventsProbeError {
    /// The client-side key is refused.
    Key {
        why: String,
    },
    Url {
        why: String,
    },
    Poll(PollError),
}

impl fmt::Display for EventsProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key { why } => {
                write!(f, "{why}: the client-side key is refused; events.url may point to another Flagsmith")
            }
            Self::Url { why } => write!(f, "{why}: check events.url"),
            Self::Poll(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for EventsProbeError {}

impl Probe {
    /// # Errors
    /// One error for each invalid setting of upstream.
    pub fn new(config: &Config) -> Result<Self, Vec<SettingError>> {
        Ok(Self { upstream: Upstream::new(config)? })
    }

    /// The outgoing proxy for an address: its own address, and its name in messages.
    pub fn proxy_for(&self, uri: &Uri) -> Option<(Uri, String)> {
        self.upstream.proxy_for(uri)
    }

    /// Fetches and compiles the document of a key.
    ///
    /// # Errors
    /// What failed and what to do.
    pub fn document(&self, key: &Secret) -> Result<ProbedDocument, ProbeError> {
        match self.upstream.document(key.expose(), KnownDocument::default(), &mut DeltaOutcome::None)? {
            DocumentResponse::New(fetched) => Ok(compile(&fetched.document)?),
            DocumentResponse::Same(_) => Err(ProbeError::NotModified),
        }
    }

    /// Discovers environments with `proxy_key`, and checks their keys.
    ///
    /// # Errors
    /// What failed and what to do.
    pub(crate) fn discover(&self, config: &Config) -> Result<CheckedPairs, PollError> {
        let (found, _) = self.upstream.discover()?;
        Ok(check_pairs(found, &KnownKeys::configured(&config.environments), SystemTime::now()))
    }

    /// Opens the event stream of an environment and closes it again.
    ///
    /// # Errors
    /// What failed and what to do.
    pub fn stream(&self, client_side_key: &str) -> Result<(), PollError> {
        self.upstream.stream(client_side_key).map(drop)
    }

    /// Posts a batch without events to `events.url`.
    ///
    /// # Errors
    /// What failed and what to do.
    pub fn events(&self, client_side_key: &str) -> Result<(), EventsProbeError> {
        let outcome = self.upstream.post_events(client_side_key, "", "check", br#"{"events":[]}"#, None);
        judge_events(outcome)
    }
}

/// What a response to a batch without events says about `events.url` and the key.
fn judge_events(outcome: EventsOutcome) -> Result<(), EventsProbeError> {
    match outcome {
        // The events API answers 400 if it accepts no event.
        EventsOutcome::Accepted { .. } | EventsOutcome::Refused { status: 400 | 422, .. } => Ok(()),
        EventsOutcome::Refused { why, status: 401 | 403 } => Err(EventsProbeError::Key { why }),
        EventsOutcome::Refused { why, .. } => Err(EventsProbeError::Url { why }),
        EventsOutcome::Failed(error) => Err(EventsProbeError::Poll(error)),
    }
}

/// Reads and compiles a document on disk, of at most `bytes_max` bytes (`api_document_bytes_max`).
///
/// # Errors
/// It cannot be read, or is invalid.
pub fn file(path: &Path, bytes_max: usize) -> Result<ProbedDocument, ProbeError> {
    let bytes = files::read(path, Links::Follow, bytes_max as u64)
        .map_err(|error| ProbeError::File { path: path.to_owned(), error })?;
    Ok(compile(&bytes)?)
}

fn compile(document: &[u8]) -> Result<ProbedDocument, PollError> {
    let (environment, warnings) = refresh::compile(document)?;
    Ok(ProbedDocument { environment, warnings, bytes: document.len() })
}
