//! Refreshes one environment on a thread of the pool: fetches, validates and compiles its document.
//!
//! One large document is compiled at a time, so that memory and CPU are bounded however many change.
//! A panic fails only the refresh it happened in.
use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant, SystemTime};

use crate::clock;
use crate::config::Secret;
use crate::delta::digest_of;
use crate::engine::compile::CompileWarning;
use crate::files::{self, FileVersion, Links};
use crate::metrics::EnvironmentMetrics;
use crate::snapshot::Environment;
use crate::snapshot::environment::Predecessor;
use crate::spans::{ActiveSpan, SpanKind, Tracer, tracer};
use crate::storage::{StorageError, StoredDocument};
use crate::supervisor::affinity::Affinity;
use crate::supervisor::pool::{Pool, guarded};
use crate::upstream::{
    DeltaOutcome, DocumentResponse, Fetched, KnownDocument, PollError, PollErrorKind, Upstream,
};
use crate::validators::Validators;

/// Documents of this size and more are compiled on a separate low-priority thread, bytes, so that small ones,
/// which take a few milliseconds, do not wait.
const LARGE_DOCUMENT_BYTES: usize = 1024 * 1024;
/// JSON path in the log, characters. Beyond: its middle is omitted.
const PATH_CHARS_MAX: usize = 160;

/// Identifies an environment while it is configured; never reused.
pub type EnvironmentId = u64;

/// Where a document comes from.
#[derive(Debug)]
pub enum RefreshSource {
    /// Conditional if there are validators.
    Upstream {
        key: Secret,
        validators: Option<Validators>,
        /// Upstream, another proxy, may answer with a delta from the current document.
        accepts_delta: bool,
    },
    File {
        path: PathBuf,
        /// The version that was read last, and what was wrong with it.
        seen: Option<FileVersion>,
        failed: Option<PollError>,
        /// `api_document_bytes_max`.
        bytes_max: usize,
    },
    Embedded(&'static str),
}

/// One refresh of one environment.
#[derive(Debug)]
pub struct RefreshJob {
    pub id: EnvironmentId,
    /// The client-side key, for spans.
    pub label: Box<str>,
    pub source: RefreshSource,
    /// SHA-256 of the current document.
    pub digest: Option<[u8; 32]>,
    /// The current document, for deltas from it and to it; `None` without `document_deltas`.
    pub current: Option<Arc<Environment>>,
    /// Return the bytes of a new document too, to store them.
    pub is_stored: bool,
}

/// A new, valid document.
#[derive(Debug)]
pub struct Compiled {
    pub environment: Arc<Environment>,
    /// When its file was edited, seconds since the epoch. `None` for the first document of an environment.
    pub edited_at: Option<f64>,
    pub warnings: Vec<CompileWarning>,
    pub validators: Validators,
    pub digest: [u8; 32],
    /// The bytes, if they are to be stored.
    pub document: Option<Vec<u8>>,
    pub document_bytes: usize,
    /// How long compiling took.
    pub took: Duration,
}

impl Compiled {
    /// The time since the `updated_at` of the document.
    pub fn age(&self, wall: SystemTime) -> Option<Duration> {
        let updated_at = Duration::try_from_secs_f64(self.environment.updated_at()?).ok()?;
        wall.duration_since(SystemTime::UNIX_EPOCH.checked_add(updated_at)?).ok()
    }

    pub fn record(&self, metrics: &mut EnvironmentMetrics) {
        metrics.compile = self.took;
        metrics.document_bytes = self.document_bytes as u64;
        metrics.refused_conditions = self.warnings.len() as u64;
    }
}

/// What a successful refresh found.
#[derive(Debug)]
pub enum Polled {
    /// The document has not changed. Upstream returned these validators for it.
    Same(Option<Validators>),
    New(Box<Compiled>),
}

/// The result of a refresh.
#[derive(Debug)]
pub struct RefreshResult {
    pub id: EnvironmentId,
    pub started: Instant,
    /// The version of the file that was read.
    pub seen: Option<FileVersion>,
    pub delta: DeltaOutcome,
    pub result: Result<Polled, PollError>,
}

/// A document that was read from `cache_dir` and compiled.
#[derive(Debug)]
pub struct LoadedDocument {
    pub environment: Arc<Environment>,
    pub validators: Validators,
    pub digest: [u8; 32],
    pub bytes: usize,
    pub saved_at: SystemTime,
}

/// Why a stored document, or a stored list of environments, is not used. Displayed as one line.
#[derive(Debug)]
pub enum LoadError {
    Storage(StorageError),
    Content(PollError),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Storage(error) => error.fmt(f),
            Self::Content(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LoadError {}

impl From<StorageError> for LoadError {
    fn from(error: StorageError) -> Self {
        Self::Storage(error)
    }
}

impl From<PollError> for LoadError {
    fn from(error: PollError) -> Self {
        Self::Content(error)
    }
}

/// The two threads that compile. Large documents are compiled and freed at a low priority, and small
/// documents do not wait for them.
#[derive(Debug)]
pub struct Compilers {
    pub small: Pool,
    pub large: Pool,
}

impl Compilers {
    /// For reactors that are pinned to these CPUs.
    pub fn beside(reactors: &[usize]) -> Self {
        Self {
            small: Pool::new("compile", 1, Affinity::anywhere()),
            large: Pool::new("compile-large", 1, Affinity::beside(reactors)),
        }
    }

    fn of(&self, bytes: usize) -> &Pool {
        if bytes < LARGE_DOCUMENT_BYTES { &self.small } else { &self.large }
    }
}

/// Runs a task that compiles a document of this size, bytes, on this or another thread.
pub trait CompileExecutor {
    /// # Errors
    /// No thread can be started.
    fn execute(&self, bytes: usize, task: CompileTask) -> std::io::Result<()>;
}

/// Compiles a document.
pub type CompileTask = Box<dyn FnOnce() + Send>;

impl CompileExecutor for Compilers {
    fn execute(&self, bytes: usize, task: CompileTask) -> std::io::Result<()> {
        self.of(bytes).spawn(task)
    }
}

impl RefreshJob {
    /// Blocks until the document is fetched and compiled. A panic becomes an error. A poll of upstream and a
    /// compilation have spans; looking at a file has none.
    pub fn run(
        self,
        upstream: &Upstream,
        compilers: &impl CompileExecutor,
        tracer: &Tracer,
    ) -> RefreshResult {
        let (id, started) = (self.id, clock::instant());
        let (mut seen, mut delta) = (None, DeltaOutcome::None);
        let result = if matches!(self.source, RefreshSource::Upstream { .. }) {
            tracer.trace("poll", |span| {
                span.set("edge_proxy.environment", || Secret::new(&*self.label).to_string());
                let result = guarded(|| run(self, &mut seen, &mut delta, upstream, compilers, tracer));
                note(span, result.as_ref());
                result
            })
        } else {
            guarded(|| run(self, &mut seen, &mut delta, upstream, compilers, tracer))
        };
        RefreshResult { id, started, seen, delta, result: result.unwrap_or_else(|| Err(defect())) }
    }
}

fn note(span: &ActiveSpan, result: Option<&Result<Polled, PollError>>) {
    let name = match result {
        Some(Ok(Polled::New(compiled))) => {
            span.set("edge_proxy.document.bytes", || compiled.document_bytes as u64);
            "changed"
        }
        Some(Ok(Polled::Same(_))) => "unchanged",
        Some(Err(error)) => {
            span.fail(error.kind.name(), &error.message);
            "failed"
        }
        None => {
            span.fail(PollErrorKind::Internal.name(), "");
            "failed"
        }
    };
    span.set("edge_proxy.poll.result", || name);
}

/// Compiles the stored document of an environment; `None` if there is none.
///
/// # Errors
/// It is damaged, or not valid.
pub fn load(
    stored: Result<Option<StoredDocument>, StorageError>,
) -> Result<Option<LoadedDocument>, LoadError> {
    let Some(kept) = stored? else { return Ok(None) };
    let (environment, _) = compile(&kept.document)?;
    Ok(Some(LoadedDocument {
        environment: Arc::new(environment),
        validators: kept.validators,
        digest: kept.digest,
        bytes: kept.document.len(),
        saved_at: kept.saved_at,
    }))
}

fn run(
    job: RefreshJob,
    seen: &mut Option<FileVersion>,
    delta: &mut DeltaOutcome,
    upstream: &Upstream,
    compilers: &impl CompileExecutor,
    tracer: &Tracer,
) -> Result<Polled, PollError> {
    let mut edited_at = None;
    let is_polled = matches!(job.source, RefreshSource::Upstream { .. });
    let fetched = match job.source {
        RefreshSource::Upstream { key, validators, accepts_delta } => {
            let current = job.current.as_ref().filter(|_| accepts_delta);
            let known = KnownDocument {
                validators: validators.as_ref(),
                digest: job.digest.as_ref(),
                dictionary: current.and_then(|current| current.dictionary()),
            };
            match upstream.document(key.expose(), known, delta)? {
                DocumentResponse::Same(validators) => return Ok(Polled::Same(Some(validators))),
                DocumentResponse::New(fetched) => fetched,
            }
        }
        RefreshSource::File { path, seen: before, failed, bytes_max } => {
            *seen = FileVersion::of_settled(&path, clock::wall());
            if seen.is_some() && *seen == before {
                return failed.map_or(Ok(Polled::Same(None)), Err);
            }
            // An edited file seldom has a new `updated_at`, but browser SDKs fetch again only if it changes.
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
    // Those of a file are the author's, and another proxy has kept them already.
    let keeps_uuids = is_polled && !fetched.validators.offers_deltas;
    let label = job.label;
    let compile = move |span: &ActiveSpan| {
        span.set("edge_proxy.environment", || Secret::new(&*label).to_string());
        span.set("edge_proxy.document.bytes", || bytes as u64);
        let compiled = compile_timed(fetched, edited_at, job.current, keeps_uuids, job.is_stored);
        if let Err(error) = &compiled {
            span.fail(error.kind.name(), &error.message);
        }
        compiled
    };
    // The compilation of a polled document is a part of its poll.
    let (poll, tracer) = (is_polled.then(tracer::current), tracer.clone());
    let compile = move || match poll {
        Some(poll) => poll.child("compile", SpanKind::Internal, compile),
        None => tracer.trace("compile", compile),
    };
    let task = move || drop(sender.send(compile()));
    compilers.execute(bytes, Box::new(task)).map_err(|error| {
        PollError::new(PollErrorKind::Internal, format!("failed to start a thread to compile with: {error}"))
    })?;
    // A task that panicked dropped its sender.
    compiled.recv().unwrap_or_else(|_| Err(defect())).map(|compiled| Polled::New(Box::new(compiled)))
}

fn defect() -> PollError {
    let message = "the refresh panicked, which is a bug in this proxy; the current document stays in use";
    PollError::new(PollErrorKind::Internal, message)
}

fn compile_timed(
    fetched: Fetched,
    edited_at: Option<f64>,
    current: Option<Arc<Environment>>,
    keeps_uuids: bool,
    is_stored: bool,
) -> Result<Compiled, PollError> {
    let started = Instant::now();
    let document_bytes = fetched.document.len();
    let before = current.as_deref().map(|environment| Predecessor { environment, keeps_uuids });
    let (compiled, document) = match is_stored {
        true => (compile_after(&fetched.document, before)?, Some(fetched.document)),
        false => (compile_after(fetched.document, before)?, None),
    };
    let (environment, warnings) = compiled;
    Ok(Compiled {
        took: started.elapsed(),
        environment: Arc::new(environment),
        edited_at,
        warnings,
        validators: fetched.validators,
        digest: fetched.digest,
        document,
        document_bytes,
    })
}

/// Validates and compiles a document.
///
/// # Errors
/// The document is invalid; the message names the path of the invalid value.
pub fn compile<'a>(
    document: impl Into<Cow<'a, [u8]>>,
) -> Result<(Environment, Vec<CompileWarning>), PollError> {
    compile_after(document, None)
}

fn compile_after<'a>(
    document: impl Into<Cow<'a, [u8]>>,
    before: Option<Predecessor<'_>>,
) -> Result<(Environment, Vec<CompileWarning>), PollError> {
    let document = document.into();
    let ends_well = document.trim_ascii_end().ends_with(b"}");
    Environment::compile_after(document, before).map_err(|error| {
        let path = shorten(&error.path);
        let cut = if ends_well { "" } else { "; it does not end with \"}\": it may be truncated" };
        let message = format!("not an environment document: {path}: {}{cut}", error.message);
        PollError::new(PollErrorKind::Document, message)
    })
}

/// Shortens a path in the middle: in a hostile document it can be as long as the document.
fn shorten(path: &str) -> Cow<'_, str> {
    let count = path.chars().count();
    if count <= PATH_CHARS_MAX {
        return path.into();
    }
    let head: String = path.chars().take(PATH_CHARS_MAX / 2).collect();
    let tail: String = path.chars().skip(count - PATH_CHARS_MAX / 2).collect();
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
            std::io::ErrorKind::FileTooLarge => "raise api_document_bytes_max if the size is expected",
            _ => "check the path and its permissions",
        };
        PollError::new(PollErrorKind::File, format!("{}: {error}: {advice}", path.display()))
    })?;
    Ok(fetched(document))
}
