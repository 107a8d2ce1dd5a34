//! The document of an environment that is being served.
use crate::snapshot::{DocumentSource, PublishedDocument};
use crate::supervisor::refresh::LoadedDocument;
use crate::timestamp;
use crate::validators::Validators;

/// The last valid document.
#[derive(Debug)]
pub struct CurrentDocument {
    pub published: PublishedDocument,
    pub validators: Validators,
    pub digest: [u8; 32],
    pub bytes: usize,
}

impl CurrentDocument {
    /// A document that was refreshed.
    pub fn new(published: PublishedDocument, validators: Validators, digest: [u8; 32], bytes: usize) -> Self {
        let mut document = Self { published, validators: Validators::default(), digest, bytes };
        document.set_validators(validators);
        document
    }

    /// A document from `cache_dir`.
    pub fn from_storage(stored: LoadedDocument) -> Self {
        let LoadedDocument { environment, validators, digest, bytes, .. } = stored;
        let published = PublishedDocument::first(environment, DocumentSource::Cache);
        Self { published, validators, digest, bytes }
    }

    /// Takes the validators of the last response.
    pub fn set_validators(&mut self, mut validators: Validators) {
        if validators.last_modified.is_none() {
            // compatibility.md 4.1: upstream reads only whole seconds, in GMT.
            validators.last_modified =
                self.published.updated_at.and_then(timestamp::http_date).map(|date| date.to_string());
        }
        self.validators = validators;
    }
}
