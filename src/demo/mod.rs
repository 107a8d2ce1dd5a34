//! Data of `edge-proxy demo`: an ordinary environment document, its keys, a web page and the text printed at
//! start.
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::{EnvironmentConfig, Secret, reachable};

/// The `api_key` of the document.
pub const CLIENT_SIDE_KEY: &str = "demo-client-side-key";
pub const SERVER_SIDE_KEY: &str = "ser.demo-server-side-key";

/// `/demo/`: shows the demo's flags by means of the Flagsmith SDK.
/// `BASE_PATH` is replaced by `server.base_path`.
pub const PAGE: &str = include_str!("page.html");
/// `/demo/flagsmith.js`: the Flagsmith SDK, included because the demo must work without a network.
pub const SDK: &str = include_str!("flagsmith.js");

const DOCUMENT: &str = include_str!("environment.json");

/// The demo's environment, with the document at `document_path` if given.
pub fn environment(document_path: Option<PathBuf>) -> EnvironmentConfig {
    EnvironmentConfig {
        client_side_key: CLIENT_SIDE_KEY.to_owned(),
        server_side_key: Some(Secret::new(SERVER_SIDE_KEY)),
        embedded_document: document_path.is_none().then_some(DOCUMENT),
        document_path,
        ..EnvironmentConfig::default()
    }
}

/// The text printed at start: addresses, keys and example requests.
pub fn greeting(address: SocketAddr, admin: Option<SocketAddr>) -> String {
    let base = format!("http://{}/api/v1", reachable(address));
    let mut text = format!("The demo serves flags on {base}/\n\n");
    // Writing to a string cannot fail.
    let _ = writeln!(text, "  client-side key  {CLIENT_SIDE_KEY}");
    let _ = writeln!(text, "  server-side key  {SERVER_SIDE_KEY}");
    let _ = writeln!(text, "  in a browser     http://{}/demo/", reachable(address));
    if let Some(admin) = admin {
        let _ = writeln!(text, "  status page      http://{}/", reachable(admin));
    }
    let _ = writeln!(text, "\nTry:");
    let _ = writeln!(
        text,
        "  curl -H 'X-Environment-Key: {CLIENT_SIDE_KEY}' '{base}/flags/?feature=welcome_message'"
    );
    let _ = writeln!(
        text,
        "  curl -H 'X-Environment-Key: {CLIENT_SIDE_KEY}' '{base}/identities/?identifier=ada&feature=welcome_message'\n"
    );
    text
}
