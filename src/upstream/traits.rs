//! Forwards kept traits to core with a server-side key.
//!
//! A redirect is followed only to the same host by https.
use std::time::Duration;

use crate::config::Secret;
use crate::upstream::api::Upstream;
use crate::upstream::client::UpstreamResponse;
use crate::upstream::error::PollError;
use crate::upstream::response::{error_for_status, https_redirect};
use crate::upstream::url;

/// A request that changes stored traits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraitRequest {
    /// `PUT traits/bulk/`, of many identities.
    Bulk,
    /// `POST traits/`, one trait.
    Set,
    /// `POST identities/`, with a trait that is null: `traits/` does not delete.
    Delete,
}

/// The outcome of a request.
#[derive(Debug)]
pub enum TraitsOutcome {
    Accepted,
    /// Upstream has no such route (404, 405).
    NotSupported(PollError),
    /// Upstream never accepts this body. `why` is one line. `may_divide`: one trait may be the reason.
    Refused {
        why: String,
        may_divide: bool,
    },
    /// Upstream may accept it later.
    Failed(PollError),
}

impl TraitRequest {
    fn path(self) -> &'static str {
        match self {
            Self::Bulk => "traits/bulk/",
            Self::Set => "traits/",
            Self::Delete => "identities/",
        }
    }
}

impl Upstream {
    /// Sends traits of one environment. `time_max` limits the time for each attempt.
    pub fn send_traits(
        &self,
        request: TraitRequest,
        server_side_key: &Secret,
        body: &[u8],
        time_max: Option<Duration>,
    ) -> TraitsOutcome {
        let uri = match self.address(request.path()) {
            Ok(uri) => uri,
            Err(error) => return TraitsOutcome::Failed(error),
        };
        let mut fields = self.keys(server_side_key.expose());
        fields.extend(self.own_fields());
        let send = |uri: &http::Uri| match request {
            TraitRequest::Bulk => self.client.put(uri, &fields, body, time_max),
            TraitRequest::Set | TraitRequest::Delete => self.client.post(uri, &fields, body, time_max),
        };
        let response = send(&uri).and_then(|response| match https_redirect(&response) {
            Some(target) => send(&target),
            None => Ok(response),
        });
        match response {
            Ok(response) => outcome(request, &response),
            Err(error) => TraitsOutcome::Failed(error),
        }
    }
}

fn outcome(request: TraitRequest, response: &UpstreamResponse) -> TraitsOutcome {
    match response.status {
        200..=299 => TraitsOutcome::Accepted,
        404 | 405 => TraitsOutcome::NotSupported(error_for_status(response, true)),
        // Retry: permissions and rate limits can change.
        401 | 403 | 408 | 429 => TraitsOutcome::Failed(error_for_status(response, true)),
        400..=499 => TraitsOutcome::Refused {
            why: format!("{} answered {} to {}", url::origin(&response.uri), response.status, request.path()),
            may_divide: matches!(response.status, 400 | 413 | 422),
        },
        _ => TraitsOutcome::Failed(error_for_status(response, true)),
    }
}
