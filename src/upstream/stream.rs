//! Event streams of upstream (compatibility.md 1.5).
use http::{HeaderMap, Uri, header};

use crate::json::hex::path_segment;
use crate::limits;
use crate::upstream::api::Upstream;
use crate::upstream::client::{Field, UpstreamResponse};
use crate::upstream::error::{PollError, PollErrorKind};
use crate::upstream::response::{error_for_status, https_redirect};
use crate::upstream::url;

impl Upstream {
    /// Opens the event stream of a client-side key.
    ///
    /// # Errors
    /// The response is not a 200 with an event stream, or there is none.
    pub fn stream(&self, client_side_key: &str) -> Result<UpstreamResponse, PollError> {
        let path = format!("sse/environments/{}/stream", path_segment(client_side_key));
        let uri = url::resolve(&self.realtime, &path).ok_or_else(|| {
            let message = format!("realtime.url: expected an http or https URL, got {}", self.realtime);
            PollError::new(PollErrorKind::Internal, message)
        })?;
        let mut fields = vec![("accept", "text/event-stream"), ("cache-control", "no-cache")];
        let credentials = self.realtime_credentials.as_ref();
        fields.extend(credentials.map(|credentials| ("authorization", credentials.expose())));
        let open = |uri: &Uri| {
            // A gateway in front of the API may serve its event streams too.
            let own =
                self.headers_for(uri).filter(|(name, _)| *name != "authorization" || credentials.is_none());
            let fields: Vec<Field<'_>> = fields.iter().copied().chain(own).collect();
            self.client.stream(uri, &fields, limits::STREAM_SILENCE_MAX)
        };
        let mut response = open(&uri)?;
        if let Some(target) = https_redirect(&response) {
            response = open(&target)?;
        }
        if response.status == 200 && !is_event_stream(&response.headers) {
            let kind = response.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
            let (origin, kind) = (url::origin(&response.uri), kind.unwrap_or("none"));
            let message =
                format!("{origin}: expected an event stream, got Content-Type {kind}: check realtime.url");
            return Err(PollError::new(PollErrorKind::Interrupted, message));
        }
        match response.status {
            200 => Ok(response),
            300..=399 => {
                let (origin, status) = (url::origin(&response.uri), response.status);
                let message = format!(
                    "{origin} answered {status}: redirects of event streams are not followed; set realtime.url to the \
                     final URL"
                );
                Err(PollError::new(PollErrorKind::Redirect, message))
            }
            _ => Err(error_for_status(&response, true)),
        }
    }

    /// Reads from a stream into `bytes`, blocking for `STREAM_SILENCE_MAX` at most. Returns 0 at its end.
    ///
    /// # Errors
    /// The connection broke, or nothing arrived in time.
    pub fn read_stream(&self, stream: &mut UpstreamResponse, bytes: &mut [u8]) -> Result<usize, PollError> {
        self.client.read(stream, bytes)
    }
}

/// Ignores parameters such as `; charset=utf-8`.
fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("text/event-stream")
}
