//! What happens to the supervisor: signals, results of actions, and the passing of time.
use std::sync::Arc;

use rustls::ServerConfig;

use crate::analytics::batch::ReportKind;
use crate::analytics::upload::RoundResult;
use crate::config::SettingError;
use crate::counts::Counts;
use crate::files::FileVersion;
use crate::forwarding::round::ForwardResult;
use crate::supervisor::config_file::{LoadedConfig, ReloadError};
use crate::supervisor::refresh::{EnvironmentId, LoadError, LoadedDocument, RefreshResult};
use crate::supervisor::signals::Signal;
use crate::upstream::{DiscoveredEnvironment, PollError};

/// The list of environments, and the response body it was parsed from.
pub type DiscoveryResult = Result<(Vec<DiscoveredEnvironment>, Vec<u8>), PollError>;

/// What wakes the state machine.
#[derive(Debug)]
pub enum Event {
    /// The first event.
    Started,
    /// Time passed; `reactors` are running. Sent after all other events that are due.
    Tick {
        reactors: usize,
    },
    Signal(Signal),
    /// `Ok(None)`: nothing is stored.
    DocumentLoaded {
        id: EnvironmentId,
        result: Result<Option<LoadedDocument>, LoadError>,
    },
    DiscoveryLoaded(Result<Option<Vec<DiscoveredEnvironment>>, LoadError>),
    Refreshed(RefreshResult),
    Discovered(DiscoveryResult),
    /// Counts of one reactor.
    Counted(Counts),
    Uploaded(RoundResult),
    /// No thread could be started for an upload.
    UploadNotStarted {
        kind: ReportKind,
        error: String,
    },
    EventsForwarded(ForwardResult),
    /// No thread could be started to forward events.
    ForwardingNotStarted(String),
    /// An event stream announced a document of this time.
    Announced {
        id: EnvironmentId,
        updated_at: f64,
    },
    /// No thread could be started for an event stream.
    StreamFailed {
        id: EnvironmentId,
        error: String,
    },
    /// `None`: missing, or written so recently that it may change again.
    ConfigFiles(Option<Vec<FileVersion>>),
    ConfigRead {
        is_requested: bool,
        result: Result<Box<LoadedConfig>, ReloadError>,
    },
    CertificatesRead(Result<Arc<ServerConfig>, SettingError>),
}
