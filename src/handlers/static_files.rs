//! The static files, with the URLs of this server in them.
use std::borrow::Cow;

use crate::demo;

const OPENAPI: &str = include_str!("openapi.json");
/// The body of `/`: name, version and links.
const ROOT: &str = concat!(
    r#"{"name":"edge-proxy","description":"Edge proxy for Flagsmith feature flags","version":""#,
    env!("CARGO_PKG_VERSION"),
    r#"","docs":"BASE_PATH/docs","openapi":"BASE_PATH/openapi.json","health":"BASE_PATH/proxy/health/readiness"}"#,
    "\n",
);
const DOCS: &str = include_str!("docs.html");

/// The placeholder of `server.base_path` in the pages.
const BASE_PATH: &str = "BASE_PATH";
/// The URL of the server in the OpenAPI document.
const SERVER_URL: &str = "\"url\": \"/\"";

/// The body of `/`, the OpenAPI document, the page that renders it, and the demo page.
#[derive(Debug)]
pub struct StaticFiles {
    pub root: String,
    /// The header line that leads from `/` to the demo page.
    pub demo_location: String,
    pub openapi: Cow<'static, str>,
    pub docs: String,
    pub demo: String,
}

impl StaticFiles {
    /// The files of a server with this `server.base_path`, which may be empty.
    pub fn below(base_path: &str) -> Self {
        let openapi = match base_path {
            "" => Cow::Borrowed(OPENAPI),
            base => Cow::Owned(OPENAPI.replacen(SERVER_URL, &format!("\"url\": \"{base}\""), 1)),
        };
        Self {
            root: ROOT.replace(BASE_PATH, base_path),
            demo_location: format!("location: {base_path}/demo/\r\n"),
            openapi,
            docs: DOCS.replace(BASE_PATH, base_path),
            demo: demo::PAGE.replace(BASE_PATH, base_path),
        }
    }
}
