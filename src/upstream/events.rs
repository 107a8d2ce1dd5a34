//! Forwards batches of experiment events to `events.url` (compatibility.md 1.6).
//!
//! A redirect is followed only to the same host by https. Another one is a wrong setting, so that the events
//! wait.
use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::limits;
use crate::upstream::api::Upstream;
use crate::upstream::client::UpstreamResponse;
use crate::upstream::error::{PollError, PollErrorKind};
use crate::upstream::response::{error_for_status, https_redirect};
use crate::upstream::url;

/// The path below `events.url`.
const PATH: &str = "v1/events";

/// The outcome of a batch.
#[derive(Debug)]
pub enum EventsOutcome {
    /// Upstream has the batch, except the events that it rejected, which are counted by its reason.
    Accepted { rejected: BTreeMap<String, u64> },
    /// Upstream never accepts this batch. `why` is one line.
    Refused { why: String, status: u16 },
    /// Upstream may accept the batch later.
    Failed(PollError),
}

#[derive(Deserialize)]
struct EventsAnswer {
    #[serde(default)]
    rejected: Vec<RejectedEvent>,
}

#[derive(Deserialize)]
struct RejectedEvent {
    #[serde(default)]
    error: String,
}

impl Upstream {
    /// Posts a batch of events. By `idempotency_key` upstream recognizes a repeated one. `sdk` is
    /// `Flagsmith-SDK-User-Agent`; empty: the field is not sent. `time_max` limits the time for each attempt.
    pub fn post_events(
        &self,
        client_side_key: &str,
        sdk: &str,
        idempotency_key: &str,
        body: &[u8],
        time_max: Option<Duration>,
    ) -> EventsOutcome {
        let Some(uri) = url::resolve(&self.events, PATH) else {
            let message = format!("cannot resolve {PATH} below {}", url::origin(&self.events));
            return EventsOutcome::Failed(PollError::new(PollErrorKind::Internal, message));
        };
        let mut fields = vec![("x-environment-key", client_side_key), ("idempotency-key", idempotency_key)];
        if !sdk.is_empty() && http::HeaderValue::from_str(sdk).is_ok() {
            fields.push(("flagsmith-sdk-user-agent", sdk));
        }
        fields.extend(self.events_credentials.as_ref().map(|one| ("authorization", one.expose())));
        let response = self.client.post(&uri, &fields, body, time_max).and_then(|response| {
            match https_redirect(&response) {
                Some(target) => self.client.post(&target, &fields, body, time_max),
                None => Ok(response),
            }
        });
        match response {
            Ok(response) => self.events_outcome(response),
            Err(error) => EventsOutcome::Failed(error),
        }
    }

    fn events_outcome(&self, mut response: UpstreamResponse) -> EventsOutcome {
        match response.status {
            200..=299 => EventsOutcome::Accepted { rejected: self.rejected(&mut response) },
            408 | 429 => EventsOutcome::Failed(error_for_status(&response, true)),
            400..=499 => {
                let why = format!("{} answered {} to {PATH}", url::origin(&response.uri), response.status);
                EventsOutcome::Refused { why, status: response.status }
            }
            _ => EventsOutcome::Failed(error_for_status(&response, true)),
        }
    }

    /// The rejected events of a response, by reason. A response that cannot be read has none: the batch is
    /// accepted by its status.
    fn rejected(&self, response: &mut UpstreamResponse) -> BTreeMap<String, u64> {
        let (mut bytes, mut piece) = (Vec::new(), [0; 16 * 1024]);
        while let Ok(count @ 1..) = self.client.read(response, &mut piece) {
            bytes.extend_from_slice(&piece[..count]);
            if bytes.len() > limits::EVENTS_ANSWER_BYTES_MAX {
                return BTreeMap::new();
            }
        }
        let mut rejected = BTreeMap::new();
        let answer = serde_json::from_slice(&bytes).unwrap_or(EventsAnswer { rejected: Vec::new() });
        for event in answer.rejected {
            *rejected.entry(reason(&event.error)).or_default() += 1;
        }
        rejected
    }
}

/// A reason as the label of a metric: one line of bounded length.
fn reason(error: &str) -> String {
    let is_shown = |char: &char| !char.is_control();
    let text: String = error.chars().filter(is_shown).take(limits::EVENT_REASON_CHARS_MAX).collect();
    if text.is_empty() { "unknown".to_owned() } else { text }
}
