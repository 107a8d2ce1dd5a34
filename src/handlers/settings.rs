//! The part of the configuration that request handlers use, prepared at start and at each reload.
use std::borrow::Cow;

use crate::config::{AddressLists, Config};
use crate::demo;
use crate::handlers::readiness::ReadinessRules;
use crate::handlers::static_files::StaticFiles;
use crate::http::Fields;
use crate::http::cors::Cors;
use crate::http::route;

#[derive(Debug)]
pub struct HandlerSettings {
    pub(super) cors: Cors,
    pub(super) readiness: ReadinessRules,
    /// Flag evaluations that SDKs report are counted and uploaded.
    pub(super) counts_evaluations: bool,
    /// Requests are counted for Flagsmith's usage billing (compatibility.md 4.3).
    pub(super) counts_usage: bool,
    /// Experiment events are accepted. Off: the route is unknown.
    pub(super) accepts_events: bool,
    /// The demo environment is configured, so the demo page is served.
    pub(super) serves_demo: bool,
    /// `server.base_path`; empty: routes are at the root.
    pub(super) base_path: Cow<'static, str>,
    pub(super) files: StaticFiles,
    /// The header line that offers deltas of documents; empty without `document_deltas`.
    pub(super) delta_offer: Box<[u8]>,
    /// Which clients are answered. `None`: all of them.
    pub address_lists: Option<AddressLists>,
}

impl HandlerSettings {
    pub fn new(config: &Config) -> Self {
        let base_path = config.server.base_path.clone().map_or(Cow::Borrowed(""), Cow::Owned);
        Self {
            cors: Cors::new(&config.allow_origins),
            readiness: ReadinessRules::new(config),
            counts_evaluations: config.analytics.enabled,
            counts_usage: config.proxy_key.is_some(),
            accepts_events: config.events.enabled,
            serves_demo: config.environments.iter().any(|one| one.client_side_key == demo::CLIENT_SIDE_KEY),
            files: StaticFiles::below(&base_path),
            delta_offer: delta_offer(config, &base_path),
            base_path,
            address_lists: config.server.address_lists.clone(),
        }
    }

    /// The route of a path as sent; `None` is 404.
    pub fn route<'p>(&self, path: &'p [u8]) -> Option<route::Match<'p>> {
        match self.base_path.as_bytes() {
            b"" => route::find(path),
            base => route::find_below(base, path),
        }
    }

    /// Header lines for an error response to a request that failed before it was routed: those of CORS
    /// (`Cors::refused`) and the request id. `fields` is `None` if the head was not parsed.
    pub fn error_headers(&self, fields: Option<&Fields<'_>>) -> Vec<u8> {
        let mut headers = Vec::new();
        self.cors.refused(fields, &mut headers);
        if let Some(id) = fields.and_then(|fields| fields.request_id) {
            append_request_id(id, &mut headers);
        }
        headers
    }
}

/// `Use-As-Dictionary` (RFC 9842 2.1): the document is a dictionary for later answers at its path.
fn delta_offer(config: &Config, base_path: &str) -> Box<[u8]> {
    match config.document_deltas {
        true => format!("use-as-dictionary: match=\"{base_path}/api/v1/environment-document/\"\r\n"),
        false => String::new(),
    }
    .into_bytes()
    .into()
}

/// Appends `X-Request-Id`, so that a response can be matched with the request in the logs of both sides.
pub fn append_request_id(id: &[u8], headers: &mut Vec<u8>) {
    headers.extend_from_slice(b"x-request-id: ");
    headers.extend_from_slice(id);
    headers.extend_from_slice(b"\r\n");
}
