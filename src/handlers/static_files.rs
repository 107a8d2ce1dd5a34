//! The static files, with the URLs of this server in them.
use std::borrow::Cow;

use crate::demo;

const OPENAPI: &str = include_str!("openapi.json");
const DOCS: &str = include_str!("docs.html");

/// The placeholder of `server.base_path` in the pages.
const BASE_PATH: &str = "BASE_PATH";
/// The URL of the server in the OpenAPI document.
const SERVER_URL: &str = "\"url\": \"/\"";

/// The OpenAPI document, the page that renders it, and the demo page.
#[derive(Debug)]
pub struct StaticFiles {
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
            openapi,
            docs: DOCS.replace(BASE_PATH, base_path),
            demo: demo::PAGE.replace(BASE_PATH, base_path),
        }
    }
}
