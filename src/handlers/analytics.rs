//! `analytics/flags/`: how often SDKs evaluated which feature.
//!
//! In: version 1, an object of counts by name; version 2, a list of evaluations. Out: rows in the
//! room's counts, which go upstream in batches, and 200 `{}` or 204 (compatibility.md 1.4: the one answer
//! that every SDK takes as success). Invariant: as in Flagsmith core, names that the environment
//! does not have are skipped, and so is what is not a count from 1 to 2,147,483,647; a body of the
//! wrong shape is 400 and counts nothing.
use crate::counts::evaluations::{Tally, cut_bytes};
use crate::counts::{AnalyticsVersion, Counts, Evaluation, Labels, Names};
use crate::engine::program::Role;
use crate::handlers::{Exchange, Scratch};
use crate::http::{Body, ContentType, Fields, Status};
use crate::identity::validation_errors::json_value;
use crate::limits;
use crate::python::json::PyValue;
use crate::snapshot::Slot;

/// Core keeps counts in 32 bits.
const COUNT_MAX: i64 = i32::MAX as i64;

const NOT_AN_OBJECT: &str = "the body must be a JSON object of feature names and counts";
const NO_EVALUATIONS: &str = "the body must be a JSON object with a list named evaluations";
const EVALUATION: &str =
    "each evaluation needs feature_name (text), count (integer) and enabled_when_evaluated (true or false)";

/// Counts by feature, as SDKs send them.
pub fn version_1(exchange: &mut Exchange<'_>, body: &[u8], counts: &mut Counts, desk: &mut Scratch) {
    let slot = match exchange.open_slot() {
        Ok(slot) => slot,
        Err(denied) => return exchange.deny(desk, denied),
    };
    let Ok(body) = json_value(body) else { return exchange.refuse_shape(desk, NOT_AN_OBJECT) };
    let PyValue::Dict(members) = body.root() else { return exchange.refuse_shape(desk, NOT_AN_OBJECT) };
    if exchange.settings.counts_evaluations {
        let mut tally = tally(slot, &exchange.fields, counts);
        for (feature, value) in members.members() {
            if let Some(count) = count(value).filter(|_| is_known(slot, feature)) {
                tally.add(Evaluation { feature, version: AnalyticsVersion::One, identifier: None }, count);
            }
        }
    }
    exchange.vary(desk);
    exchange.send(desk, Status(200), Some(ContentType::Json), Body::Copy(b"{}"));
}

/// One row for each evaluation, with who asked.
pub fn version_2(exchange: &mut Exchange<'_>, body: &[u8], counts: &mut Counts, desk: &mut Scratch) {
    let slot = match exchange.open_slot() {
        Ok(slot) => slot,
        Err(denied) => return exchange.deny(desk, denied),
    };
    let Ok(body) = json_value(body) else { return exchange.refuse_shape(desk, NO_EVALUATIONS) };
    let Some(PyValue::List(items)) = member(body.root(), "evaluations") else {
        return exchange.refuse_shape(desk, NO_EVALUATIONS);
    };
    let Some(rows) = items.iter().map(row).collect::<Option<Vec<EvaluationRow<'_>>>>() else {
        return exchange.refuse_shape(desk, EVALUATION);
    };
    if exchange.settings.counts_evaluations {
        let mut tally = tally(slot, &exchange.fields, counts);
        for EvaluationRow { feature, identifier, is_enabled, count } in rows {
            if let Some(count) = count.filter(|_| is_known(slot, feature)) {
                tally.add(
                    Evaluation { feature, version: AnalyticsVersion::Two { is_enabled }, identifier },
                    count,
                );
            }
        }
    }
    exchange.vary(desk);
    exchange.send(desk, Status(204), None, Body::Empty);
}

/// One evaluation of version 2. `count` is `None` where it is out of range: skipped.
struct EvaluationRow<'body> {
    feature: &'body str,
    identifier: Option<&'body str>,
    is_enabled: bool,
    count: Option<u64>,
}

fn row(item: PyValue<'_>) -> Option<EvaluationRow<'_>> {
    let Some(PyValue::Text(feature)) = member(item, "feature_name") else { return None };
    let Some(PyValue::Bool(is_enabled)) = member(item, "enabled_when_evaluated") else { return None };
    let Some(value @ PyValue::Int(_)) = member(item, "count") else { return None };
    let identifier = match member(item, "identity_identifier") {
        None | Some(PyValue::Null) => None,
        Some(PyValue::Text(identifier)) => Some(identifier.text),
        Some(_) => return None,
    };
    Some(EvaluationRow { feature: feature.text, identifier, is_enabled, count: count(value) })
}

fn member<'body>(value: PyValue<'body>, name: &str) -> Option<PyValue<'body>> {
    let PyValue::Dict(members) = value else { return None };
    members.get(name)
}

fn count(value: PyValue<'_>) -> Option<u64> {
    let PyValue::Int(digits) = value else { return None };
    let count: i64 = digits.parse().ok()?;
    (1..=COUNT_MAX).contains(&count).then_some(count.unsigned_abs())
}

/// Without a document yet there is nothing to compare with, and upstream skips what it does not know.
fn is_known(slot: &Slot, feature: &str) -> bool {
    match slot.environment.as_deref() {
        Some(environment) => environment.flag(Role::Server, feature).is_some(),
        None => feature.chars().nth(limits::FEATURE_NAME_CHARS_MAX).is_none(),
    }
}

/// Where the counts of a request go.
fn tally<'a>(slot: &Slot, fields: &Fields<'_>, counts: &'a mut Counts) -> Tally<'a> {
    let mut cut = 0;
    let mut text = |field: Option<&[u8]>| -> Box<str> {
        let text = String::from_utf8_lossy(field.unwrap_or_default());
        let kept = cut_bytes(&text, limits::LABEL_BYTES_MAX);
        cut += u64::from(kept.len() < text.len());
        kept.into()
    };
    let labels = Labels {
        application_name: text(fields.application_name),
        application_version: text(fields.application_version),
        user_agent: text(fields.user_agent),
        sdk_user_agent: text(fields.sdk_user_agent),
    };
    counts.evaluations.bounded.labels_cut += cut;
    let names = if slot.environment.is_some() { Names::Known } else { Names::Unknown };
    counts.evaluations.tally(&slot.client_side_key, &labels, names)
}
