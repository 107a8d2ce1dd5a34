//! Compiles a document to a [`Program`] (compatibility.md 5.1, 5.2).
//!
//! What cannot change a result is left out: segments without overrides, overrides after one that always wins.
//! The exception is a document with a condition that reads a flag: then the order of evaluation is part of
//! the result, and everything is kept in document order.
mod builder;
pub mod conditions;
pub mod in_list;
pub mod outputs;
mod overrides;
pub mod segment_index;
pub mod segments;
mod variants;
mod warning;

use hashbrown::HashMap;

use crate::engine::compile::builder::ProgramBuilder;
use crate::engine::compile::segments::SegmentCompiler;
pub use crate::engine::compile::warning::CompileWarning;
use crate::engine::document::error::CompileError;
use crate::engine::document::{Document, FeatureState};
use crate::engine::program::Program;
use crate::engine::table::{TableHashBuilder, offset};

/// Compiles a document. The caller sets [`Program::tree`] if `has_queries` is true.
///
/// # Errors
/// An identity override is invalid, or the rendered flags exceed `limits::ANSWER_BYTES_MAX`.
pub fn build(document: &Document<'_>) -> Result<(Program, Vec<CompileWarning>), CompileError> {
    let features = unique_features(&document.features);
    let segments = unique_segments(document);
    let by_name: HashMap<&str, u32, TableHashBuilder> =
        features.iter().enumerate().map(|(index, state)| (&*state.feature.name, offset(index))).collect();
    let mut compiler = SegmentCompiler::new(document, &by_name);
    let reads_flags = segments.iter().any(|segment| compiler.reads_flags(&document.segments[*segment].rules));
    compiler.keep_order(reads_flags);

    let mut builder = ProgramBuilder::new(document, by_name, reads_flags);
    builder.overrides()?;
    builder.features(&features, &segments)?;
    let overrides = builder.segments(&segments, &mut compiler)?;
    builder.candidates(overrides);
    let mut program = builder.finish();
    let warnings = compiler.finish(&mut program);
    if !reads_flags {
        segment_index::build(&mut program);
    }
    Ok((program, warnings))
}

/// Feature states by name: of several with one name, the last one, at the position of the first (D089).
fn unique_features<'d, 'a>(states: &'d [FeatureState<'a>]) -> Vec<&'d FeatureState<'a>> {
    let mut positions: HashMap<&str, usize, TableHashBuilder> = HashMap::default();
    let mut unique: Vec<&FeatureState<'_>> = Vec::with_capacity(states.len());
    for state in states {
        match positions.get(&*state.feature.name) {
            Some(position) => unique[*position] = state,
            None => {
                positions.insert(&state.feature.name, unique.len());
                unique.push(state);
            }
        }
    }
    unique
}

/// Indices of segments by key: of several with one key, the last one, at the position of the first (D087).
fn unique_segments(document: &Document<'_>) -> Vec<usize> {
    let mut positions: HashMap<&str, usize, TableHashBuilder> = HashMap::default();
    let mut unique = Vec::with_capacity(document.segments.len());
    for (index, segment) in document.segments.iter().enumerate() {
        match positions.get(&*segment.key) {
            Some(position) => unique[*position] = index,
            None => {
                positions.insert(&segment.key, unique.len());
                unique.push(index);
            }
        }
    }
    unique
}
