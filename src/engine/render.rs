//! Writes the `flags` array of a response from the results of an evaluation.
//!
//! Flags are rendered ahead, and contiguous ones are copied as one run: runs of flags that the identity does
//! not change are not even visited one by one. The order is that of the document.
use crate::engine::evaluate::EvaluationScratch;
use crate::engine::program::{CYCLIC, Program, Role};
use crate::engine::table::{Span, offset};
use crate::limits::TAIL_BYTES_MIN;
use crate::work;

/// The reason of a flag in a cycle of flags (compatibility.md 5.12).
pub const CIRCULAR_DEPENDENCY: &str = "ERROR; code=CIRCULAR_DEPENDENCY";

/// One flag of an evaluation, for protocols other than Flagsmith's.
#[derive(Clone, Copy, Debug)]
pub struct Flag<'a> {
    pub name: &'a str,
    /// Raw JSON.
    pub enabled: &'a str,
    /// Raw JSON.
    pub value: &'a str,
    /// Raw JSON: a string or null.
    pub variant: &'a str,
    /// The inside of a JSON string, as for server keys.
    pub reason: &'a str,
    /// The state of the flag has variants.
    pub has_variants: bool,
    /// Raw JSON, an object with at least one member.
    pub metadata: Option<&'a str>,
}

/// Appends the array for `role`, in document order. With `feature`, it has only that one (still an array,
/// differences.md 18).
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
                run.write_each(program, role, &[*output]);
            }
        }
        None => {
            run.out.reserve(expected_bytes(program));
            if has_runs(program, role) {
                run.write_changed(program, role, results, program.features.len());
            } else {
                run.write_each(program, role, results.outputs());
            }
        }
    }
    run.copy();
    work::count_bytes(out.len() - from);
    if out.len() > from {
        // The comma after the last flag.
        out.pop();
    }
    out.push(b']');
}

/// Whether responses for `role` consist of runs of the features' own flags.
fn has_runs(program: &Program, role: Role) -> bool {
    program.flags.is_none() && !(program.client_differs && role == Role::Client)
}

/// The features' own flags as the end of an array and of the object around it: large responses end in shared
/// memory with what their identities do not change ([`write_start`]). `None`: no response would.
pub fn shared_end(program: &Program) -> Option<Vec<u8>> {
    let own = union(own_outputs(program));
    if !has_runs(program, Role::Server) || own.len() < TAIL_BYTES_MIN * 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(own.len() + 1);
    bytes.extend_from_slice(own.of(&program.bytes));
    // The comma after the last flag.
    bytes.pop();
    bytes.extend_from_slice(b"]}");
    Some(bytes)
}

/// Appends the array for `role` up to where a long end of it is that of [`shared_end`], and returns the
/// position there. `None`: nothing was appended, and the caller calls [`write`].
pub fn write_start(
    program: &Program,
    role: Role,
    results: &EvaluationScratch,
    out: &mut Vec<u8>,
) -> Option<usize> {
    let own = own_outputs(program);
    let base = own.first().filter(|_| has_runs(program, role))?.from;
    // Copying the start of the body costs less than a separate TCP segment for the head.
    let short = own.partition_point(|span| ((span.from - base) as usize) < TAIL_BYTES_MIN);
    let end = short.max(changed_end(results));
    let position = (own.get(end)?.from - base) as usize;
    if ((union(own).to - base) as usize) < position + TAIL_BYTES_MIN {
        return None;
    }
    out.push(b'[');
    let from = out.len();
    out.reserve(position + position / 8);
    let mut run = FlagRun { bytes: &program.bytes, pending: Span::EMPTY, out };
    run.write_changed(program, role, results, end);
    run.copy();
    work::count_bytes(out.len() - from);
    Some(position)
}

/// The number of features up to the last changed one.
fn changed_end(results: &EvaluationScratch) -> usize {
    let last = results.changed().iter().enumerate().rev().find(|(_, bits)| **bits != 0);
    last.map_or(0, |(word, bits)| word * 64 + 64 - bits.leading_zeros() as usize)
}

/// Estimated length of an array: that of the features' own flags plus an eighth. Growing a large array step
/// by step would copy it twice.
fn expected_bytes(program: &Program) -> usize {
    let bytes = union(own_outputs(program)).len();
    bytes + bytes / 8
}

/// By feature, the span of its output. These spans are contiguous.
fn own_outputs(program: &Program) -> &[Span] {
    &program.server[program.first_output as usize..][..program.features.len()]
}

/// The union of contiguous spans.
#[inline]
fn union(spans: &[Span]) -> Span {
    match (spans.first(), spans.last()) {
        (Some(first), Some(last)) => Span { from: first.from, to: last.to },
        _ => Span::EMPTY,
    }
}

/// Collects contiguous spans, to copy them as one.
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

    /// The changed flags, and the runs of unchanged flags between them. No feature from `end` on is changed.
    fn write_changed(&mut self, program: &Program, role: Role, results: &EvaluationScratch, end: usize) {
        let (json, outputs) = (program.json(role), results.outputs());
        let own = own_outputs(program);
        let mut at = 0;
        for (word, bits) in results.changed().iter().enumerate() {
            let mut bits = *bits;
            while bits != 0 {
                let index = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                self.add_run(&own[at..index]);
                self.add(json[outputs[index] as usize]);
                at = index + 1;
            }
        }
        self.add_run(&own[at..end]);
    }

    #[inline]
    fn add_run(&mut self, spans: &[Span]) {
        let run = union(spans);
        if !run.is_empty() {
            self.add(run);
        }
    }

    /// Flags one by one: some may be hidden, cut for client keys, or part of a cycle of flags.
    fn write_each(&mut self, program: &Program, role: Role, outputs: &[u32]) {
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

/// The bytes after the text of an output's reason.
fn tail(program: &Program, output: usize) -> Span {
    Span { from: program.outputs[output].tail, to: program.server[output].to }
}

/// The flags of an evaluation that `role` may read, in document order.
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
        let mut flag = flag(program, output, &feature.name);
        if index & CYCLIC != 0 {
            flag.reason = CIRCULAR_DEPENDENCY;
        }
        Some(flag)
    })
}

/// The parts of an output.
fn flag<'a>(program: &'a Program, output: usize, name: &'a str) -> Flag<'a> {
    let rendered = &program.outputs[output];
    let part = |from: u32, to: u32| {
        let bytes = program.bytes.get(from as usize..to as usize).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    };
    let before = |next: u32, name: &str| next - offset(name.len());
    let rest = part(rendered.tail + 1, before(program.server[output].to, "},"));
    Flag {
        name,
        enabled: part(rendered.enabled, before(rendered.value, ",\"feature_state_value\":")),
        value: part(rendered.value, before(rendered.variant, ",\"variant\":")),
        variant: part(rendered.variant, before(rendered.reason, ",\"reason\":")),
        reason: part(rendered.reason + 1, rendered.tail),
        has_variants: rendered.has_variants,
        metadata: rest.strip_prefix(",\"metadata\":"),
    }
}
