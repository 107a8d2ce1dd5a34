//! The `flags` array of an identities answer.
//!
//! In: the outputs of an evaluation. Out: their ready bytes, those that follow each other in memory
//! copied at once: the flags that a request leaves as they are are not even looked at one by one.
//! Invariant: document order; what a client key may not see is not written.
use crate::engine::evaluate::EvaluationScratch;
use crate::engine::evaluate::run::CYCLIC;
use crate::engine::program::{Program, RenderedFlag, Role, Span};

/// The reason of a flag in a cycle of flags (compatibility.md 5.12).
pub const CIRCULAR_DEPENDENCY: &str = "ERROR; code=CIRCULAR_DEPENDENCY";

/// One flag of an evaluation, for other protocols than Flagsmith's.
#[derive(Clone, Copy, Debug)]
pub struct Flag<'a> {
    pub name: &'a str,
    /// Raw JSON.
    pub enabled: &'a str,
    /// Raw JSON.
    pub value: &'a str,
    /// Raw JSON: a string or null.
    pub variant: &'a str,
    /// The inside of a JSON string, as server keys see it.
    pub reason: &'a str,
    /// The state that gave the value has variants.
    pub has_variants: bool,
    /// Raw JSON, an object with at least one member.
    pub metadata: Option<&'a str>,
}

/// Appends the whole array for that role, in document order; only `feature` if it is given
/// (still in an array, differences.md 18).
pub fn write(
    program: &Program,
    role: Role,
    results: &EvaluationScratch,
    feature: Option<&str>,
    out: &mut Vec<u8>,
) {
    out.push(b'[');
    let from = out.len();
    let mut run = FlagRun { bytes: &program.bytes, pending: Span::EMPTY, out };
    match feature {
        Some(name) => {
            if let Some(output) = program.feature(name).and_then(|index| results.outputs().get(index)) {
                run.each(program, role, &[*output]);
            }
        }
        None => {
            run.out.reserve(expected_bytes(program));
            if program.flags.is_some() || (program.client_differs && role == Role::Client) {
                run.each(program, role, results.outputs());
            } else {
                run.changes(program, role, results);
            }
        }
    }
    run.copy();
    if out.len() > from {
        // The comma behind the last flag.
        out.pop();
    }
    out.push(b']');
}

/// About how long an array is: an eighth more than one that no request changed. A large one that grew bit
/// by bit would be copied twice.
fn expected_bytes(program: &Program) -> usize {
    let bytes = stretch(unchanged(program)).len();
    bytes + bytes / 8
}

/// By feature its own output, that no request changed; they lie one after the other.
fn unchanged(program: &Program) -> &[Span] {
    &program.server[program.first_output as usize..][..program.features.len()]
}

/// From the first to the last of spans that lie one after the other.
#[inline]
fn stretch(spans: &[Span]) -> Span {
    match (spans.first(), spans.last()) {
        (Some(first), Some(last)) => Span { from: first.from, to: last.to },
        _ => Span::EMPTY,
    }
}

/// Bytes found but not yet copied: the next flag's often follow them.
struct FlagRun<'w> {
    bytes: &'w [u8],
    pending: Span,
    out: &'w mut Vec<u8>,
}

impl FlagRun<'_> {
    #[inline]
    fn add(&mut self, bytes: Span) {
        if bytes.from == self.pending.to {
            self.pending.to = bytes.to;
        } else {
            self.copy();
            self.pending = bytes;
        }
    }

    #[inline]
    fn copy(&mut self) {
        self.out.extend_from_slice(self.pending.of(self.bytes));
        self.pending = Span::EMPTY;
    }

    /// The flags that this request changed, and between them whole stretches of the others.
    fn changes(&mut self, program: &Program, role: Role, results: &EvaluationScratch) {
        let (json, outputs) = (program.json(role), results.outputs());
        let own = unchanged(program);
        let mut at = 0;
        for (word, bits) in results.changed().iter().enumerate() {
            let mut left = *bits;
            while left != 0 {
                let index = word * 64 + left.trailing_zeros() as usize;
                left &= left - 1;
                self.add_kept(&own[at..index]);
                self.add(json[outputs[index] as usize]);
                at = index + 1;
            }
        }
        self.add_kept(&own[at..]);
    }

    #[inline]
    fn add_kept(&mut self, spans: &[Span]) {
        let kept = stretch(spans);
        if !kept.is_empty() {
            self.add(kept);
        }
    }

    /// One flag after the other: some may be hidden, cut for client keys, or in a cycle of flags.
    fn each(&mut self, program: &Program, role: Role, outputs: &[u32]) {
        for index in outputs {
            let output = (index & !CYCLIC) as usize;
            let bytes = program.json(role)[output];
            if bytes.is_empty() {
                continue;
            }
            if index & CYCLIC != 0 {
                self.copy();
                let reason = program.outputs[output].reason as usize;
                self.out.extend_from_slice(&program.bytes[program.server[output].from as usize..reason]);
                self.out.push(b'"');
                self.out.extend_from_slice(CIRCULAR_DEPENDENCY.as_bytes());
                self.add(tail(program, output));
            } else {
                self.add(bytes);
                if role == Role::Client && program.outputs[output].client_is_cut {
                    self.add(tail(program, output));
                }
            }
        }
    }
}

/// What follows the text of an output's reason.
fn tail(program: &Program, output: usize) -> Span {
    Span { from: program.outputs[output].tail, to: program.server[output].to }
}

/// The flags of an evaluation that `role` may see, in document order.
pub fn results<'a>(
    program: &'a Program,
    role: Role,
    results: &'a EvaluationScratch,
) -> impl Iterator<Item = Flag<'a>> {
    program.features.iter().zip(results.outputs()).filter_map(move |(feature, index)| {
        let output = (index & !CYCLIC) as usize;
        if role == Role::Client && program.client[output].is_empty() {
            return None;
        }
        let mut flag = program.outputs[output].flag(program, &feature.name, program.server[output].to);
        if index & CYCLIC != 0 {
            flag.reason = CIRCULAR_DEPENDENCY;
        }
        Some(flag)
    })
}

impl RenderedFlag {
    fn flag<'a>(&self, program: &'a Program, name: &'a str, end: u32) -> Flag<'a> {
        let part = |from: u32, to: u32| {
            let bytes = program.bytes.get(from as usize..to as usize).unwrap_or_default();
            std::str::from_utf8(bytes).unwrap_or_default()
        };
        let before = |next: u32, name: &str| next - crate::engine::program::offset(name.len());
        let rest = part(self.tail + 1, before(end, "},"));
        Flag {
            name,
            enabled: part(self.enabled, before(self.value, ",\"feature_state_value\":")),
            value: part(self.value, before(self.variant, ",\"variant\":")),
            variant: part(self.variant, before(self.reason, ",\"reason\":")),
            reason: part(self.reason + 1, self.tail),
            has_variants: self.has_variants,
            metadata: rest.strip_prefix(",\"metadata\":"),
        }
    }
}
