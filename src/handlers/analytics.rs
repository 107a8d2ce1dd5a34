//! `POST analytics/flags/`: how often an SDK evaluated each feature.
//!
//! The counts are added to the reactor's and uploaded in batches. Success is 200 `{}` (version 1) or 204
//! (version 2), the responses that every SDK accepts (compatibility.md 1.4). As in Flagsmith core, unknown
//! features and counts outside 1 to 2,147,483,647 are skipped; a body of the wrong shape is 400 and counts
//! nothing.
use crate::counts::evaluations::{Tally, cut_bytes};
use crate::counts::{AnalyticsVersion, Counts, Evaluation, Labels, Names};
use crate::engine::program::Role;
use crate::handlers::errors::ApiError;
use crate::handlers::exchange::Exchange;
use crate::http::{Body, ContentType, Fields, Status};
use crate::identity::validation_errors::json_value;
use crate::limits;
use crate::python::json::PyValue;
use crate::snapshot::Slot;

/// Flagsmith core stores counts as 32-bit integers.
const COUNT_MAX: i64 = i32::MAX as i64;

const NOT_AN_OBJECT: &str = "the body must be a JSON object of feature names and counts";
const NO_EVALUATIONS: &str = "the body must be a JSON object with a list named evaluations";
const EVALUATION: &str =
    "each evaluation needs feature_name (text), count (integer) and enabled_when_evaluated (true or false)";

/// The body is an object of counts by feature name.
pub fn version_1<'a>(
    exchange: &mut Exchange<'a>,
    body: &[u8],
    counts: &mut Counts,
) -> Result<(), ApiError<'a>> {
    let slot = exchange.open_slot()?;
    let body = json_value(body).map_err(|_| bad_request(NOT_AN_OBJECT))?;
    let PyValue::Dict(members) = body.root() else { return Err(bad_request(NOT_AN_OBJECT)) };
    if exchange.settings.counts_evaluations {
        let mut tally = tally(slot, &exchange.fields, counts);
        for (feature, value) in members.members() {
            if let Some(count) = count(value).filter(|_| is_known(slot, feature)) {
                tally.add(Evaluation { feature, version: AnalyticsVersion::One, identifier: None }, count);
            }
        }
    }
    exchange.vary();
    exchange.send(Status(200), Some(ContentType::Json), Body::Copy(b"{}"));
    Ok(())
}

/// The body is a list of evaluations, with the identifiers of the identities.
pub fn version_2<'a>(
    exchange: &mut Exchange<'a>,
    body: &[u8],
    counts: &mut Counts,
) -> Result<(), ApiError<'a>> {
    let slot = exchange.open_slot()?;
    let body = json_value(body).map_err(|_| bad_request(NO_EVALUATIONS))?;
    let Some(PyValue::List(items)) = member(body.root(), "evaluations") else {
        return Err(bad_request(NO_EVALUATIONS));
    };
    let rows: Option<Vec<EvaluationRow<'_>>> = items.iter().map(row).collect();
    let rows = rows.ok_or_else(|| bad_request(EVALUATION))?;
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
    exchange.vary();
    exchange.send(Status(204), None, Body::Empty);
    Ok(())
}

fn bad_request(message: &'static str) -> ApiError<'static> {
    ApiError::BadRequest(message.into())
}

/// One evaluation of version 2. `count` is `None` if it is out of range; the row is then skipped.
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

/// Whether the environment has the feature. Without a document any name of valid length is accepted, because
/// Flagsmith skips unknown features itself.
fn is_known(slot: &Slot, feature: &str) -> bool {
    match slot.environment() {
        Some(environment) => environment.flag(Role::Server, feature).is_some(),
        None => feature.chars().nth(limits::FEATURE_NAME_CHARS_MAX).is_none(),
    }
}

/// The rows that the counts of this request are added to.
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
    let names = if slot.document.is_some() { Names::Known } else { Names::Unknown };
    counts.evaluations.tally(&slot.client_side_key, &labels, names)
}
