//! Who asks: from the body or the query of a request to an [`Identity`].
//!
//! In: the bytes of a body, changed in place, or of a query. Out: an identity that borrows from
//! them, or a [`IdentityError`] that is ready to be sent. Three ways through, each for what the one before
//! leaves: `direct` reads what SDKs write; simd-json, with buffers that are kept, any other plain
//! JSON; what that refuses or cannot hold (and every error) is read by `python_json` and judged by
//! `detail`, which answer as Python's `json.loads` and pydantic do (compatibility.md 2.6).
//! Invariant: all ways give the same identity for the same body; the first two allocate nothing.
//! Only this file names simd-json.
pub mod echo;
pub mod errors;
mod fast_path;
pub mod query;
pub mod transient;
pub mod validation_errors;

#[cfg(test)]
mod tests;

use simd_json::{Buffers, Node, StaticNode, Tape};

use crate::engine::evaluate::{Identity, Trait, TraitValue};
pub use crate::identity::errors::Detail;
pub use crate::identity::errors::is_within_length;
use crate::limits::{JSON_DEPTH_MAX, KEPT_BODY_BYTES_MAX};
use crate::python::unicode::is_space;

/// Why there is no identity.
#[derive(Debug, PartialEq, Eq)]
pub enum IdentityError {
    /// 422 with this body, FastAPI's `detail` list.
    Invalid(Detail),
    /// The same, but where the Python proxy fails only after it looked at the key (differences.md 29).
    Unwritable(Detail),
    /// 400: not text, nested too deep, or with an integer of too many digits.
    Unreadable,
}

impl IdentityError {
    /// The body of a 400.
    pub const UNREADABLE: &'static [u8] = br#"{"detail":"There was an error parsing the body"}"#;

    /// There is more wrong than the 422 lists.
    pub fn is_cut(&self) -> bool {
        match self {
            Self::Invalid(detail) => detail.is_cut,
            Self::Unwritable(_) | Self::Unreadable => false,
        }
    }
}

/// An identity that was sent in a body.
#[derive(Clone, Copy, Debug)]
pub struct ParsedIdentity<'a> {
    pub identity: Identity<'a>,
    /// The traits as JSON, without the brackets, if they came just as they are echoed.
    pub echo: Option<&'a str>,
    /// The body named no identifier: the one here was made from the traits (differences.md 13).
    pub is_anonymous: bool,
}

/// Reads identities, with room that is kept from request to request.
pub struct IdentityReader {
    buffers: Buffers,
    tape: Tape<'static>,
    traits: Vec<Trait<'static>>,
    /// The body as it came: simd-json changes its input, and an error must quote it.
    original: Vec<u8>,
}

impl Default for IdentityReader {
    fn default() -> Self {
        Self {
            buffers: Buffers::with_max_depth(4096, JSON_DEPTH_MAX),
            tape: Tape::null(),
            traits: Vec::new(),
            original: Vec::new(),
        }
    }
}

impl std::fmt::Debug for IdentityReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // What it holds is a caller's data, which does not belong in a log.
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl IdentityReader {
    /// Reads the identity of a `POST identities/` and hands it to `then`, whose result it gives.
    pub fn read<R>(
        &mut self,
        body: &mut [u8],
        content_type: Option<&[u8]>,
        then: impl FnOnce(Result<ParsedIdentity<'_>, IdentityError>) -> R,
    ) -> R {
        let body_bytes = body.len();
        let result = self.read_any(body, is_json(content_type), then);
        if body_bytes > KEPT_BODY_BYTES_MAX {
            *self = Self::default();
        }
        result
    }

    fn read_any<R>(
        &mut self,
        body: &mut [u8],
        is_json: bool,
        then: impl FnOnce(Result<ParsedIdentity<'_>, IdentityError>) -> R,
    ) -> R {
        let mut traits = recycle(std::mem::take(&mut self.traits));
        let text = std::str::from_utf8(body).ok().filter(|_| is_json);
        if let Some(direct) = text.and_then(|text| fast_path::read(text, &mut traits)) {
            let identity = Identity { identifier: direct.identifier, traits: &traits };
            let result = then(Ok(ParsedIdentity { identity, echo: direct.echo, is_anonymous: false }));
            self.traits = recycle(traits);
            return result;
        }
        self.original.clear();
        self.original.extend_from_slice(body);
        let mut traits = recycle(traits);
        let mut tape = std::mem::replace(&mut self.tape, Tape(Vec::new())).reset();
        let plain =
            is_json && !body.is_empty() && simd_json::fill_tape(body, &mut self.buffers, &mut tape).is_ok();
        let identifier = if plain { plain_identity(&tape.0, &mut traits) } else { None };
        let result = match identifier {
            Some(identifier) => {
                let identity = Identity { identifier, traits: &traits };
                then(Ok(ParsedIdentity { identity, echo: None, is_anonymous: false }))
            }
            None => slow(&self.original, is_json, then),
        };
        self.tape = tape.reset();
        self.traits = recycle(traits);
        result
    }
}

/// The careful way: see `detail`.
fn slow<R>(
    original: &[u8],
    is_json: bool,
    then: impl FnOnce(Result<ParsedIdentity<'_>, IdentityError>) -> R,
) -> R {
    let body = match validation_errors::body_value(original, is_json) {
        Ok(body) => body,
        Err(refusal) => return then(Err(refusal)),
    };
    match validation_errors::identity(body.root()) {
        Ok(asked) => {
            let made;
            let identifier = match asked.identifier {
                Some(identifier) => identifier,
                None => {
                    made = transient::identifier(&asked.traits);
                    &made
                }
            };
            let identity = Identity { identifier, traits: &asked.traits };
            then(Ok(ParsedIdentity { identity, echo: None, is_anonymous: asked.identifier.is_none() }))
        }
        Err(refusal) => then(Err(refusal)),
    }
}

/// Reads the tape of a body that has nothing unusual in it. `None`: take the careful way.
fn plain_identity<'body>(tape: &[Node<'body>], traits: &mut Vec<Trait<'body>>) -> Option<&'body str> {
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
                // Of two members of one name the last one counts.
                traits.clear();
                plain_traits(tape, at + 1, len, traits)?;
            }
            ("identifier" | "traits", _) => return None,
            _ => {}
        }
        at += nodes(value);
    }
    identifier
}

fn plain_traits<'body>(
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
                "trait_value" => trait_value = plain_value(value)?,
                _ => {}
            }
            at += nodes(value);
        }
        traits.push(Trait { key: key?, value: trait_value });
    }
    Some(())
}

fn plain_value(node: Node<'_>) -> Option<TraitValue<'_>> {
    Some(match node {
        Node::String(text) if is_within_length(text) => TraitValue::Text(text),
        Node::Static(StaticNode::Null) => TraitValue::Null,
        Node::Static(StaticNode::Bool(value)) => TraitValue::Bool(value),
        Node::Static(StaticNode::I64(value)) => TraitValue::Int(value),
        // Above i64 the text of the number is needed, and the tape has it no more.
        Node::Static(StaticNode::U64(value)) => TraitValue::Int(i64::try_from(value).ok()?),
        Node::Static(StaticNode::F64(value)) => TraitValue::Float(value),
        _ => return None,
    })
}

/// The tape's nodes of one value, itself included.
fn nodes(node: Node<'_>) -> usize {
    match node {
        Node::Object { count, .. } | Node::Array { count, .. } => count + 1,
        Node::String(_) | Node::Static(_) => 1,
    }
}

/// Whether FastAPI reads a body of this content type as JSON: none at all, or a subtype of
/// `application` that is `json` or ends in `+json` (`email.message` splits it).
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

/// As `str.strip` does with a field that was read as Latin-1.
fn trim(media: &[u8]) -> &[u8] {
    let is_text = |byte: &u8| !is_space(char::from(*byte));
    let from = media.iter().position(is_text).unwrap_or(media.len());
    let to = media.iter().rposition(is_text).map_or(from, |last| last + 1);
    &media[from..to]
}

/// An empty vector with the room of another one, whose items borrowed from something else.
fn recycle<'new>(mut used: Vec<Trait<'_>>) -> Vec<Trait<'new>> {
    used.clear();
    // Collecting in place keeps the allocation (same layout), and there is nothing to convert.
    used.into_iter().map(|_| Trait { key: "", value: TraitValue::Null }).collect()
}
