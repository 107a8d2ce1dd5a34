//! One environment's turn on a thread of the pool: get its document, validate it, compile it.
//!
//! In: a [`RefreshJob`]. Out: a [`RefreshResult`] for the supervisor's loop. Invariants: one large document
//! is compiled at a time, so that memory and CPU have a bound however many change at once; a panic fails that
//! job alone. Nothing here decides what is served.
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant, SystemTime};

use crate::config::Secret;
use crate::engine::compile::CompileWarning;
use crate::files::{FileVersion, Links};
use crate::snapshot::Environment;
use crate::supervisor::affinity::Affinity;
use crate::supervisor::pool::{Pool, guarded};
use crate::upstream::{DocumentResponse, Fetched, PollError, PollErrorKind, Upstream, digest_of};
use crate::validators::Validators;
use crate::{files, limits};

/// Names an environment for as long as it is configured; never used twice.
pub type EnvironmentId = u64;

/// Where a document is asked for.
#[derive(Debug)]
pub enum RefreshSource {
    Upstream {
        upstream: Arc<Upstream>,
        key: Secret,
        held: Option<Validators>,
    },
    /// `seen` is the file last read, and `failed` what was wrong with it.
    File {
        path: PathBuf,
        seen: Option<FileVersion>,
        failed: Option<PollError>,
        /// `api_document_bytes_max`.
        bytes_max: usize,
    },
    Embedded(&'static str),
}

/// One environment's turn.
#[derive(Debug)]
pub struct RefreshJob {
    pub id: EnvironmentId,
    pub from: RefreshSource,
    /// Of the document held.
    pub digest: Option<[u8; 32]>,
    /// The document's bytes are wanted too: it is to be kept on disk.
    pub is_kept: bool,
}

/// A document that was accepted.
#[derive(Debug)]
pub struct Compiled {
    pub environment: Arc<Environment>,
    pub warnings: Vec<CompileWarning>,
    pub validators: Validators,
    pub digest: [u8; 32],
    /// The bytes as they came, if they are to be kept on disk.
    pub document: Option<Vec<u8>>,
    pub document_bytes: usize,
    /// To compile it.
    pub took: Duration,
}

/// What a job found.
#[derive(Debug)]
pub enum Polled {
    /// The document held is the current one. Upstream gave it these validators now.
    Same(Option<Validators>),
    New(Box<Compiled>),
}

/// What became of a job.
#[derive(Debug)]
pub struct RefreshResult {
    pub id: EnvironmentId,
    pub started: Instant,
    /// Of the file that was looked at.
    pub seen: Option<FileVersion>,
    pub result: Result<Polled, PollError>,
}

/// The two threads that compile: what is large is compiled and freed where it disturbs nobody, and
/// what is small does not wait for it.
#[derive(Debug)]
pub struct Compilers {
    pub small: Pool,
    pub large: Pool,
}

impl Compilers {
    /// Beside reactors on these CPUs.
    pub fn beside(reactors: &[usize]) -> Self {
        Self {
            small: Pool::new("compile", 1, Affinity::anywhere()),
            large: Pool::new("compile-large", 1, Affinity::beside(reactors)),
        }
    }

    fn of(&self, bytes: usize) -> &Pool {
        if bytes < limits::LARGE_DOCUMENT_BYTES { &self.small } else { &self.large }
    }
}

impl RefreshJob {
    /// Does it; a panic is a result like any other.
    pub fn run(self, compilers: &Compilers) -> RefreshResult {
        let id = self.id;
        let started = Instant::now();
        let mut seen = None;
        let result = guarded(|| run(self, &mut seen, compilers)).unwrap_or_else(|| Err(defect()));
        RefreshResult { id, started, seen, result }
    }
}

fn run(job: RefreshJob, seen: &mut Option<FileVersion>, compilers: &Compilers) -> Result<Polled, PollError> {
    let mut edited_at = None;
    let fetched = match job.from {
        RefreshSource::Upstream { upstream, key, held } => {
            match upstream.document(key.expose(), held.as_ref(), job.digest.as_ref())? {
                DocumentResponse::Same(validators) => return Ok(Polled::Same(Some(validators))),
                DocumentResponse::New(fetched) => fetched,
            }
        }
        RefreshSource::File { path, seen: before, failed, bytes_max } => {
            *seen = FileVersion::of_settled(&path, SystemTime::now());
            if seen.is_some() && *seen == before {
                return failed.map_or(Ok(Polled::Same(None)), Err);
            }
            // Who edits a file seldom thinks of its `updated_at`, but browsers fetch again only if it moves.
            edited_at = job.digest.and_then(|_| modified(&path));
            read(&path, bytes_max)?
        }
        RefreshSource::Embedded(text) => fetched(text.as_bytes().to_vec()),
    };
    if Some(fetched.digest) == job.digest {
        return Ok(Polled::Same(None));
    }
    let (sender, compiled) = channel();
    let bytes = fetched.document.len();
    let task = move || drop(sender.send(compile_timed(fetched, edited_at, job.is_kept)));
    compilers.of(bytes).give(task).map_err(|error| {
        PollError::new(PollErrorKind::Internal, format!("no thread to compile with: {error}"))
    })?;
    // A task that panicked dropped its sender.
    compiled.recv().unwrap_or_else(|_| Err(defect())).map(|compiled| Polled::New(Box::new(compiled)))
}

fn defect() -> PollError {
    let message = "a defect of this proxy showed while the document was read; the held one stays";
    PollError::new(PollErrorKind::Internal, message)
}

fn compile_timed(fetched: Fetched, edited_at: Option<f64>, is_kept: bool) -> Result<Compiled, PollError> {
    let started = Instant::now();
    let document_bytes = fetched.document.len();
    let (compiled, document) = match is_kept {
        true => (compile(&fetched.document)?, Some(fetched.document)),
        false => (compile(fetched.document)?, None),
    };
    let (mut environment, warnings) = compiled;
    if let Some(edited_at) = edited_at {
        environment.set_edit_time(edited_at);
    }
    Ok(Compiled {
        took: started.elapsed(),
        environment: Arc::new(environment),
        warnings,
        validators: fetched.validators,
        digest: fetched.digest,
        document,
        document_bytes,
    })
}

/// Validates and compiles.
///
/// # Errors
/// The document is not one; the message names the place.
pub fn compile<'a>(
    document: impl Into<Cow<'a, [u8]>>,
) -> Result<(Environment, Vec<CompileWarning>), PollError> {
    let document = document.into();
    let ends_well = document.trim_ascii_end().ends_with(b"}");
    Environment::compile(document).map_err(|error| {
        let path = shorten(&error.path);
        let cut = if ends_well { "" } else { "; it does not end as one: was it cut off on its way?" };
        let message = format!("not an environment document: {path}: {}{cut}", error.message);
        PollError::new(PollErrorKind::Document, message)
    })
}

/// A path from the depths of a hostile document would fill the log.
fn shorten(path: &str) -> Cow<'_, str> {
    let count = path.chars().count();
    if count <= limits::PATH_CHARS_MAX {
        return path.into();
    }
    let head: String = path.chars().take(limits::PATH_CHARS_MAX / 2).collect();
    let tail: String = path.chars().skip(count - limits::PATH_CHARS_MAX / 2).collect();
    format!("{head} ... {tail}").into()
}

fn fetched(document: Vec<u8>) -> Fetched {
    let digest = digest_of(&document);
    Fetched { document, validators: Validators::default(), digest }
}

/// When the file was written, seconds since the epoch.
fn modified(path: &Path) -> Option<f64> {
    let modified = std::fs::metadata(path).ok()?.modified().ok()?;
    Some(modified.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs_f64())
}

fn read(path: &Path, bytes_max: usize) -> Result<Fetched, PollError> {
    let document = files::read(path, Links::Follow, bytes_max as u64).map_err(|error| {
        let advice = match error.kind() {
            std::io::ErrorKind::FileTooLarge => "raise api_document_bytes_max if it should be",
            _ => "see its path and who may read it",
        };
        PollError::new(PollErrorKind::File, format!("{}: {error}: {advice}", path.display()))
    })?;
    Ok(fetched(document))
}
