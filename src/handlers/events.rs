//! `POST /v1/events`: experiment events of SDKs, with the limits of Flagsmith's events API (compatibility.md
//! 1.6).
//!
//! Each event is accepted or rejected for itself, and the accepted ones are stored as the SDK sent them. The
//! response, 202, is rendered here; the reactor sends it when the events are on disk, or 503 instead.
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::counts::evaluations::cut_bytes;
use crate::events::{EventFault, EventPart, EventPost, EventSource};
use crate::handlers::errors::ApiError;
use crate::handlers::exchange::{EVENTS_RETRY_AFTER, Exchange};
use crate::handlers::state::ReceivedEvents;
use crate::http::{Body, ContentType, ResponseContext, ResponseWriter, Status};
use crate::identity::is_json;
use crate::json::write;
use crate::limits;

/// The only event name with a `$` that SDKs may send.
const EXPOSURE: &str = "$flag_exposure";
const NOT_EVENTS: &str = "the body must be a JSON object with a list named events";
const NOT_STORED: &[u8] =
    br#"{"status":"unavailable","message":"the events could not be stored: send them again later"}"#;

#[derive(Deserialize)]
struct SentEvents<'a> {
    #[serde(borrow)]
    events: Vec<&'a RawValue>,
}

/// An event whose members are not parsed yet. Unknown members are kept, and forwarded.
#[derive(Deserialize)]
struct SentEvent<'a> {
    #[serde(borrow, default)]
    event: Option<&'a RawValue>,
    #[serde(borrow, default)]
    feature_name: Option<&'a RawValue>,
    #[serde(borrow, default)]
    identifier: Option<&'a RawValue>,
    #[serde(borrow, default)]
    value: Option<&'a RawValue>,
    #[serde(borrow, default)]
    traits: Option<&'a RawValue>,
    #[serde(borrow, default)]
    metadata: Option<&'a RawValue>,
    #[serde(borrow, default)]
    timestamp: Option<&'a RawValue>,
}

/// Why an event is rejected: the member, and what is expected of it.
type EventRejection = (EventFault, &'static str);

/// Accepts or rejects each event. The accepted ones are left in `received`.
pub fn post<'a>(
    exchange: &mut Exchange<'a>,
    body: &[u8],
    received: &mut ReceivedEvents,
) -> Result<(), ApiError<'a>> {
    let slot = exchange.open_slot()?;
    if !is_json(exchange.fields.content_type) {
        return Err(ApiError::MediaType);
    }
    let SentEvents { events } =
        serde_json::from_slice(body).map_err(|_| ApiError::Unprocessable(NOT_EVENTS))?;
    let sdk = String::from_utf8_lossy(exchange.fields.sdk_user_agent.unwrap_or_default());
    let source = EventSource {
        client_side_key: slot.client_side_key.clone(),
        sdk: cut_bytes(&sdk, limits::LABEL_BYTES_MAX).into(),
    };
    let mut post = EventPost { source, parts: Vec::new() };
    let mut rejected = Vec::new();
    for (index, event) in events.iter().enumerate() {
        match check(event) {
            Ok(()) => add(&mut post, event),
            Err((fault, expected)) => {
                if let Some(count) = received.rejected.get_mut(fault as usize) {
                    *count += 1;
                }
                if rejected.len() < limits::EVENT_REJECTIONS_MAX {
                    rejected.push((index, fault, expected));
                }
            }
        }
    }
    let count = post.count();
    exchange.vary();
    exchange.send_with(Status(if count > 0 { 202 } else { 400 }), |_, out| render(count, &rejected, out));
    received.post = (count > 0).then_some(post);
    Ok(())
}

fn add(post: &mut EventPost, event: &RawValue) {
    let event = event.get().as_bytes();
    let has_capacity =
        |part: &&mut EventPart| part.events.len() + event.len() < limits::EVENT_RECORD_BYTES_MAX;
    match post.parts.last_mut().filter(has_capacity) {
        Some(part) => {
            part.events.push(b',');
            part.events.extend_from_slice(event);
            part.count += 1;
        }
        None => post.parts.push(EventPart { count: 1, events: event.to_vec() }),
    }
}

fn render(accepted: u64, rejected: &[(usize, EventFault, &str)], out: &mut Vec<u8>) {
    let mut number = itoa::Buffer::new();
    out.extend_from_slice(b"{\"accepted\":");
    out.extend_from_slice(number.format(accepted).as_bytes());
    out.extend_from_slice(b",\"rejected\":[");
    for (place, (index, fault, expected)) in rejected.iter().enumerate() {
        out.extend_from_slice(if place > 0 { b",{\"index\":" } else { b"{\"index\":" });
        out.extend_from_slice(number.format(*index).as_bytes());
        out.extend_from_slice(b",\"error\":");
        let text = match fault {
            EventFault::Json => (*expected).to_owned(),
            _ => format!("{}: {expected}", fault.name()),
        };
        write::string(&text, out);
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
}

/// Appends the response to events that were not stored. `fields` are its CORS lines.
pub fn write_not_stored(context: ResponseContext, fields: &[u8], output: &mut ResponseWriter) {
    let fields = [EVENTS_RETRY_AFTER, fields].concat();
    output.respond(context, Status(503), Some(ContentType::Json), &fields, Body::Copy(NOT_STORED));
}

fn check(event: &RawValue) -> Result<(), EventRejection> {
    const NOT_AN_EVENT: EventRejection = (EventFault::Json, "expected an object with each member once");
    const NOT_STRICT: EventRejection =
        (EventFault::Json, "expected JSON without lone surrogates, numbers beyond 64 bits and deep nesting");
    // One event that upstream cannot read would fail a batch with the events of other clients.
    serde_json::from_str::<StrictJson>(event.get()).map_err(|_| NOT_STRICT)?;
    let sent: SentEvent<'_> = serde_json::from_str(event.get()).map_err(|_| NOT_AN_EVENT)?;
    let name = text(sent.event).map_err(|()| (EventFault::Event, "expected a string"))?.unwrap_or_default();
    if name.is_empty() || is_longer(&name, limits::EVENT_NAME_CHARS_MAX) {
        return Err((EventFault::Event, "expected a name of 1 to 256 characters"));
    }
    if name.starts_with('$') && name != EXPOSURE {
        return Err((EventFault::Event, "names with $ are reserved, except $flag_exposure"));
    }
    let feature = short_text(sent.feature_name, EventFault::FeatureName)?;
    if name == EXPOSURE && feature.is_none_or(|feature| feature.is_empty()) {
        return Err((EventFault::FeatureName, "required for $flag_exposure"));
    }
    short_text(sent.identifier, EventFault::Identifier)?;
    let value = text(sent.value).map_err(|()| (EventFault::Value, "expected a string or null"))?;
    if value.is_some_and(|value| value.len() > limits::EVENT_VALUE_BYTES_MAX) {
        return Err((EventFault::Value, "expected at most 131072 bytes"));
    }
    let is_too_large =
        |member: Option<&RawValue>, bytes_max| member.is_some_and(|member| member.get().len() > bytes_max);
    if is_too_large(sent.traits, limits::EVENT_TRAITS_BYTES_MAX) {
        return Err((EventFault::Traits, "expected at most 32768 bytes of JSON"));
    }
    if let Some(traits) = sent.traits {
        serde_json::from_str::<Traits>(traits.get()).map_err(|_| {
            (EventFault::Traits, "expected an object with keys of at most 200 characters, or null")
        })?;
    }
    if is_too_large(sent.metadata, limits::EVENT_METADATA_BYTES_MAX) {
        return Err((EventFault::Metadata, "expected at most 8192 bytes of JSON"));
    }
    if sent.metadata.is_some_and(|metadata| !metadata.get().starts_with('{')) {
        return Err((EventFault::Metadata, "expected an object or null"));
    }
    let is_number =
        |raw: &RawValue| raw.get().starts_with(|first: char| first.is_ascii_digit() || first == '-');
    if sent.timestamp.is_some_and(|timestamp| !is_number(timestamp)) {
        return Err((EventFault::Timestamp, "expected a number of milliseconds"));
    }
    Ok(())
}

/// The text of a member; `None` if it is null or missing, an error if it is not a string.
fn text(member: Option<&RawValue>) -> Result<Option<String>, ()> {
    member.map(|member| serde_json::from_str(member.get()).map_err(drop)).transpose()
}

fn short_text(member: Option<&RawValue>, fault: EventFault) -> Result<Option<String>, EventRejection> {
    let text = text(member).map_err(|()| (fault, "expected a string or null"))?;
    if text.as_deref().is_some_and(|text| is_longer(text, limits::EVENT_TEXT_CHARS_MAX)) {
        return Err((fault, "expected at most 2000 characters"));
    }
    Ok(text)
}

fn is_longer(text: &str, chars_max: usize) -> bool {
    text.len() > chars_max && text.chars().nth(chars_max).is_some()
}

/// Any JSON whose strings are Unicode and whose numbers are finite: other parsers read the same.
struct StrictJson;

impl<'de> Deserialize<'de> for StrictJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for StrictJson {
    type Value = Self;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self, A::Error> {
        while members.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

/// Traits of an event, whose keys are not too long.
struct Traits;

impl<'de> Deserialize<'de> for Traits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Self)
    }
}

impl<'de> Visitor<'de> for Traits {
    type Value = Self;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("traits")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self, A::Error> {
        while let Some((key, IgnoredAny)) = members.next_entry::<String, IgnoredAny>()? {
            if is_longer(&key, limits::EVENT_TRAIT_KEY_CHARS_MAX) {
                return Err(serde::de::Error::custom("the key is too long"));
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(event: &str) -> Option<&'static str> {
        let raw = RawValue::from_string(event.to_owned()).unwrap();
        check(&raw).err().map(|(fault, _)| fault.name())
    }

    fn event(member: &str, value: &str) -> String {
        format!(r#"{{"event":"x","{member}":{value}}}"#)
    }

    fn long(chars: usize) -> String {
        format!("\"{}\"", "é".repeat(chars))
    }

    #[test]
    fn accepts_what_sdks_send() {
        for sent in [
            r#"{"event":"$flag_exposure","feature_name":"split","identifier":"u","value":"b","traits":{"a":1},"metadata":{"sdk_version":"1"},"timestamp":1735229888000}"#,
            r#"{"event":"purchase","feature_name":null,"identifier":null,"value":null,"traits":null,"metadata":null,"timestamp":1}"#,
            r#"{"event":"x"}"#,
            r#"{"event":"x","unknown":[1.5e3,"é😀",{"a":null}]}"#,
        ] {
            assert_eq!(fault(sent), None, "{sent}");
        }
        for (member, chars) in [("feature_name", 2000), ("identifier", 2000), ("value", 65_536)] {
            assert_eq!(fault(&event(member, &long(chars))), None, "{member}");
        }
        assert_eq!(fault(&format!("{{\"event\":{}}}", long(256))), None);
        assert_eq!(fault(&event("traits", &format!("{{{}:1}}", long(200)))), None);
    }

    #[test]
    fn rejects_each_member_beyond_its_limit() {
        for (sent, expected) in [
            ("1".to_owned(), "json"),
            (r#"{"event":"x","event":"y"}"#.into(), "json"),
            (event("traits", r#"{"a":"\ud800"}"#), "json"),
            (event("other", "1e400"), "json"),
            (event("other", &("[".repeat(200) + &"]".repeat(200))), "json"),
            ("{}".into(), "event"),
            (r#"{"event":""}"#.into(), "event"),
            (r#"{"event":1}"#.into(), "event"),
            (r#"{"event":"$other"}"#.into(), "event"),
            (format!("{{\"event\":{}}}", long(257)), "event"),
            (r#"{"event":"$flag_exposure"}"#.into(), "feature_name"),
            (r#"{"event":"$flag_exposure","feature_name":""}"#.into(), "feature_name"),
            (event("feature_name", &long(2001)), "feature_name"),
            (event("identifier", &long(2001)), "identifier"),
            (event("identifier", "7"), "identifier"),
            (event("value", &long(65_537)), "value"),
            (event("value", "7"), "value"),
            (event("traits", &format!("{{{}:1}}", long(201))), "traits"),
            (event("traits", &format!("{{\"a\":{}}}", long(16_384))), "traits"),
            (event("traits", "[]"), "traits"),
            (event("metadata", &format!("{{\"a\":{}}}", long(4096))), "metadata"),
            (event("metadata", "\"{\""), "metadata"),
            (event("timestamp", "\"now\""), "timestamp"),
        ] {
            assert_eq!(fault(&sent), Some(expected), "{sent:.200}");
        }
    }

    #[test]
    fn large_posts_become_several_records() {
        let mut post = EventPost::default();
        let small = RawValue::from_string(format!("{{\"event\":\"{}\"}}", "x".repeat(1000))).unwrap();
        (0..500).for_each(|_| add(&mut post, &small));
        let large =
            RawValue::from_string(format!("\"{}\"", "x".repeat(limits::EVENT_RECORD_BYTES_MAX))).unwrap();
        add(&mut post, &large);
        assert_eq!((post.count(), post.parts.len()), (501, 3));
        for part in &post.parts[..2] {
            assert!(part.events.len() <= limits::EVENT_RECORD_BYTES_MAX);
            let list = format!("[{}]", String::from_utf8_lossy(&part.events));
            let events: Vec<serde_json::Value> = serde_json::from_str(&list).unwrap();
            assert_eq!(events.len(), part.count as usize);
        }
    }

    #[test]
    fn lists_a_bounded_number_of_rejections() {
        let mut out = Vec::new();
        render(2, &[(0, EventFault::Json, "bad"), (7, EventFault::Value, "expected \"x\"")], &mut out);
        assert_eq!(
            String::from_utf8_lossy(&out),
            r#"{"accepted":2,"rejected":[{"index":0,"error":"bad"},{"index":7,"error":"value: expected \"x\""}]}"#
        );
    }
}
