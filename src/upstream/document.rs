//! Conditional fetches of environment documents, with all their pages.
use http::{HeaderMap, Uri, header};

use crate::delta;
use crate::delta::{DeltaError, DocumentDigest, digest_of};
use crate::json::base64::field_bytes;
use crate::limits;
use crate::upstream::api::Upstream;
use crate::upstream::client::{Field, UpstreamResponse};
use crate::upstream::error::{PollError, PollErrorKind};
use crate::upstream::response::error_for_status;
use crate::upstream::{pagination, url};
use crate::validators::Validators;

/// A fetched document, all pages merged.
#[derive(Debug)]
pub struct Fetched {
    pub document: Vec<u8>,
    pub validators: Validators,
    /// SHA-256 of `document`.
    pub digest: DocumentDigest,
}

/// What the caller of a fetch has.
#[derive(Clone, Copy, Debug, Default)]
pub struct KnownDocument<'a> {
    /// The validators of its document. With them the request is conditional.
    pub validators: Option<&'a Validators>,
    /// SHA-256 of its document.
    pub digest: Option<&'a DocumentDigest>,
    /// Its document, if upstream may answer with a delta from it. Needs the digest.
    pub dictionary: Option<&'a [u8]>,
}

/// Whether a document came as a delta.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DeltaOutcome {
    /// Upstream sent no delta.
    #[default]
    None,
    Applied,
    /// It was not usable, for this reason, and the whole document was requested.
    Refused(String),
}

/// The outcome of a conditional fetch.
#[derive(Debug)]
pub enum DocumentResponse {
    /// The caller's document is current, by a 304 or by its digest. These are its validators now.
    Same(Validators),
    New(Fetched),
}

impl Upstream {
    /// Fetches the environment document of a server-side `key`. `delta` is set if upstream answers with a
    /// delta; after one that is not usable the whole document is requested.
    ///
    /// # Errors
    /// The response is neither a complete document nor a 304, or there is none.
    pub fn document(
        &self,
        key: &str,
        known: KnownDocument<'_>,
        delta: &mut DeltaOutcome,
    ) -> Result<DocumentResponse, PollError> {
        let uri = self.address("environment-document/")?;
        let keys = self.keys(key);
        let conditions = known.validators.map(Validators::conditions).unwrap_or_default();
        let dictionary = known.dictionary.zip(known.digest);
        let available = dictionary.map(|(_, digest)| field_bytes(digest));
        let mut fields = keys.clone();
        if let Some(available) = &available {
            fields.extend([("accept-encoding", "gzip, dcz"), ("available-dictionary", available)]);
        }
        let (response, trusted) = self.get(&uri, &fields, &conditions)?;
        let validators = Validators::of(&response.headers);
        match (response.status, known.validators) {
            (200, _) => {}
            (304, Some(current)) if !conditions.is_empty() => {
                return Ok(DocumentResponse::Same(current.clone().updated(validators)));
            }
            (304, _) => {
                let message = "upstream answered 304 (not modified) to an unconditional request: check the caches in \
                               front of upstream";
                return Err(PollError::new(PollErrorKind::NotModified, message));
            }
            _ => return Err(error_for_status(&response, trusted)),
        }
        let origin = url::origin(&response.uri);
        let document = match dictionary.filter(|_| is_delta(&response.headers)) {
            Some((dictionary, digest)) => match self.apply_delta(response, dictionary, digest)? {
                Ok(document) => {
                    *delta = DeltaOutcome::Applied;
                    document
                }
                Err(reason) => {
                    *delta = DeltaOutcome::Refused(format!("the delta of {origin} is not usable: {reason}"));
                    let whole = KnownDocument { digest: known.digest, ..KnownDocument::default() };
                    return self.document(key, whole, delta);
                }
            },
            None => self.pages(response, trusted, &keys)?,
        };
        if let Some(what) = not_a_document(&document) {
            let message = format!("{origin} answered with {what}");
            return Err(PollError::new(PollErrorKind::Document, message));
        }
        let found = digest_of(&document);
        if known.digest == Some(&found) {
            return Ok(DocumentResponse::Same(validators));
        }
        Ok(DocumentResponse::New(Fetched { document, validators, digest: found }))
    }

    /// Reads a delta and applies it. The inner error is the reason why it is not usable.
    fn apply_delta(
        &self,
        response: UpstreamResponse,
        dictionary: &[u8],
        digest: &DocumentDigest,
    ) -> Result<Result<Vec<u8>, DeltaError>, PollError> {
        let promised = response.headers.get(UNENCODED_DIGEST).cloned();
        let coded = self.read_body(response, self.document_bytes_max)?;
        let applied = delta::decode(&coded, dictionary, digest, self.document_bytes_max);
        Ok(applied.and_then(|document| {
            let found = format!("sha-256={}", field_bytes(&digest_of(&document)));
            match promised.as_ref().and_then(|promised| promised.to_str().ok()) {
                Some(promised) if promised == found => Ok(document),
                Some(_) => Err(DeltaError::Digest),
                None => Err(DeltaError::NoDigest),
            }
        }))
    }

    /// Reads the body of the first response, fetches the pages after it, and merges them.
    fn pages(
        &self,
        response: UpstreamResponse,
        trusted: bool,
        keys: &[Field<'_>],
    ) -> Result<Vec<u8>, PollError> {
        let fail = |message| Err(PollError::new(PollErrorKind::Pages, message));
        let mut next = next_page(&response, trusted)?;
        let mut seen = vec![response.uri.clone()];
        let first = self.read(response, self.document_bytes_max)?;
        let mut left = self.document_bytes_max - first.len();
        let mut later = Vec::new();
        while let Some(uri) = next {
            if seen.contains(&uri) {
                return fail(format!("page {} of the document repeats an earlier page", seen.len() + 1));
            }
            if seen.len() >= limits::PAGES_MAX {
                return fail(format!("the document has more than {} pages", limits::PAGES_MAX));
            }
            let (response, trusted) = self.get(&uri, keys, &[])?;
            seen.push(uri);
            if response.status != 200 {
                return fail(format!("page {} of the document was answered {}", seen.len(), response.status));
            }
            next = next_page(&response, trusted)?;
            let page = self.read(response, left)?;
            left -= page.len();
            later.push(page);
        }
        pagination::merge(first, &later).map_err(|error| {
            let kind = if error.page == 1 { PollErrorKind::Document } else { PollErrorKind::Pages };
            PollError::new(kind, error.to_string())
        })
    }
}

/// The digest of the body before it was encoded (draft-ietf-httpbis-unencoded-digest).
const UNENCODED_DIGEST: &str = "unencoded-digest";

/// Whether the body is a delta (RFC 9842 6).
fn is_delta(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
    let is_dcz = codings.next().is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"dcz"));
    is_dcz && codings.next().is_none()
}

/// What the body of a 200 is, if it is obviously not a document.
fn not_a_document(body: &[u8]) -> Option<&'static str> {
    match body.trim_ascii_start().first() {
        None => Some("an empty body: check the proxies and gateways in front of upstream"),
        Some(b'<') => Some(
            "a web page, not JSON: api_url must be the URL of the API, such as https://flags.example.com/api/v1/, \
             without a login page in front of it",
        ),
        Some(_) => None,
    }
}

/// The URL of the next page, if there is one.
fn next_page(response: &UpstreamResponse, trusted: bool) -> Result<Option<Uri>, PollError> {
    let fail = |message| Err(PollError::new(PollErrorKind::Pages, message));
    // A non-ASCII field must not hide a page: its overrides would be missing without an error.
    let mut fields =
        response.headers.get_all(header::LINK).iter().map(|field| String::from_utf8_lossy(field.as_bytes()));
    let target = fields.find_map(|field| url::next(&field).map(str::to_owned));
    let Some(target) = target else { return Ok(None) };
    let Some(uri) = url::resolve(&response.uri, &target) else {
        return fail("the Link to the next page is not a valid URL".to_string());
    };
    if !trusted || !url::same_origin(&uri, &response.uri) {
        let origin = url::origin(&uri);
        return fail(format!(
            "the next page is at another origin ({origin}): not fetched, it would receive the key"
        ));
    }
    Ok(Some(uri))
}
