//! `edge-proxy demo`: flags to play with, without an account, a network or a configuration.
//!
//! In: the address it is served on. Out: the environment to serve and the text that tells how to
//! ask for it. Invariant: the document is an ordinary environment document, polled from nowhere
//! and compiled like any other; of the demo the data plane knows but its page, which it serves
//! as it is where the demo's key is served.
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::{EnvironmentConfig, Secret, reachable};

/// For browsers and apps; the `api_key` of the document.
pub const CLIENT_SIDE_KEY: &str = "demo-client-side-key";
/// For servers; sees every feature and may fetch the document.
pub const SERVER_SIDE_KEY: &str = "ser.demo-server-side-key";

/// `/demo/`: the demo's flags in a browser, through Flagsmith's own SDK.
pub const PAGE: &str = include_str!("page.html");
/// `/demo/flagsmith.js`: that SDK, since the demo needs no network.
pub const SDK: &str = include_str!("flagsmith.js");

const DOCUMENT: &str = include_str!("environment.json");

/// The demo's environment, from the program itself or from a file that people edit.
pub fn environment(document_path: Option<PathBuf>) -> EnvironmentConfig {
    EnvironmentConfig {
        client_side_key: CLIENT_SIDE_KEY.to_owned(),
        server_side_key: Some(Secret::new(SERVER_SIDE_KEY)),
        embedded_document: document_path.is_none().then_some(DOCUMENT),
        document_path,
        ..EnvironmentConfig::default()
    }
}

/// What is printed at start: where, with which keys, and what to type.
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
