//! The document of an environment that is being served.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::limits;
use crate::snapshot::{DocumentSource, Environment};
use crate::supervisor::refresh::LoadedDocument;
use crate::validators::Validators;

/// The last valid document.
#[derive(Debug)]
pub struct CurrentDocument {
    pub environment: Arc<Environment>,
    pub source: DocumentSource,
    pub validators: Validators,
    pub digest: [u8; 32],
    pub bytes: usize,
}

impl CurrentDocument {
    /// A document that was refreshed.
    pub fn new(
        environment: Arc<Environment>,
        source: DocumentSource,
        validators: Validators,
        digest: [u8; 32],
        bytes: usize,
    ) -> Self {
        let mut document = Self { environment, source, validators: Validators::default(), digest, bytes };
        document.set_validators(validators);
        document
    }

    /// A document from `cache_dir`.
    pub fn from_storage(stored: LoadedDocument) -> Self {
        let LoadedDocument { environment, validators, digest, bytes, .. } = stored;
        Self { environment, source: DocumentSource::Cache, validators, digest, bytes }
    }

    /// Takes the validators of the last response.
    pub fn set_validators(&mut self, mut validators: Validators) {
        if validators.last_modified.is_none() {
            // compatibility.md 4.1: upstream reads only whole seconds, in GMT.
            validators.last_modified = self.environment.updated_at().and_then(imf_fixdate);
        }
        self.validators = validators;
    }
}

/// Seconds since the epoch in the format of `If-Modified-Since` (RFC 9110, section 5.6.7).
fn imf_fixdate(seconds: f64) -> Option<String> {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)?;
    // httpdate panics beyond the year 9999.
    (seconds < limits::YEAR_10000_SECONDS as f64).then(|| httpdate::fmt_http_date(time))
}
