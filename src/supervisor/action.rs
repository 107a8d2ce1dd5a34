//! What the state machine decides to do. The run loop applies actions in order.
use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

use crate::analytics::batch::ReportKind;
use crate::analytics::upload::PendingBatch;
use crate::channel::ReactorMessage;
use crate::config::{Config, ConfigWarning, Level, TlsConfig};
use crate::storage::{RecordChange, StoredDocument};
use crate::supervisor::refresh::{EnvironmentId, RefreshJob};
use crate::upstream::Upstream;

/// How the supervisor ends: after a graceful shutdown, or because no reactor is left.
pub type SupervisorResult = Result<(), &'static str>;

/// One side effect.
#[derive(Debug)]
pub enum Action {
    Log {
        level: Level,
        event: &'static str,
        fields: Vec<(&'static str, String)>,
    },
    LogConfigWarning(ConfigWarning),
    SetLogLevel(Level),
    /// Open the access log file again.
    ReopenAccessLog,
    /// Fetch and compile a document in the pool; ends in `Event::Refreshed`.
    Refresh(RefreshJob),
    /// Fetch the list of environments in the pool; ends in `Event::Discovered`.
    Discover,
    /// Post counts in the pool; ends in `Event::Uploaded` or `Event::UploadNotStarted`.
    Upload {
        kind: ReportKind,
        waiting: Vec<PendingBatch>,
    },
    /// Post counts before the process ends: blocks the loop until then. Ends in `Event::Uploaded`.
    UploadLast {
        kind: ReportKind,
        waiting: Vec<PendingBatch>,
        until: Instant,
    },
    /// Forward stored events in the pool, at most until then; ends in `Event::EventsForwarded` or
    /// `Event::ForwardingNotStarted`.
    ForwardEvents {
        until: Option<Instant>,
    },
    /// Read the stored document of an environment; ends in `Event::DocumentLoaded`.
    LoadDocument {
        id: EnvironmentId,
        client_side_key: String,
    },
    /// Read the stored discovery response; ends in `Event::DiscoveryLoaded`.
    LoadDiscovery,
    Store {
        name: String,
        kept: StoredDocument,
    },
    /// As `Store`, unless the stored content is the same.
    StoreIfChanged {
        name: &'static str,
        kept: StoredDocument,
    },
    /// Change which uploads are stored.
    StoreBatches {
        kind: ReportKind,
        change: RecordChange,
    },
    /// Send a message to every reactor.
    Send(ReactorMessage),
    /// Open an environment's event stream; may end in `Event::StreamFailed`.
    OpenStream {
        id: EnvironmentId,
        client_side_key: String,
    },
    CloseStream(EnvironmentId),
    /// Delete the metrics of an environment that is no longer served.
    RemoveMetrics(String),
    /// Look at the files of the configuration; ends in `Event::ConfigFiles`.
    CheckConfigFiles,
    /// Read the configuration; ends in `Event::ConfigRead`. Documents of `current` may be missing on disk.
    ReadConfig {
        current: Arc<Config>,
        is_requested: bool,
    },
    /// Use this client for all later requests to upstream.
    UseUpstream(Arc<Upstream>),
    /// Read the certificates if their files changed, or in any case from `reload_from`. Ends in
    /// `Event::CertificatesRead` if they were read.
    CheckCertificates {
        reload_from: Option<TlsConfig>,
    },
    /// Send `STOPPING=1` to the service manager.
    NotifyStopping,
    /// Wait until stored files are on disk, within a limit.
    FlushStorage,
    Exit(SupervisorResult),
}

/// The actions of one event, in order.
#[derive(Debug, Default)]
pub struct Actions(Vec<Action>);

impl Actions {
    pub fn push(&mut self, action: Action) {
        self.0.push(action);
    }

    pub fn log(&mut self, level: Level, event: &'static str, fields: &[(&'static str, &dyn Display)]) {
        let fields = fields.iter().map(|(name, value)| (*name, value.to_string())).collect();
        self.push(Action::Log { level, event, fields });
    }

    pub fn into_vec(self) -> Vec<Action> {
        self.0
    }
}
