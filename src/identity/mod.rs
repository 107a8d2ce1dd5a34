//! Parses the identity of a request from its body or query.
//!
//! There are three parsers, each for what the previous one does not accept: `fast_path` for bodies as SDKs
//! write them; simd-json, with reused buffers, for other plain JSON; and `python::json` with
//! `validation_errors` for everything else and for all errors, with the results of Python's `json.loads` and
//! pydantic (compatibility.md 2.6). All three return the same identity for the same body; the first two do
//! not allocate.
pub mod echo;
pub mod error;
pub mod error_list;
mod fast_path;
pub mod query;
pub mod sent;
pub mod trait_items;
pub mod transient;
pub mod validation_errors;

#[cfg(test)]
mod tests;

use simd_json::{Buffers, Node, StaticNode, Tape};

use crate::engine::evaluate::{Identity, Trait, TraitValue};
pub use crate::identity::error::IdentityError;
use crate::identity::error_list::is_within_length;
use crate::identity::sent::SentBody;
use crate::limits::{JSON_DEPTH_MAX, KEPT_BODY_BYTES_MAX};
use crate::python::unicode::is_space;
use crate::work;

/// The identity of a request.
#[derive(Clone, Copy, Debug)]
pub struct ParsedIdentity<'a> {
    pub identity: Identity<'a>,
    /// The traits as JSON without the brackets, if they were sent exactly as they are echoed.
    pub echo: Option<&'a str>,
    /// The body has no identifier: this one was computed from the traits (differences.md 13).
    pub is_anonymous: bool,
}

/// Parses identities with buffers that are reused for the next request.
pub struct IdentityReader {
    buffers: Buffers,
    tape: Tape<'static>,
    traits: Vec<Trait<'static>>,
    /// A copy of the body: simd-json changes its input, and errors quote it.
    original: Vec<u8>,
}

impl Default for IdentityReader {
    fn default() -> Self {
        Self { buffers: new_buffers(), tape: Tape::null(), traits: Vec::new(), original: Vec::new() }
    }
}

fn new_buffers() -> Buffers {
    Buffers::with_max_depth(4096, JSON_DEPTH_MAX)
}

impl std::fmt::Debug for IdentityReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The buffers contain a client's data, which must not be logged.
        f.debug_struct("IdentityReader").finish_non_exhaustive()
    }
}

impl IdentityReader {
    /// Parses the body of a `POST identities/`, calls `then` with the result, and returns what `then`
    /// returns.
    pub fn read<R>(
        &mut self,
        body: &mut [u8],
        content_type: Option<&[u8]>,
        then: impl FnOnce(Result<ParsedIdentity<'_>, IdentityError>) -> R,
    ) -> R {
        let body_bytes = body.len();
        let result = self.parse(body, is_json(content_type), then);
        if body_bytes > KEPT_BODY_BYTES_MAX {
            *self = Self::default();
        }
        result
    }

    /// As [`read`](Self::read), as Flagsmith core reads the body: for a proxy that keeps traits.
    pub fn read_sent<R>(
        &mut self,
        body: &[u8],
        content_type: Option<&[u8]>,
        then: impl FnOnce(Result<SentBody<'_>, IdentityError>) -> R,
    ) -> R {
        work::count_bytes(body.len());
        let is_json = is_json(content_type);
        let mut traits = recycle(std::mem::take(&mut self.traits));
        let text = std::str::from_utf8(body).ok().filter(|_| is_json);
        let fast = text.and_then(|text| fast_path::parse(text, &mut traits));
        let result = match fast.and_then(|fast| sent::plain(&fast, &traits)) {
            Some(plain) => then(Ok(SentBody::Plain(plain))),
            None => sent::read(body, content_type, is_json, |sent| then(sent.map(SentBody::Full))),
        };
        self.traits = recycle(traits);
        if self.traits.capacity() * size_of::<Trait<'_>>() > KEPT_BODY_BYTES_MAX {
            self.traits = Vec::new();
        }
        result
    }

    fn parse<R>(
        &mut self,
        body: &mut [u8],
        is_json: bool,
        then: impl FnOnce(Result<ParsedIdentity<'_>, IdentityError>) -> R,
    ) -> R {
        let (mut traits, body_bytes) = (recycle(std::mem::take(&mut self.traits)), body.len());
        work::count_bytes(body_bytes);
        let text = std::str::from_utf8(body).ok().filter(|_| is_json);
        if let Some(fast) = text.and_then(|text| fast_path::parse(text, &mut traits)) {
            let identity = Identity { identifier: fast.identifier, traits: &traits };
            let result = then(Ok(ParsedIdentity { identity, echo: fast.echo, is_anonymous: false }));
            self.traits = recycle(traits);
            return result;
        }
        self.original.clear();
        self.original.extend_from_slice(body);
        let mut traits = recycle(traits);
        let mut tape = std::mem::replace(&mut self.tape, Tape(Vec::new())).reset();
        let is_filled =
            is_json && !body.is_empty() && simd_json::fill_tape(body, &mut self.buffers, &mut tape).is_ok();
        work::count(tape.0.len());
        let identifier = if is_filled { tape_identity(&tape.0, &mut traits) } else { None };
        let result = match identifier {
            Some(identifier) => {
                let identity = Identity { identifier, traits: &traits };
                then(Ok(ParsedIdentity { identity, echo: None, is_anonymous: false }))
            }
            None => {
                if body_bytes > KEPT_BODY_BYTES_MAX {
                    // Released first: the exact parser needs as much memory again.
                    (tape, traits, self.buffers) = (Tape(Vec::new()), Vec::new(), new_buffers());
                }
                parse_like_python(&self.original, is_json, then)
            }
        };
        self.tape = tape.reset();
        self.traits = recycle(traits);
        result
    }
}

/// Parses and validates as FastAPI and pydantic do.
fn parse_like_python<R>(
    original: &[u8],
    is_json: bool,
    then: impl FnOnce(Result<ParsedIdentity<'_>, IdentityError>) -> R,
) -> R {
    let body = match validation_errors::body_value(original, is_json) {
        Ok(body) => body,
        Err(error) => return then(Err(error)),
    };
    let requested = match validation_errors::identity(body.root()) {
        Ok(requested) => requested,
        Err(error) => return then(Err(error)),
    };
    let generated = requested.identifier.is_none().then(|| transient::identifier(&requested.traits));
    let identifier = requested.identifier.or(generated.as_deref()).unwrap_or_default();
    let identity = Identity { identifier, traits: &requested.traits };
    then(Ok(ParsedIdentity { identity, echo: None, is_anonymous: requested.identifier.is_none() }))
}

/// The identifier and the traits of a parsed body. `None` if it needs [`parse_like_python`].
fn tape_identity<'body>(tape: &[Node<'body>], traits: &mut Vec<Trait<'body>>) -> Option<&'body str> {
    let Some(&Node::Object { len, .. }) = tape.first() else { return None };
    let mut identifier = None;
    let mut at = 1;
    for _ in 0..len {
        let (Some(&Node::String(name)), Some(&value)) = (tape.get(at), tape.get(at + 1)) else { return None };
        at += 1;
        match (name, value) {
            // An empty identifier is a transient identity (differences.md 13).
            ("identifier", Node::String(text)) if !text.is_empty() && is_within_length(text) => {
                identifier = Some(text);
            }
            ("traits", Node::Array { len, .. }) => {
                // If a member occurs twice, the last one counts.
                traits.clear();
                tape_traits(tape, at + 1, len, traits)?;
            }
            ("identifier" | "traits", _) => return None,
            _ => {}
        }
        at += node_count(value);
    }
    identifier
}

fn tape_traits<'body>(
    tape: &[Node<'body>],
    start: usize,
    count: usize,
    traits: &mut Vec<Trait<'body>>,
) -> Option<()> {
    let mut at = start;
    for _ in 0..count {
        let Some(&Node::Object { len, .. }) = tape.get(at) else { return None };
        at += 1;
        let mut key = None;
        let mut trait_value = TraitValue::Null;
        for _ in 0..len {
            let (Some(&Node::String(name)), Some(&value)) = (tape.get(at), tape.get(at + 1)) else {
                return None;
            };
            at += 1;
            match name {
                "trait_key" => match value {
                    Node::String(text) => key = Some(text),
                    _ => return None,
                },
                "trait_value" => trait_value = tape_value(value)?,
                _ => {}
            }
            at += node_count(value);
        }
        traits.push(Trait { key: key?, value: trait_value });
    }
    Some(())
}

fn tape_value(node: Node<'_>) -> Option<TraitValue<'_>> {
    Some(match node {
        Node::String(text) if is_within_length(text) => TraitValue::Text(text),
        Node::Static(StaticNode::Null) => TraitValue::Null,
        Node::Static(StaticNode::Bool(value)) => TraitValue::Bool(value),
        Node::Static(StaticNode::I64(value)) => TraitValue::Int(value),
        // Above i64 the number's text is needed, which the tape does not contain.
        Node::Static(StaticNode::U64(value)) => TraitValue::Int(i64::try_from(value).ok()?),
        Node::Static(StaticNode::F64(value)) => TraitValue::Float(value),
        _ => return None,
    })
}

/// How many nodes of the tape a value takes.
fn node_count(node: Node<'_>) -> usize {
    match node {
        Node::Object { count, .. } | Node::Array { count, .. } => count + 1,
        Node::String(_) | Node::Static(_) => 1,
    }
}

/// Whether FastAPI parses a body of this content type as JSON: if there is none, or if it is a subtype of
/// `application` that is `json` or ends in `+json`. Split as by Python's `email.message`.
pub fn is_json(content_type: Option<&[u8]>) -> bool {
    let Some(content_type) = content_type.filter(|value| !value.is_empty()) else { return true };
    if content_type == b"application/json" {
        return true;
    }
    let media = trim(content_type.split(|byte| *byte == b';').next().unwrap_or_default());
    let mut parts = media.split(|byte| *byte == b'/');
    let (Some(kind), Some(subtype), None) = (parts.next(), parts.next(), parts.next()) else { return false };
    let suffix = subtype.len().checked_sub(5).map_or(&b""[..], |start| &subtype[start..]);
    kind.eq_ignore_ascii_case(b"application")
        && (subtype.eq_ignore_ascii_case(b"json") || suffix.eq_ignore_ascii_case(b"+json"))
}

/// Python's `str.strip` on a field decoded as Latin-1.
fn trim(media: &[u8]) -> &[u8] {
    let is_text = |byte: &u8| !is_space(char::from(*byte));
    let from = media.iter().position(is_text).unwrap_or(media.len());
    let to = media.iter().rposition(is_text).map_or(from, |last| last + 1);
    &media[from..to]
}

/// An empty vector with the allocation of `used`, for items of another lifetime.
fn recycle<'new>(mut used: Vec<Trait<'_>>) -> Vec<Trait<'new>> {
    used.clear();
    // Collecting in place keeps the allocation, because the layout is the same.
    used.into_iter().map(|_| Trait { key: "", value: TraitValue::Null }).collect()
}
