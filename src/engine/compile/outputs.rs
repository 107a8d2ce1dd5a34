//! Renders the JSON of every output of a program.
//!
//! Outputs that are written in sequence are contiguous, commas included, so that a response copies runs of
//! them. Whether client keys may read a flag is decided here (compatibility.md 2.6, differences.md 10).
use std::borrow::Cow;

use hashbrown::{HashMap, HashSet};

use crate::engine::document::error::CompileError;
use crate::engine::document::raw_json::{DocumentPath, is_truthy, number_key, python_str};
use crate::engine::document::{Document, Feature};
use crate::engine::program::{FlagFact, RenderedFlag, Scalar};
use crate::engine::table::{Span, TableHashBuilder, offset};
use crate::json::write;
use crate::limits::ANSWER_BYTES_MAX;

/// Largest flag whose client form is stored beside its server form, bytes, so that consecutive flags are
/// copied together. Beyond: it is cut out of the server form.
const CLIENT_COPY_BYTES_MAX: usize = 1024;

/// The start of the reason of a segment override; client keys get no more of it.
const TARGETING_MATCH: &str = "TARGETING_MATCH";

/// Why a flag has its value (compatibility.md 5.12).
#[derive(Clone, Copy, Debug)]
pub enum Reason<'a> {
    Static,
    Default,
    /// Overridden by the segment of this name.
    Segment(&'a str),
    /// A variant with this weight, as Python prints it.
    Split(&'a str),
}

/// The outputs rendered so far.
#[derive(Debug)]
pub struct Outputs<'a> {
    pub bytes: Vec<u8>,
    pub outputs: Vec<RenderedFlag>,
    /// By output, see [`crate::engine::program::Program::server`].
    pub server: Vec<Span>,
    pub client: Vec<Span>,
    /// Filled only if conditions read flags.
    pub facts: Option<Vec<FlagFact>>,
    /// The `type` of each feature, by the [`number_key`] of its id.
    kinds: HashMap<Cow<'a, str>, &'a str, TableHashBuilder>,
    server_only: HashSet<Cow<'a, str>, TableHashBuilder>,
    hides_disabled: bool,
}

/// The parts of one output, raw JSON except the reason.
#[derive(Clone, Copy, Debug)]
pub struct FlagParts<'p> {
    pub feature: &'p Feature<'p>,
    pub enabled: &'p str,
    pub value: &'p str,
    pub variant: &'p str,
    pub reason: Reason<'p>,
    pub has_variants: bool,
    /// A JSON object with at least one member.
    pub metadata: Option<&'p str>,
}

impl<'a> Outputs<'a> {
    pub fn new(document: &Document<'a>, with_facts: bool) -> Self {
        Self {
            bytes: Vec::new(),
            outputs: Vec::new(),
            server: Vec::new(),
            client: Vec::new(),
            facts: with_facts.then(Vec::new),
            kinds: document.features.iter().map(|state| (number_key(state.feature.id), state.kind)).collect(),
            server_only: document.server_key_only_feature_ids.iter().map(|id| number_key(id)).collect(),
            hides_disabled: document.hide_disabled_flags,
        }
    }

    /// Writes an output for server keys. [`Self::write_client_forms`] must be called after a group of
    /// outputs.
    pub fn write(&mut self, parts: &FlagParts<'_>) -> Result<u32, CompileError> {
        if self.bytes.len() > ANSWER_BYTES_MAX {
            return Err(CompileError::new("$", format!("rendered flags exceed {ANSWER_BYTES_MAX} bytes")));
        }
        let id = number_key(parts.feature.id);
        let kind = self.kinds.get(&id).copied().unwrap_or("\"STANDARD\"");
        let out = &mut self.bytes;
        let from = offset(out.len());
        out.extend_from_slice(b"{\"feature\":{\"id\":");
        out.extend_from_slice(parts.feature.id.as_bytes());
        out.extend_from_slice(b",\"name\":");
        write::string(&parts.feature.name, out);
        out.extend_from_slice(b",\"type\":");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"},\"enabled\":");
        let enabled = offset(out.len());
        out.extend_from_slice(parts.enabled.as_bytes());
        out.extend_from_slice(b",\"feature_state_value\":");
        let value = offset(out.len());
        out.extend_from_slice(parts.value.as_bytes());
        out.extend_from_slice(b",\"variant\":");
        let variant = offset(out.len());
        out.extend_from_slice(parts.variant.as_bytes());
        out.extend_from_slice(b",\"reason\":");
        let reason = offset(out.len());
        let (prefix, rest) = parts.reason.parts();
        out.push(b'"');
        out.extend_from_slice(prefix.as_bytes());
        write::escaped(rest, out);
        let tail = offset(out.len());
        out.push(b'"');
        if let Some(metadata) = parts.metadata {
            out.extend_from_slice(b",\"metadata\":");
            out.extend_from_slice(metadata.as_bytes());
        }
        out.extend_from_slice(b"},");
        let server = Span { from, to: offset(out.len()) };

        let is_hidden = self.server_only.contains(&id) || (self.hides_disabled && !is_truthy(parts.enabled));
        let client_is_cut = matches!(parts.reason, Reason::Segment(_)) && !is_hidden;
        let cut = reason + 1 + offset(TARGETING_MATCH.len());
        let client = match (is_hidden, client_is_cut) {
            (true, _) => Span::EMPTY,
            (false, true) => Span { from, to: cut },
            (false, false) => server,
        };
        self.server.push(server);
        self.client.push(client);
        let has_variants = parts.has_variants;
        self.outputs.push(RenderedFlag {
            client_is_cut,
            has_variants,
            enabled,
            value,
            variant,
            reason,
            tail,
        });
        if let Some(facts) = &mut self.facts {
            facts.push(parts.fact());
        }
        Ok(offset(self.outputs.len() - 1))
    }

    /// Writes the client forms of the small outputs from `from` on, contiguous as well.
    pub fn write_client_forms(&mut self, from: usize) {
        let spans = self.server.iter().zip(&mut self.client);
        for (output, (server, client)) in self.outputs.iter_mut().zip(spans).skip(from) {
            if !output.client_is_cut || client.len() > CLIENT_COPY_BYTES_MAX {
                continue;
            }
            let start = offset(self.bytes.len());
            self.bytes.extend_from_within(client.from as usize..client.to as usize);
            self.bytes.extend_from_within(output.tail as usize..server.to as usize);
            *client = Span { from: start, to: offset(self.bytes.len()) };
            output.client_is_cut = false;
        }
    }

    /// Removes the last output.
    pub fn remove_last(&mut self) {
        self.outputs.pop();
        self.client.pop();
        if let Some(server) = self.server.pop() {
            self.bytes.truncate(server.from as usize);
        }
        if let Some(facts) = &mut self.facts {
            facts.pop();
        }
    }
}

impl<'p> Reason<'p> {
    /// The part that needs no escaping, and the rest.
    fn parts(self) -> (&'static str, &'p str) {
        match self {
            Self::Static => ("STATIC", ""),
            Self::Default => ("DEFAULT", ""),
            Self::Segment(name) => ("TARGETING_MATCH; segment=", name),
            Self::Split(weight) => ("SPLIT; weight=", weight),
        }
    }
}

impl FlagParts<'_> {
    fn fact(&self) -> FlagFact {
        let (prefix, rest) = self.reason.parts();
        FlagFact {
            enabled: Scalar::from_raw(self.enabled),
            name: (&*self.feature.name).into(),
            value: Scalar::from_raw(self.value),
            variant: Scalar::from_raw(self.variant),
            reason: format!("{prefix}{rest}").into(),
            feature_id: Scalar::from_raw(self.feature.id),
        }
    }
}

/// A weight as Python prints it in a reason.
pub fn weight_text(raw: &str) -> String {
    python_str(raw, &DocumentPath::ROOT).map_or_else(|_| raw.to_owned(), Cow::into_owned)
}
