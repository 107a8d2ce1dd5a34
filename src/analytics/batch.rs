//! Batches: the request bodies in which counts are uploaded and saved on disk.
//!
//! A batch is not changed after its first upload attempt. By its idempotency key upstream recognizes a
//! repeated upload. The halves of a batch have new keys, because upstream has rejected the whole batch.
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::counts::{AnalyticsVersion, Group, Labels, Resource, Rows};
use crate::json::hex::hex;
use crate::{clock, limits};

const VERSION_1: &str = "analytics/flags/";
const VERSION_2: &str = "../v2/analytics/flags/";
const USAGE: &str = "proxy/usage/";
/// The member with the rows, in a body of version 2.
const EVALUATIONS: &str = "evaluations";

/// The kind of counts. Each kind has its own outbox and interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportKind {
    /// Evaluations that SDKs report.
    Analytics,
    /// Requests to this proxy.
    Usage,
}

impl ReportKind {
    /// The name in the log.
    pub fn name(self) -> &'static str {
        match self {
            ReportKind::Analytics => "analytics",
            ReportKind::Usage => "usage",
        }
    }

    /// The name under which batches are saved. A client-side key contains no slash.
    pub fn storage_name(self) -> &'static str {
        match self {
            ReportKind::Analytics => "analytics/flags/",
            ReportKind::Usage => "proxy/usage/",
        }
    }
}

/// One upload. The names of the members are those of the files in `cache_dir`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UploadBatch {
    pub path: String,
    pub idempotency_key: String,
    /// Empty for usage, which is reported for all environments together.
    pub client_side_key: String,
    pub labels: Labels,
    pub body: String,
    pub count: u64,
}

/// The path for uploads of version 1, or of version 2 (detailed).
pub fn path_of(is_detailed: bool) -> &'static str {
    if is_detailed { VERSION_2 } else { VERSION_1 }
}

/// Writes a body of at most `limits::UPLOAD_BYTES_MAX` bytes.
struct BatchBuilder {
    open: &'static str,
    close: &'static str,
    body: String,
    count: u64,
}

impl BatchBuilder {
    fn fits(&self, row: &str) -> bool {
        self.body.len() + row.len() + 1 + self.close.len() <= limits::UPLOAD_BYTES_MAX
    }

    fn push(&mut self, row: &str, count: u64) {
        self.body.push_str(if self.body.is_empty() { self.open } else { "," });
        self.body.push_str(row);
        self.count += count;
    }

    /// Finishes the batch. `None` if it has no rows.
    fn finish(&mut self, group: &Group) -> Option<UploadBatch> {
        if self.body.is_empty() {
            return None;
        }
        let (mut body, count) = (std::mem::take(&mut self.body), std::mem::take(&mut self.count));
        body.push_str(self.close);
        let path = path_of(group.is_detailed);
        Some(UploadBatch::new(path, group.client_side_key.to_string(), group.labels.clone(), body, count))
    }
}

/// Packs a group into batches. Also returns the counts beyond `limits::COUNT_MAX`, for the next upload: core
/// rejects an upload with a count of more than 32 bits.
pub fn pack_evaluations(group: &Group) -> (Vec<UploadBatch>, Rows) {
    let (open, close) = if group.is_detailed { (r#"{"evaluations":["#, "]}") } else { ("{", "}") };
    let mut builder = BatchBuilder { open, close, body: String::new(), count: 0 };
    let (mut batches, mut rest) = (Vec::new(), Rows::new());
    for (evaluation, count) in &group.rows {
        let sent = (*count).min(limits::COUNT_MAX);
        if sent < *count {
            rest.push((evaluation.clone(), count - sent));
        }
        let row = match evaluation.version {
            AnalyticsVersion::One => format!("{}:{sent}", Value::from(&*evaluation.feature)),
            AnalyticsVersion::Two { is_enabled } => {
                detailed(&evaluation.feature, is_enabled, evaluation.identifier.as_deref(), sent)
            }
        };
        if !builder.fits(&row) {
            batches.extend(builder.finish(group));
        }
        builder.push(&row, sent);
    }
    batches.extend(builder.finish(group));
    (batches, rest)
}

fn detailed(feature: &str, is_enabled: bool, identifier: Option<&str>, count: u64) -> String {
    let mut row = json!({ "feature_name": feature, "enabled_when_evaluated": is_enabled, "count": count });
    if let Some(identifier) = identifier {
        row["identity_identifier"] = json!(identifier);
    }
    row.to_string()
}

/// Packs usage into batches of at most `USAGE_ROWS_MAX` rows, which is what upstream accepts
/// (compatibility.md 4.3).
pub fn pack_usage(mut rows: Vec<((Box<str>, Resource), u64)>) -> Vec<UploadBatch> {
    rows.sort_unstable();
    let pack = |rows: &[((Box<str>, Resource), u64)]| {
        let count = rows.iter().map(|(_, count)| count).sum();
        let rows: Vec<Value> = rows
            .iter()
            .map(|((key, resource), count)| {
                json!({"client_side_key": key, "resource": resource.name(), "count": count})
            })
            .collect();
        UploadBatch::new(USAGE, String::new(), Labels::default(), json!(rows).to_string(), count)
    };
    rows.chunks(limits::USAGE_ROWS_MAX).map(pack).collect()
}

impl UploadBatch {
    pub fn new(path: &str, client_side_key: String, labels: Labels, body: String, count: u64) -> Self {
        Self { path: path.into(), idempotency_key: uuid(), client_side_key, labels, body, count }
    }

    /// Two batches with half of the rows each; `None` if there is only one row.
    pub fn halves(&self) -> Option<[Self; 2]> {
        let make = |body: Value| {
            let count = count_of(&body);
            Self::new(&self.path, self.client_side_key.clone(), self.labels.clone(), body.to_string(), count)
        };
        match serde_json::from_str(&self.body).ok()? {
            Value::Object(mut body) if self.path == VERSION_2 => {
                let Some(Value::Array(rows)) = body.remove(EVALUATIONS) else { return None };
                let wrap = |rows: Vec<Value>| make(json!({ EVALUATIONS: rows }));
                split_rows(rows).map(|halves| halves.map(wrap))
            }
            Value::Object(body) => {
                let wrap = |rows: Vec<(String, Value)>| make(Value::Object(Map::from_iter(rows)));
                split_rows(body.into_iter().collect()).map(|halves| halves.map(wrap))
            }
            Value::Array(rows) => split_rows(rows).map(|halves| halves.map(|rows| make(Value::Array(rows)))),
            _ => None,
        }
    }

    /// The header fields of the upload. Labels that are not valid field values are omitted.
    pub fn fields(&self) -> Vec<(&str, &str)> {
        let labels = &self.labels;
        let fields = [
            ("x-environment-key", self.client_side_key.as_str()),
            ("flagsmith-application-name", &labels.application_name),
            ("flagsmith-application-version", &labels.application_version),
            ("user-agent", &labels.user_agent),
            ("flagsmith-sdk-user-agent", &labels.sdk_user_agent),
        ];
        let is_field = |value: &str| !value.is_empty() && http::HeaderValue::from_str(value).is_ok();
        fields.into_iter().filter(|(_, value)| is_field(value)).collect()
    }
}

fn split_rows<T>(mut rows: Vec<T>) -> Option<[Vec<T>; 2]> {
    let middle = rows.len().div_ceil(2);
    let rest = rows.split_off(middle);
    (!rest.is_empty()).then_some([rows, rest])
}

/// The sum of all counts of a body.
fn count_of(body: &Value) -> u64 {
    let counts = |rows: &[Value]| rows.iter().filter_map(|row| row["count"].as_u64()).sum();
    match body {
        Value::Array(rows) => counts(rows),
        Value::Object(members) => match members.get(EVALUATIONS) {
            Some(Value::Array(rows)) => counts(rows),
            _ => members.values().filter_map(Value::as_u64).sum(),
        },
        _ => 0,
    }
}

/// A random UUID (RFC 9562 5.4).
fn uuid() -> String {
    // If this fails, keys are not unique, and upstream may take an upload for a repeated one.
    let mut bytes = clock::random_bytes().unwrap_or_default();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let parts = [&bytes[..4], &bytes[4..6], &bytes[6..8], &bytes[8..10], &bytes[10..]];
    parts.map(hex).join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counts::{Counts, Evaluation};

    fn group(is_detailed: bool, rows: Rows) -> Group {
        Group { client_side_key: "key".into(), labels: Labels::default(), is_detailed, rows }
    }

    fn one(feature: &str, count: u64) -> (Evaluation, u64) {
        (Evaluation { feature: feature.into(), version: AnalyticsVersion::One, identifier: None }, count)
    }

    fn two(feature: &str, identifier: &str, count: u64) -> (Evaluation, u64) {
        let version = AnalyticsVersion::Two { is_enabled: true };
        (Evaluation { feature: feature.into(), version, identifier: Some(identifier.into()) }, count)
    }

    #[test]
    fn escaping_does_not_make_a_batch_exceed_the_limit() {
        // A control character takes six bytes in JSON.
        let identifier = |number: usize| format!("{number}{}", "\u{1}".repeat(1990));
        let rows: Rows = (0..500).map(|number| two("f", &identifier(number), 1)).collect();
        let (batches, rest) = pack_evaluations(&group(true, rows));
        assert_eq!((batches.len(), rest.len()), (7, 0));
        assert_eq!(batches.iter().map(|batch| batch.count).sum::<u64>(), 500);
        for batch in &batches {
            assert!(batch.body.len() <= limits::UPLOAD_BYTES_MAX, "{}", batch.body.len());
            let body: Value = serde_json::from_str(&batch.body).unwrap();
            assert_eq!(count_of(&body), batch.count);
        }
    }

    #[test]
    fn counts_beyond_32_bits_are_left_for_the_next_upload() {
        let rows = vec![one("a", 2 * limits::COUNT_MAX + 5), one("b", 1)];
        let (batches, rest) = pack_evaluations(&group(false, rows));
        assert_eq!((batches.len(), &*batches[0].body), (1, r#"{"a":2147483647,"b":1}"#));
        assert_eq!(rest, [one("a", limits::COUNT_MAX + 5)]);
        let (batches, rest) = pack_evaluations(&group(true, vec![two("a", "i", u64::MAX)]));
        assert_eq!((batches.len(), batches[0].count), (1, limits::COUNT_MAX));
        assert_eq!(rest, [two("a", "i", u64::MAX - limits::COUNT_MAX)]);
    }

    #[test]
    fn halving_down_to_single_rows_loses_no_count() {
        let mut counts = Counts::default();
        let keys: Vec<String> = (0..5).map(|slot| format!("key-{slot}")).collect();
        (0..5).for_each(|slot| counts.used(slot, Resource::Flags));
        counts.settle(|slot| keys.get(slot).map(String::as_str));
        let usage = pack_usage(std::mem::take(&mut counts.usage).into_iter().collect());
        let features: Vec<String> = (0..5).map(|number| format!("f{number}")).collect();
        let plain = group(false, features.iter().map(|feature| one(feature, 1)).collect());
        let detailed = group(true, features.iter().map(|feature| two(feature, "i", 1)).collect());
        for batch in [&usage[0], &pack_evaluations(&plain).0[0], &pack_evaluations(&detailed).0[0]] {
            let mut waiting = vec![batch.clone()];
            let mut single = Vec::new();
            while let Some(batch) = waiting.pop() {
                match batch.halves() {
                    Some(halves) => {
                        assert_eq!(halves[0].count + halves[1].count, batch.count);
                        assert_ne!(halves[0].idempotency_key, batch.idempotency_key);
                        assert_ne!(halves[0].idempotency_key, halves[1].idempotency_key);
                        waiting.extend(halves);
                    }
                    None => single.push(batch),
                }
            }
            assert_eq!(single.len(), 5, "{single:?}");
            assert!(single.iter().all(|one| one.count == 1 && one.path == batch.path));
        }
    }

    #[test]
    fn packs_usage_into_batches_of_a_thousand_rows() {
        let rows = (0..1001).map(|slot| ((format!("key-{slot:04}").into(), Resource::Flags), 1)).collect();
        let batches = pack_usage(rows);
        let rows: Vec<Vec<Value>> = batches.iter().map(|p| serde_json::from_str(&p.body).unwrap()).collect();
        assert_eq!((rows[0].len(), rows[1].len()), (1000, 1));
        assert_eq!(rows[0][0], json!({"client_side_key": "key-0000", "resource": "flags", "count": 1}));
        assert_ne!(batches[0].idempotency_key, batches[1].idempotency_key);
        assert_eq!(batches[0].idempotency_key.len(), 36);
    }

    #[test]
    fn omits_labels_that_are_not_valid_header_values() {
        let mut labelled = UploadBatch::new("p", "key".into(), Labels::default(), "{}".into(), 0);
        labelled.labels.application_name = "a\nb".into();
        labelled.labels.user_agent = "sdk/1".into();
        assert_eq!(labelled.fields(), [("x-environment-key", "key"), ("user-agent", "sdk/1")]);
    }
}
