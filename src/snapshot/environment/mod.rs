//! [`Environment`]: a document compiled for requests.
//!
//! Compilation runs on the control plane. It does all the work that depends only on the document: the
//! program, complete response bodies (plain and compressed), and validators. A compiled document cannot fail
//! later.
mod deltas;
mod identity_uuids;
mod ready_body;

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::engine::compile;
use crate::engine::compile::CompileWarning;
use crate::engine::document::error::CompileError;
use crate::engine::document::raw_json::{DocumentPath, elements, members};
use crate::engine::document::{Document, canonical_json};
use crate::engine::evaluate::{EvaluationScratch, evaluate_on};
use crate::engine::jsonpath::Tree;
use crate::engine::program::{Program, Role, Span, offset};
use crate::engine::render;
use crate::json::hex::hex;
use crate::snapshot::environment::deltas::DocumentDeltas;
pub use crate::snapshot::environment::ready_body::ReadyBody;
use crate::yielding;

/// The number of documents compiled by this process. Memory ordering: relaxed, because only distinct numbers
/// are needed.
static COMPILED: AtomicU64 = AtomicU64::new(0);

/// A compiled document.
#[derive(Debug)]
pub struct Environment {
    id: u64,
    client_side_key: Box<str>,
    updated_at: Option<f64>,
    allow_client_traits: bool,
    hide_sensitive_data: bool,
    persist_trait_data: bool,
    hashes_unlike_core: bool,
    client_flags: FlagsBody,
    server_flags: FlagsBody,
    shared_end: Option<Bytes>,
    document: ReadyBody,
    /// The document is byte for byte the one that was fetched.
    is_as_fetched: bool,
    deltas: DocumentDeltas,
    program: Program,
    sizes: Sizes,
}

/// The document that a new one replaces.
#[derive(Clone, Copy, Debug)]
pub struct Predecessor<'a> {
    pub environment: &'a Environment,
    /// The identities of both documents keep their `identity_uuid`.
    pub keeps_uuids: bool,
}

/// Sizes of the document, for metrics and logs.
#[derive(Debug)]
pub struct Sizes {
    pub name: Box<str>,
    pub features: usize,
    pub segments: usize,
    /// Overrides; one identity may have several.
    pub identity_overrides: usize,
}

/// The `/flags/` response for one role.
#[derive(Debug)]
struct FlagsBody {
    body: ReadyBody,
    /// For each feature its object in `body`; empty if the feature is hidden from the role.
    spans: Vec<Span>,
}

impl Environment {
    /// Compiles a document, with all pages merged. An owned document is freed before the compilation, so that
    /// a large one is not in memory beside its result.
    ///
    /// # Errors
    /// The document is not JSON or does not have the structure of compatibility.md 3.
    pub fn compile<'a>(
        document: impl Into<Cow<'a, [u8]>>,
    ) -> Result<(Self, Vec<CompileWarning>), CompileError> {
        Self::compile_after(document, None)
    }

    /// As [`compile`](Self::compile), and makes deltas from the document that this one replaces if another
    /// proxy has requested some.
    ///
    /// # Errors
    /// As [`compile`](Self::compile).
    pub fn compile_after<'a>(
        document: impl Into<Cow<'a, [u8]>>,
        before: Option<Predecessor<'_>>,
    ) -> Result<(Self, Vec<CompileWarning>), CompileError> {
        let before = before.filter(|before| before.environment.deltas.is_requested());
        let document = document.into();
        let mut canonical = canonical_json::transcode(&document)?;
        let is_as_fetched = *document == *canonical.as_bytes();
        drop(document);
        if let Some(Predecessor { environment, keeps_uuids: true }) = before {
            let replaced = std::str::from_utf8(&environment.document.plain).unwrap_or("{}");
            canonical = identity_uuids::keep(canonical, replaced)?;
        }
        let read = Document::read(&canonical)?;
        let (mut program, warnings) = compile::build(&read)?;
        if program.has_queries {
            program.tree = Some(Tree::new(&canonical));
        }
        let mut scratch = EvaluationScratch::default();
        evaluate_on(&program, None, None, &mut scratch);
        let mut environment = Self {
            id: COMPILED.fetch_add(1, Ordering::Relaxed),
            client_side_key: read.api_key.as_deref().unwrap_or_default().into(),
            updated_at: read.updated_at,
            allow_client_traits: read.allow_client_traits,
            hide_sensitive_data: read.hide_sensitive_data,
            persist_trait_data: read.persist_trait_data,
            hashes_unlike_core: !read.uses_composite_key && program.hashes_identities(),
            client_flags: FlagsBody::new(&program, Role::Client, scratch.outputs()),
            server_flags: FlagsBody::new(&program, Role::Server, scratch.outputs()),
            shared_end: render::shared_end(&program).map(Bytes::from),
            sizes: Sizes {
                name: read.name.as_deref().unwrap_or_default().into(),
                features: read.features.len(),
                segments: read.segments.len(),
                identity_overrides: read.overrides.clone().map_or(0, Iterator::count),
            },
            document: {
                let etag = document_etag(&canonical)?;
                drop(read);
                ReadyBody::new(canonical.into_bytes(), etag)
            },
            is_as_fetched,
            deltas: DocumentDeltas::default(),
            program,
        };
        if let Some(Predecessor { environment: before, .. }) = before {
            environment.deltas = DocumentDeltas::new(&environment.document, &before.document, &before.deltas);
        }
        Ok((environment, warnings))
    }

    /// Identifies the compiled document within the process, across environments.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// `api_key` of the document; empty if it is null.
    pub fn client_side_key(&self) -> &str {
        &self.client_side_key
    }

    /// `updated_at` of the document, in seconds since the epoch.
    pub fn updated_at(&self) -> Option<f64> {
        self.updated_at
    }

    /// The complete `/flags/` body for the role.
    pub fn flags(&self, role: Role) -> &ReadyBody {
        &self.role(role).body
    }

    /// What large responses for identities end with ([`render::shared_end`]).
    pub fn shared_end(&self) -> Option<&Bytes> {
        self.shared_end.as_ref()
    }

    /// The object of one flag in the `/flags/` body, for `?feature=`.
    pub fn flag(&self, role: Role, name: &str) -> Option<&[u8]> {
        let index = self.program.feature(name)?;
        let flags = self.role(role);
        let span = flags.spans.get(index)?;
        (!span.is_empty()).then(|| span.of(&flags.body.plain))
    }

    /// The complete `/environment-document/` body, without secrets (differences.md 28).
    pub fn document(&self) -> &ReadyBody {
        &self.document
    }

    /// The document, if it is byte for byte the one that was fetched: upstream may send a delta from it.
    pub fn dictionary(&self) -> Option<&[u8]> {
        self.is_as_fetched.then_some(&*self.document.plain)
    }

    /// The deltas to the document, for other proxies.
    pub fn deltas(&self) -> &DocumentDeltas {
        &self.deltas
    }

    /// False: traits sent with a client-side key are not evaluated (differences.md 11).
    pub fn allow_client_traits(&self) -> bool {
        self.allow_client_traits
    }

    /// True: `traits` is `[]` in the response (differences.md 12).
    pub fn hide_sensitive_data(&self) -> bool {
        self.hide_sensitive_data
    }

    /// False: the organisation does not keep traits, they count for one answer.
    pub fn persist_trait_data(&self) -> bool {
        self.persist_trait_data
    }

    /// Whether percentage splits differ from core's: `use_identity_composite_key_for_hashing` is false, and
    /// core hashes an id that documents do not contain.
    pub fn hashes_unlike_core(&self) -> bool {
        self.hashes_unlike_core
    }

    /// Sizes of the document.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// The compiled program, for evaluation.
    pub fn program(&self) -> &Program {
        &self.program
    }

    fn role(&self, role: Role) -> &FlagsBody {
        match role {
            Role::Client => &self.client_flags,
            Role::Server => &self.server_flags,
        }
    }
}

impl FlagsBody {
    fn new(program: &Program, role: Role, outputs: &[u32]) -> Self {
        let mut body = vec![b'['];
        let mut spans = Vec::with_capacity(outputs.len());
        for output in outputs {
            let index = (output & !crate::engine::program::CYCLIC) as usize;
            if role == Role::Client && program.client[index].is_empty() {
                spans.push(Span::EMPTY);
                continue;
            }
            if body.len() > 1 {
                body.push(b',');
            }
            let from = offset(body.len());
            // Without `variant` and `reason` (differences.md 17 applies to identities only).
            let to = program.outputs[index].variant as usize - ",\"variant\":".len();
            body.extend_from_slice(&program.bytes[program.server[index].from as usize..to]);
            body.push(b'}');
            spans.push(Span { from, to: offset(body.len()) });
        }
        body.push(b']');
        body.shrink_to_fit();
        let etag = etag([&*body]);
        Self { body: ReadyBody::new(body, etag), spans }
    }
}

fn etag<'b>(pieces: impl IntoIterator<Item = &'b [u8]>) -> Box<str> {
    let mut digest = Sha256::new();
    for piece in pieces {
        yielding::in_pieces(piece, |piece| digest.update(piece));
    }
    format!("\"{}\"", hex(&digest.finalize()[..16])).into()
}

/// The entity tag of a document, without each `identity_uuid`: upstream generates new ones for each fetch.
fn document_etag(canonical: &str) -> Result<Box<str>, CompileError> {
    let mut pieces = Vec::new();
    let mut copied = 0;
    let [overrides] = members(canonical, &DocumentPath::ROOT, ["identity_overrides"])?;
    let entries = overrides.map(|raw| elements(raw, &DocumentPath::ROOT)).and_then(Result::ok);
    for entry in entries.into_iter().flatten().filter(|entry| entry.starts_with('{')) {
        let [uuid] = members(entry, &DocumentPath::ROOT, ["identity_uuid"])?;
        if let Some(uuid) = uuid {
            // Both are slices of the same text.
            let from = uuid.as_ptr() as usize - canonical.as_ptr() as usize;
            pieces.push(&canonical.as_bytes()[copied..from]);
            copied = from + uuid.len();
        }
    }
    pieces.push(&canonical.as_bytes()[copied..]);
    Ok(etag(pieces))
}

#[cfg(test)]
mod tests;
