//! The part of the configuration that request handlers use, prepared at start and at each reload.
use crate::config::Config;
use crate::demo;
use crate::handlers::readiness::ReadinessRules;
use crate::http::Fields;
use crate::http::cors::Cors;

#[derive(Debug)]
pub struct HandlerSettings {
    pub(super) cors: Cors,
    pub(super) readiness: ReadinessRules,
    /// Flag evaluations that SDKs report are counted and uploaded.
    pub(super) counts_evaluations: bool,
    /// Requests are counted for Flagsmith's usage billing (compatibility.md 4.3).
    pub(super) counts_usage: bool,
    /// The demo environment is configured, so the demo page is served.
    pub(super) serves_demo: bool,
}

impl HandlerSettings {
    pub fn new(config: &Config) -> Self {
        Self {
            cors: Cors::new(&config.allow_origins),
            readiness: ReadinessRules::new(config),
            counts_evaluations: config.analytics.enabled,
            counts_usage: config.proxy_key.is_some(),
            serves_demo: config.environments.iter().any(|one| one.client_side_key == demo::CLIENT_SIDE_KEY),
        }
    }

    /// CORS header lines for an error response to a request that failed before it was routed
    /// (`Cors::refused`). `fields` is `None` if the head was not parsed.
    pub fn cors_error_headers(&self, fields: Option<&Fields<'_>>) -> Vec<u8> {
        let mut headers = Vec::new();
        self.cors.refused(fields, &mut headers);
        headers
    }
}
