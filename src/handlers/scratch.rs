//! Scratch buffers and caches of one reactor, reused by all of its requests.
use std::rc::Rc;

use crate::engine::evaluate::EvaluationScratch;
use crate::handlers::result_cache::{OfrepResult, ResultCache};
use crate::handlers::validators::DateHeaders;
use crate::http::compression::{CompressedTail, Gzip};
use crate::limits::KEPT_ANSWER_BYTES_MAX;

#[derive(Debug, Default)]
pub struct Scratch {
    pub evaluation: EvaluationScratch,
    /// Header lines of the current response, each with its line end.
    pub headers: Vec<u8>,
    pub date_headers: DateHeaders,
    /// A response body that may be compressed.
    pub body: Vec<u8>,
    /// The compressed form of a response body.
    pub compressed: Vec<u8>,
    pub gzip: Gzip,
    /// The flags of identities, compressed.
    pub flags_cache: ResultCache<CompressedTail>,
    pub ofrep_cache: ResultCache<Rc<OfrepResult>>,
}

impl Scratch {
    /// Frees the buffers that a large response has grown. Called after each request.
    pub fn shrink(&mut self) {
        for buffer in [&mut self.body, &mut self.compressed] {
            if buffer.capacity() > KEPT_ANSWER_BYTES_MAX {
                *buffer = Vec::new();
            }
        }
    }
}
