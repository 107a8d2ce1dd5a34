//! `analytics/flags/`: how often SDKs evaluated which feature.
//!
//! In: version 1, an object of counts by name; version 2, a list of evaluations. Out: rows in the
//! room's counts, which go upstream in batches, and 200 `{}` or 204 (compatibility.md 1.4: the one answer
//! that every SDK takes as success). Invariant: as in Flagsmith core, names that the environment
//! does not have are skipped, and so is what is not a count from 1 to 2,147,483,647; a body of the
//! wrong shape is 400 and counts nothing.
use super::{Desk, Exchange};
use crate::counts::{Counts, Detail, Evaluation, Labels};
use crate::http::{Body, ContentType, Fields, Status};
use crate::identity::detail::{json_value, member};
use crate::identity::python_json::Value;
use crate::snapshot::{Environment, Role, Slot};

/// Core keeps counts in 32 bits.
const COUNT_MAX: i64 = i32::MAX as i64;

const NOT_AN_OBJECT: &str = "the body must be a JSON object of feature names and counts";
const NO_EVALUATIONS: &str = "the body must be a JSON object with a list named evaluations";
const EVALUATION: &str =
    "each evaluation needs feature_name (text), count (integer) and enabled_when_evaluated (true or false)";

/// Counts by feature, as SDKs send them.
pub fn version_1(exchange: &mut Exchange<'_>, body: &[u8], counts: &mut Counts, desk: &mut Desk) {
    let slot = match exchange.open_slot() {
        Ok(slot) => slot,
        Err(denied) => return exchange.deny(desk, denied),
    };
    let Ok(Value::Dict(members)) = json_value(body) else {
        return exchange.refuse_shape(desk, NOT_AN_OBJECT);
    };
    if exchange.settings.counts_evaluations {
        let labels = labels(&exchange.fields);
        for (feature, value) in &members {
            if let Some(count) = count(value).filter(|_| is_known(slot, feature)) {
                counts.evaluated(evaluation(slot, &labels, feature, None), count);
            }
        }
    }
    exchange.vary(desk);
    exchange.send(desk, Status(200), Some(ContentType::Json), Body::Copy(b"{}"));
}

/// One row for each evaluation, with who asked.
pub fn version_2(exchange: &mut Exchange<'_>, body: &[u8], counts: &mut Counts, desk: &mut Desk) {
    let slot = match exchange.open_slot() {
        Ok(slot) => slot,
        Err(denied) => return exchange.deny(desk, denied),
    };
    let Ok(body) = json_value(body) else { return exchange.refuse_shape(desk, NO_EVALUATIONS) };
    let Some(Value::List(items)) = member(&body, "evaluations") else {
        return exchange.refuse_shape(desk, NO_EVALUATIONS);
    };
    let Some(rows) = items.iter().map(row).collect::<Option<Vec<Row<'_>>>>() else {
        return exchange.refuse_shape(desk, EVALUATION);
    };
    if exchange.settings.counts_evaluations {
        let labels = labels(&exchange.fields);
        for row in rows {
            if let Some(count) = row.count.filter(|_| is_known(slot, row.feature)) {
                let detail =
                    Detail { identifier: row.identifier.map(Into::into), is_enabled: row.is_enabled };
                counts.evaluated(evaluation(slot, &labels, row.feature, Some(detail)), count);
            }
        }
    }
    exchange.vary(desk);
    exchange.send(desk, Status(204), None, Body::Empty);
}

/// One evaluation of version 2. `count` is `None` where it is out of range: skipped.
struct Row<'body> {
    feature: &'body str,
    identifier: Option<&'body str>,
    is_enabled: bool,
    count: Option<u64>,
}

fn row(item: &Value) -> Option<Row<'_>> {
    let Some(Value::Text(feature)) = member(item, "feature_name") else { return None };
    let Some(Value::Bool(is_enabled)) = member(item, "enabled_when_evaluated") else { return None };
    let Some(value @ Value::Int(_)) = member(item, "count") else { return None };
    let identifier = match member(item, "identity_identifier") {
        None | Some(Value::Null) => None,
        Some(Value::Text(identifier)) => Some(identifier.text.as_str()),
        Some(_) => return None,
    };
    Some(Row { feature: &feature.text, identifier, is_enabled: *is_enabled, count: count(value) })
}

fn count(value: &Value) -> Option<u64> {
    let Value::Int(digits) = value else { return None };
    let count: i64 = digits.parse().ok()?;
    (1..=COUNT_MAX).contains(&count).then_some(count.unsigned_abs())
}

/// Without a document yet there is nothing to compare with, and upstream skips what it does not know.
fn is_known(slot: &Slot, feature: &str) -> bool {
    let has = |environment: &Environment| environment.flag(Role::Server, feature).is_some();
    slot.environment.as_deref().is_none_or(has)
}

fn evaluation(slot: &Slot, labels: &Labels, feature: &str, detail: Option<Detail>) -> Evaluation {
    let client_side_key = slot.client_side_key.clone();
    Evaluation { client_side_key, labels: labels.clone(), feature: feature.into(), detail }
}

fn labels(fields: &Fields<'_>) -> Labels {
    let text =
        |field: Option<&[u8]>| -> Box<str> { String::from_utf8_lossy(field.unwrap_or_default()).into() };
    Labels {
        application_name: text(fields.application_name),
        application_version: text(fields.application_version),
        user_agent: text(fields.user_agent),
        sdk_user_agent: text(fields.sdk_user_agent),
    }
}
