//! Single questions to upstream, for `edge-proxy check`.
//!
//! In: a configuration. Out: what upstream answers, in one line. Invariant: asks with the very
//! client that polling uses (proxies, certificates, limits), so that what works here works
//! there; nothing is kept, published or retried.
use std::path::Path;
use std::time::SystemTime;

use http::Uri;

use crate::config::{Config, Secret};
use crate::engine::compile::CompileWarning;
use crate::files::Links;
use crate::snapshot::Environment;
use crate::supervisor::discovery::{CheckedPairs, KnownKeys, check_pairs};
use crate::supervisor::refresh;
use crate::upstream::{Answered, Upstream};
use crate::{files, upstream};

/// A way to ask.
#[derive(Debug)]
pub struct Probe {
    upstream: Upstream,
}

/// A document that was found good.
#[derive(Debug)]
pub struct ProbedDocument {
    pub environment: Environment,
    pub warnings: Vec<CompileWarning>,
    pub bytes: usize,
}

impl Probe {
    /// # Errors
    /// One line for each setting of upstream that cannot be used.
    pub fn new(config: &Config) -> Result<Self, Vec<String>> {
        Ok(Self { upstream: Upstream::new(config)? })
    }

    /// The outgoing proxy by which an address is asked: where it is, and its name for a message.
    pub fn proxy_for(&self, uri: &Uri) -> Option<(Uri, String)> {
        self.upstream.proxy_for(uri)
    }

    /// Fetches and compiles the document of a key.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub fn document(&self, key: &Secret) -> Result<ProbedDocument, String> {
        match self.upstream.document(key.expose(), None, None) {
            Ok(Answered::New(fetched)) => compile(&fetched.document),
            Ok(Answered::Same(_)) => {
                Err("upstream says that nothing changed, though nothing is held".to_owned())
            }
            Err(error) => Err(error.message),
        }
    }

    /// Discovers environments with `proxy_key`, and checks their keys.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub(crate) fn discover(&self, config: &Config) -> Result<CheckedPairs, String> {
        let (found, _) = self.upstream.discover().map_err(|error| error.message)?;
        Ok(check_pairs(found, &KnownKeys::configured(&config.environments), SystemTime::now()))
    }

    /// Opens the event stream of an environment and closes it again.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub fn stream(&self, client_side_key: &str) -> Result<(), String> {
        self.upstream.stream(client_side_key).map(drop).map_err(|error: upstream::PollError| error.message)
    }
}

/// Reads and compiles a document on disk, of at most `bytes_max` bytes (`api_document_bytes_max`).
///
/// # Errors
/// What is wrong with it.
pub fn file(path: &Path, bytes_max: usize) -> Result<ProbedDocument, String> {
    let bytes = files::read(path, Links::Follow, bytes_max as u64)
        .map_err(|error| format!("{}: {error}", path.display()))?;
    compile(&bytes)
}

fn compile(document: &[u8]) -> Result<ProbedDocument, String> {
    match refresh::compile(document) {
        Ok((environment, warnings)) => Ok(ProbedDocument { environment, warnings, bytes: document.len() }),
        Err(error) => Err(error.message),
    }
}
