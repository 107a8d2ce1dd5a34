//! The `flags` array of an identities answer.
//!
//! In: the outputs of an evaluation. Out: their ready bytes, those that follow each other in memory
//! copied at once. Invariant: document order; what a client key may not see is not written.
use crate::evaluate::Scratch;
use crate::evaluate::run::CYCLIC;
use crate::snapshot::rule::{Children, Output, Program};
use crate::snapshot::{Environment, Role};

/// The reason of a flag in a cycle of flags (wire.md 5.12).
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
}

/// Appends the whole array for that role, in document order; only `feature` if it is given
/// (still in an array, differences.md 18).
pub fn write(
    environment: &Environment,
    role: Role,
    results: &Scratch,
    feature: Option<&str>,
    out: &mut Vec<u8>,
) {
    let program = environment.program();
    out.push(b'[');
    let from = out.len();
    match feature {
        None => write_all(program, role, results.outputs(), out),
        Some(name) => {
            if let Some(output) = program.feature(name).and_then(|index| results.outputs().get(index)) {
                write_all(program, role, &[*output], out);
            }
        }
    }
    if out.len() > from {
        // The comma behind the last flag.
        out.pop();
    }
    out.push(b']');
}

fn write_all(program: &Program, role: Role, outputs: &[u32], out: &mut Vec<u8>) {
    // Bytes found but not yet copied: the next flag's often follow them.
    let mut pending = Children::EMPTY;
    for index in outputs {
        let output = &program.outputs[(index & !CYCLIC) as usize];
        let bytes = match role {
            Role::Server => output.server,
            Role::Client => output.client,
        };
        let is_whole = index & CYCLIC == 0 && (role == Role::Server || !output.client_is_cut);
        if is_whole && bytes.from == pending.to {
            pending.to = bytes.to;
            continue;
        }
        out.extend_from_slice(pending.of(&program.bytes));
        pending = Children::EMPTY;
        if bytes.is_empty() {
            continue;
        }
        if is_whole {
            pending = bytes;
        } else if index & CYCLIC != 0 {
            out.extend_from_slice(&program.bytes[output.server.from as usize..output.reason as usize]);
            out.push(b'"');
            out.extend_from_slice(CIRCULAR_DEPENDENCY.as_bytes());
            out.extend_from_slice(b"\"},");
        } else {
            out.extend_from_slice(bytes.of(&program.bytes));
            out.extend_from_slice(b"\"},");
        }
    }
    out.extend_from_slice(pending.of(&program.bytes));
}

/// The flags of an evaluation that `role` may see, in document order.
pub fn results<'a>(
    environment: &'a Environment,
    role: Role,
    results: &'a Scratch,
) -> impl Iterator<Item = Flag<'a>> {
    let program = environment.program();
    program.features.iter().zip(results.outputs()).filter_map(move |(feature, index)| {
        let output = &program.outputs[(index & !CYCLIC) as usize];
        if role == Role::Client && output.client.is_empty() {
            return None;
        }
        let mut flag = output.flag(program, &feature.name);
        if index & CYCLIC != 0 {
            flag.reason = CIRCULAR_DEPENDENCY;
        }
        Some(flag)
    })
}

impl Output {
    fn flag<'a>(&self, program: &'a Program, name: &'a str) -> Flag<'a> {
        let part = |from: u32, to: u32| {
            let bytes = program.bytes.get(from as usize..to as usize).unwrap_or_default();
            std::str::from_utf8(bytes).unwrap_or_default()
        };
        let before = |next: u32, name: &str| next - crate::snapshot::rule::offset(name.len());
        Flag {
            name,
            enabled: part(self.enabled, before(self.value, ",\"feature_state_value\":")),
            value: part(self.value, before(self.variant, ",\"variant\":")),
            variant: part(self.variant, before(self.reason, ",\"reason\":")),
            reason: part(self.reason + 1, before(self.server.to, "\"},")),
        }
    }
}
