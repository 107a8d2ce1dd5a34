//! Flagsmith's Python SDK, unchanged, with the running executable as its API.
//!
//! The proxy serves `Main.json`, a document of a running Flagsmith. The SDK evaluates the flags of 50 identities
//! twice: remotely, by the proxy, and locally, from the document that the proxy serves. The results must agree.
use crate::support::{Start, fixture, python};

#[test]
fn remote_and_local_evaluation_agree_for_50_identities() {
    let document = fixture::path("environments/Main.json");
    let key = "93SWrghdRQbEPS5xXUWWwM";
    let proxy = Start::serve().document(key, "ser.python-sdk", document).ready();
    let printed = python::run("sdk.py", &[&proxy.api_url(), "ser.python-sdk"]);
    assert!(printed.contains("50 identities agree"), "{printed}");
}
