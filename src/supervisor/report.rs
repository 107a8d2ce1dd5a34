//! Counts going up: evaluations that SDKs reported, and usage for upstream's books.
//!
//! In: counts from the reactors. Out: parcels, posted each interval. Invariants: a parcel is never changed
//! once it was tried, and carries a key by which upstream can tell a repetition; while one of an
//! environment waits nothing more is packed for it, so that what waits has a bound; what was not
//! accepted is kept, over restarts in `cache_dir`; what is lost is counted and logged.
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::poll::{PollError, PollErrorKind, Sent, Upstream, Validators};
use super::schedule::{Retry, Schedule, jitter};
use super::store::{Kept, Store};
use crate::counts::{Counts, Evaluation, Labels};
use crate::encode::hex::hex;
use crate::limits;

/// What is reported. Each kind has its own outbox and interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Analytics,
    Usage,
}

impl Kind {
    /// For the log.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Analytics => "analytics",
            Kind::Usage => "usage",
        }
    }

    /// The name under which parcels are kept. No client-side key has a slash.
    fn kept_as(self) -> &'static str {
        match self {
            Kind::Analytics => "analytics/flags/",
            Kind::Usage => "proxy/usage/",
        }
    }
}

/// One request to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parcel {
    path: String,
    idempotency_key: String,
    /// Empty for usage, which is of all environments together.
    client_side_key: String,
    labels: Labels,
    body: String,
    count: u64,
}

/// The parcels that an earlier process kept on disk.
///
/// # Errors
/// The file cannot be used; one line that says why.
pub fn load(kind: Kind, store: &Store) -> Result<Vec<Parcel>, String> {
    let Some(kept) = store.load(kind.kept_as())? else { return Ok(Vec::new()) };
    serde_json::from_slice(&kept.document)
        .map_err(|error| format!("pending counts are not readable: {error}"))
}

/// What came of sending parcels.
#[derive(Debug)]
pub struct Posted {
    pub kind: Kind,
    pub started: Instant,
    /// To be tried again.
    kept: Vec<Parcel>,
    pub sent: u64,
    /// Refused for good, and why.
    pub lost: u64,
    pub refused: Option<String>,
    pub failure: Option<PollError>,
}

impl Posted {
    /// All of it lost.
    pub fn lost(kind: Kind, parcels: &[Parcel], why: &str) -> Self {
        let lost = parcels.iter().map(|parcel| parcel.count).sum();
        let started = Instant::now();
        Self { kind, started, kept: Vec::new(), sent: 0, lost, refused: Some(why.into()), failure: None }
    }
}

/// What waits to be reported, of one kind.
#[derive(Debug)]
pub struct Outbox {
    kind: Kind,
    schedule: Schedule,
    parcels: Vec<Parcel>,
    in_flight: bool,
    failure: Option<PollErrorKind>,
    is_on_disk: bool,
}

impl Outbox {
    /// With the parcels that were kept on disk ([`load`]).
    pub fn new(kind: Kind, interval: Duration, parcels: Vec<Parcel>, now: Instant) -> Self {
        let mut schedule = Schedule::new(interval, now);
        if parcels.is_empty() {
            schedule.succeeded(now, now, jitter());
        }
        Self { kind, schedule, is_on_disk: !parcels.is_empty(), parcels, in_flight: false, failure: None }
    }

    pub fn set_interval(&mut self, interval: Duration, now: Instant) {
        self.schedule.set_interval(interval, now);
    }

    pub fn due(&self) -> Option<Instant> {
        (!self.in_flight).then(|| self.schedule.due())
    }

    /// How many counts wait in parcels.
    pub fn count(&self) -> u64 {
        self.parcels.iter().map(|parcel| parcel.count).sum()
    }

    /// Packs what may be packed of `counts` and hands all that waits to be sent. `None` if there is
    /// nothing, or it is not yet time.
    pub fn send(&mut self, counts: &mut Counts, now: Instant) -> Option<Vec<Parcel>> {
        if self.due().is_none_or(|due| due > now) {
            return None;
        }
        let waiting: Vec<String> = self.parcels.iter().map(|parcel| parcel.client_side_key.clone()).collect();
        self.pack(counts, |key| !waiting.iter().any(|waiting| waiting == key));
        if self.parcels.is_empty() {
            self.schedule.succeeded(now, now, jitter());
            return None;
        }
        self.in_flight = true;
        Some(std::mem::take(&mut self.parcels))
    }

    /// Packs everything, as a process that ends does.
    pub fn send_last(&mut self, counts: &mut Counts) -> Vec<Parcel> {
        self.pack(counts, |_| true);
        std::mem::take(&mut self.parcels)
    }

    fn pack(&mut self, counts: &mut Counts, is_free: impl Fn(&str) -> bool) {
        match self.kind {
            Kind::Analytics => self.parcels.extend(pack_evaluations(counts, is_free)),
            Kind::Usage if is_free("") => self.parcels.extend(pack_usage(counts)),
            Kind::Usage => {}
        }
    }

    /// Takes back what was not accepted. True if the failure is a new one or is over.
    pub fn posted(&mut self, posted: &mut Posted, now: Instant) -> bool {
        self.in_flight = false;
        self.parcels = std::mem::take(&mut posted.kept);
        match &posted.failure {
            Some(failure) => {
                let retry = Retry::Held(limits::RETRY_AFTER_HELD_MAX);
                self.schedule.failed(now, retry, failure.retry_after, jitter());
            }
            None => self.schedule.succeeded(posted.started, now, jitter()),
        }
        let kind = posted.failure.as_ref().map(|failure| failure.kind);
        std::mem::replace(&mut self.failure, kind) != kind
    }

    /// Brings the disk to what is in memory: after each try, and at the end.
    pub fn keep(&mut self, store: Option<&Store>) {
        let Some(store) = store else { return };
        if self.parcels.is_empty() {
            if std::mem::take(&mut self.is_on_disk) {
                store.remove(self.kind.kept_as());
            }
            return;
        }
        let Ok(document) = serde_json::to_vec(&self.parcels) else { return };
        let digest = Sha256::digest(&document).into();
        let validators = Validators::default();
        store.keep(self.kind.kept_as(), Kept { document, validators, digest, saved_at: SystemTime::now() });
        self.is_on_disk = true;
    }
}

type Rows = Vec<(Evaluation, u64)>;

/// One parcel for each environment, set of labels and version of the endpoint.
fn pack_evaluations(counts: &mut Counts, is_free: impl Fn(&str) -> bool) -> Vec<Parcel> {
    let mut groups: BTreeMap<(Box<str>, Labels, bool), Rows> = BTreeMap::new();
    for (row, count) in counts.evaluations.extract_if(|row, _| is_free(&row.client_side_key)) {
        let group = (row.client_side_key.clone(), row.labels.clone(), row.detail.is_some());
        groups.entry(group).or_default().push((row, count));
    }
    let mut parcels = Vec::with_capacity(groups.len());
    for ((client_side_key, labels, is_detailed), mut rows) in groups {
        rows.sort_unstable();
        let count = rows.iter().map(|(_, count)| count).sum();
        let (path, body) = match is_detailed {
            true => ("../v2/analytics/flags/", detailed(&rows)),
            false => {
                let sums: BTreeMap<&str, u64> =
                    rows.iter().map(|(row, count)| (&*row.feature, *count)).collect();
                ("analytics/flags/", json!(sums))
            }
        };
        let client_side_key = client_side_key.into_string();
        parcels.push(parcel(path, client_side_key, labels, &body, count));
    }
    parcels
}

fn detailed(rows: &[(Evaluation, u64)]) -> Value {
    let rows = rows.iter().filter_map(|(row, count)| {
        let detail = row.detail.as_ref()?;
        let mut written = json!({
            "feature_name": row.feature,
            "enabled_when_evaluated": detail.is_enabled,
            "count": count,
        });
        if let Some(identifier) = &detail.identifier {
            written["identity_identifier"] = json!(identifier);
        }
        Some(written)
    });
    json!({ "evaluations": rows.collect::<Vec<_>>() })
}

/// Parcels of at most as many rows as upstream takes (compatibility.md 4.3).
fn pack_usage(counts: &mut Counts) -> Vec<Parcel> {
    let mut rows: Vec<_> = std::mem::take(&mut counts.usage).into_iter().collect();
    rows.sort_unstable();
    let pack = |rows: &[((Box<str>, crate::counts::Resource), u64)]| {
        let count = rows.iter().map(|(_, count)| count).sum();
        let rows: Vec<Value> = rows
            .iter()
            .map(|((key, resource), count)| {
                json!({"client_side_key": key, "resource": resource.name(), "count": count})
            })
            .collect();
        parcel("proxy/usage/", String::new(), Labels::default(), &json!(rows), count)
    };
    rows.chunks(limits::USAGE_ROWS_MAX).map(pack).collect()
}

fn parcel(path: &str, client_side_key: String, labels: Labels, body: &Value, count: u64) -> Parcel {
    let idempotency_key = uuid();
    Parcel { path: path.into(), idempotency_key, client_side_key, labels, body: body.to_string(), count }
}

/// A random UUID (RFC 9562 5.4).
fn uuid() -> String {
    let mut bytes = [0; 16];
    // Without randomness the key only fails to tell repetitions apart.
    let _ = getrandom::fill(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let parts = [&bytes[..4], &bytes[4..6], &bytes[6..8], &bytes[8..10], &bytes[10..]];
    parts.map(hex).join("-")
}

/// Posts parcels one after another, until upstream cannot be reached or `until` is over.
pub fn post(upstream: &Upstream, kind: Kind, parcels: Vec<Parcel>, until: Option<Instant>) -> Posted {
    let started = Instant::now();
    let mut posted =
        Posted { kind, started, kept: Vec::new(), sent: 0, lost: 0, refused: None, failure: None };
    for parcel in parcels {
        let is_unreachable =
            posted.failure.as_ref().is_some_and(|failure| !matches!(failure.kind, PollErrorKind::Status(_)));
        if is_unreachable || until.is_some_and(|until| Instant::now() >= until) {
            posted.kept.push(parcel);
            continue;
        }
        match upstream.post(&parcel.path, &fields(&parcel), &parcel.idempotency_key, parcel.body.as_bytes()) {
            Sent::Accepted => posted.sent += parcel.count,
            Sent::Refused(why) => {
                posted.lost += parcel.count;
                posted.refused = Some(why);
            }
            Sent::Failed(failure) => {
                posted.failure = Some(failure);
                posted.kept.push(parcel);
            }
        }
    }
    posted
}

/// The headers that the SDK sent, as far as they are headers.
fn fields(parcel: &Parcel) -> Vec<(&str, &str)> {
    let labels = &parcel.labels;
    let fields = [
        ("x-environment-key", parcel.client_side_key.as_str()),
        ("flagsmith-application-name", &labels.application_name),
        ("flagsmith-application-version", &labels.application_version),
        ("user-agent", &labels.user_agent),
        ("flagsmith-sdk-user-agent", &labels.sdk_user_agent),
    ];
    let is_field = |value: &str| !value.is_empty() && http::HeaderValue::from_str(value).is_ok();
    fields.into_iter().filter(|(_, value)| is_field(value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counts::{Detail, Resource};

    fn evaluation(key: &str, feature: &str, name: &str, detail: Option<Detail>) -> Evaluation {
        let labels = Labels { application_name: name.into(), ..Labels::default() };
        Evaluation { client_side_key: key.into(), labels, feature: feature.into(), detail }
    }

    fn outbox(kind: Kind) -> (Outbox, Instant) {
        let now = Instant::now();
        let outbox = Outbox::new(kind, Duration::from_secs(10), Vec::new(), now);
        assert!(outbox.due().unwrap() > now, "nothing is due at the start");
        (outbox, now + Duration::from_secs(20))
    }

    fn all(counts: &Counts, parcels: &[Parcel]) -> u64 {
        counts.evaluations.values().sum::<u64>() + parcels.iter().map(|parcel| parcel.count).sum::<u64>()
    }

    #[test]
    fn environments_labels_and_versions_travel_apart() {
        let (mut outbox, later) = outbox(Kind::Analytics);
        let mut counts = Counts::default();
        let detail = |identifier: Option<&str>| {
            Some(Detail { identifier: identifier.map(Into::into), is_enabled: true })
        };
        counts.evaluated(evaluation("a", "f", "", None), 2);
        counts.evaluated(evaluation("a", "g", "", None), 3);
        counts.evaluated(evaluation("a", "f", "shop", None), 4);
        counts.evaluated(evaluation("a", "f", "", detail(Some("i"))), 5);
        counts.evaluated(evaluation("a", "f", "", detail(None)), 6);
        counts.evaluated(evaluation("b", "f", "", None), 7);
        assert_eq!(outbox.send(&mut counts, later - Duration::from_secs(20)), None, "before its time");
        let parcels = outbox.send(&mut counts, later).unwrap();
        let shown: Vec<_> = parcels
            .iter()
            .map(|p| {
                format!(
                    "{} {} {} {} {}",
                    p.path, p.client_side_key, p.labels.application_name, p.count, p.body
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                r#"analytics/flags/ a  5 {"f":2,"g":3}"#,
                r#"../v2/analytics/flags/ a  11 {"evaluations":[{"count":6,"enabled_when_evaluated":true,"feature_name":"f"},{"count":5,"enabled_when_evaluated":true,"feature_name":"f","identity_identifier":"i"}]}"#,
                r#"analytics/flags/ a shop 4 {"f":4}"#,
                r#"analytics/flags/ b  7 {"f":7}"#,
            ]
        );
        assert!(counts.is_empty());
    }

    #[test]
    fn while_a_parcel_waits_its_environment_packs_no_more_and_others_do() {
        let (mut outbox, later) = outbox(Kind::Analytics);
        let mut counts = Counts::default();
        counts.evaluated(evaluation("a", "f", "", None), 1);
        let parcels = outbox.send(&mut counts, later).unwrap();
        assert_eq!(outbox.send(&mut counts, later), None, "one request at a time");
        let failure = Some(PollError::new(PollErrorKind::Status(503), "x"));
        let mut posted = Posted {
            kind: Kind::Analytics,
            started: later,
            kept: parcels.clone(),
            sent: 0,
            lost: 0,
            refused: None,
            failure,
        };
        assert!(outbox.posted(&mut posted, later));
        counts.evaluated(evaluation("a", "f", "", None), 2);
        counts.evaluated(evaluation("b", "f", "", None), 4);
        assert_eq!(outbox.send(&mut counts, later), None, "it backs off");
        let sent = outbox.send(&mut counts, later + Duration::from_secs(60)).unwrap();
        assert_eq!(sent[0], parcels[0], "the same parcel with the same key");
        assert_eq!((sent.len(), &*sent[1].client_side_key), (2, "b"));
        assert_eq!(all(&counts, &sent), 7);
        let last = outbox.send_last(&mut counts);
        assert_eq!(all(&counts, &last), 2);
    }

    #[test]
    fn usage_goes_in_parcels_of_a_thousand_rows() {
        let (mut outbox, later) = outbox(Kind::Usage);
        let mut counts = Counts::default();
        for slot in 0..1001 {
            counts.used(slot, Resource::Flags);
        }
        let keys: Vec<String> = (0..1001).map(|slot| format!("key-{slot:04}")).collect();
        counts.settle(|slot| keys.get(slot).map(String::as_str));
        let parcels = outbox.send(&mut counts, later).unwrap();
        let rows: Vec<Vec<Value>> = parcels.iter().map(|p| serde_json::from_str(&p.body).unwrap()).collect();
        assert_eq!((rows[0].len(), rows[1].len()), (1000, 1));
        assert_eq!(rows[0][0], json!({"client_side_key": "key-0000", "resource": "flags", "count": 1}));
        assert_ne!(parcels[0].idempotency_key, parcels[1].idempotency_key);
        assert_eq!(parcels[0].idempotency_key.len(), 36);
    }

    #[test]
    fn a_label_that_is_no_header_is_left_out() {
        let mut labelled = parcel("p", "key".into(), Labels::default(), &json!({}), 0);
        labelled.labels.application_name = "a\nb".into();
        labelled.labels.user_agent = "sdk/1".into();
        assert_eq!(fields(&labelled), [("x-environment-key", "key"), ("user-agent", "sdk/1")]);
    }

    #[test]
    fn an_upload_waits_a_minute_at_most_whatever_upstream_asks_for() {
        let now = Instant::now();
        let interval = Duration::from_secs(10);
        let wait = |retry_after: Option<u64>| {
            let mut outbox = Outbox::new(Kind::Analytics, interval, Vec::new(), now);
            let mut posted = Posted::lost(Kind::Analytics, &[], "");
            let failure = PollError::new(PollErrorKind::Status(503), "down");
            posted.failure = Some(PollError { retry_after: retry_after.map(Duration::from_secs), ..failure });
            assert!(outbox.posted(&mut posted, now));
            outbox.due().unwrap() - now
        };
        assert_eq!(wait(Some(120)), Duration::from_secs(60));
        assert_eq!(wait(Some(30)), Duration::from_secs(30));
        let first = wait(None);
        assert!((0.8..=1.0).contains(&first.as_secs_f64()), "{first:?}");
    }
}
