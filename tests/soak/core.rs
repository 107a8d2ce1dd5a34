//! Flagsmith's API as the run plays it: a new revision of every document each second, and faults.
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::documents::{ADDED, ENVIRONMENTS, FIRST_MODIFIED, Template};
use crate::support::{Delivery, Recorded, Reply, Upstream};

/// A served document is older by at most this many revisions, of one second each: the longest fault, and the
/// longest wait between two polls after it.
const STALE_MAX: u32 = 60;

/// Its name, and what upstream answers instead of a document.
pub type Fault = (&'static str, fn() -> Reply);

pub const FAULTS: [Fault; 15] = [
    ("reset in the body", || whole().delivered(Delivery::ResetAfter(100))),
    ("end in the body", || whole().delivered(Delivery::EndAfter(100))),
    ("not HTTP", || Reply::json("SSH-2.0-OpenSSH_9.6\r\n").delivered(Delivery::Raw)),
    ("hang before the head", || whole().delivered(Delivery::HangBeforeHead)),
    ("hang in the body", || whole().delivered(Delivery::HangAfter(100))),
    ("slow drip in the body", || whole().delivered(Delivery::Drip(1, Duration::from_millis(100)))),
    ("redirect to itself", || Reply::redirect(302, "/api/v1/environment-document/")),
    ("401", || Reply::new(401, r#"{"detail":"no"}"#)),
    ("403", || Reply::new(403, r#"{"detail":"Invalid or missing Environment Key"}"#)),
    ("404", || Reply::new(404, "<h1>Not Found</h1>")),
    ("429 with Retry-After: 2", || Reply::new(429, "").with("retry-after", "2")),
    ("500", || Reply::new(500, "")),
    ("503 with Retry-After: 1", || Reply::new(503, "").with("retry-after", "1")),
    ("HTML", || Reply::json("<html></html>")),
    ("no environment", || Reply::json(r#"{"id": 1}"#)),
];

/// A document that no environment of the run may serve. Only faults that cut it off may use it: a whole one is
/// served, since upstream decides by the key which document is that of an environment.
fn whole() -> Reply {
    Reply::json(Template::new("foreign").revision(0))
}

pub struct Core {
    pub upstream: Upstream,
    templates: Vec<(String, Template)>,
    published: Arc<Mutex<Published>>,
    revision: AtomicU32,
}

#[derive(Default)]
struct Published {
    revision: u32,
    /// Server-side keys and their documents.
    documents: Vec<(String, Reply)>,
    fault: Option<Reply>,
}

impl Core {
    pub fn start() -> Self {
        let upstream = Upstream::start();
        let published: Arc<Mutex<Published>> = Arc::default();
        let shared = Arc::clone(&published);
        upstream.rule(move |request| Some(answer(request, &lock(&shared))));
        let keys = ENVIRONMENTS.iter().chain([&ADDED]);
        let templates = keys.map(|(client, server)| ((*server).to_owned(), Template::new(client))).collect();
        let core = Self { upstream, templates, published, revision: AtomicU32::new(0) };
        core.publish();
        core
    }

    /// Publishes the next revision of every document.
    pub fn publish(&self) {
        let revision = self.revision.fetch_add(1, Ordering::Relaxed) + 1;
        let documents = self.templates.iter();
        let documents = documents
            .map(|(key, template)| (key.clone(), Reply::json(template.revision(revision))))
            .collect();
        let mut published = lock(&self.published);
        published.revision = revision;
        published.documents = documents;
    }

    /// The newest revision.
    pub fn revision(&self) -> u32 {
        self.revision.load(Ordering::Relaxed)
    }

    /// The oldest revision that may still be served.
    pub fn oldest_served(&self) -> u32 {
        self.revision().saturating_sub(STALE_MAX)
    }

    /// Answers document requests with this fault, or closes and refuses connections without one.
    pub fn fail(&self, fault: Option<fn() -> Reply>) {
        match fault {
            Some(reply) => lock(&self.published).fault = Some(reply()),
            None => self.upstream.refuse(),
        }
    }

    /// Ends the fault. Connections are closed, since the harness keeps a descriptor of each until then.
    pub fn recover(&self) {
        lock(&self.published).fault = None;
        self.upstream.close_connections();
        self.upstream.listen_if_not();
        self.upstream.forget_requests();
    }
}

fn lock(published: &Mutex<Published>) -> MutexGuard<'_, Published> {
    published.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(request: &Recorded, published: &Published) -> Reply {
    if request.path() == "/v1/events" {
        return Reply::new(202, r#"{"accepted":1,"rejected":[]}"#);
    }
    if !request.path().ends_with("/environment-document/") {
        return Reply::json("{}");
    }
    if let Some(fault) = &published.fault {
        return fault.clone();
    }
    let Some((_, reply)) = published.documents.iter().find(|(key, _)| key == request.key()) else {
        return Reply::new(401, "{}");
    };
    let modified = httpdate::parse_http_date(FIRST_MODIFIED).expect("a date")
        + Duration::from_secs(published.revision.into());
    let since = request.header("if-modified-since").and_then(|text| httpdate::parse_http_date(text).ok());
    let is_known = since.is_some_and(|since: SystemTime| modified <= since);
    let reply = if is_known { Reply::new(304, "") } else { reply.clone() };
    reply.with("last-modified", &httpdate::fmt_http_date(modified))
}
