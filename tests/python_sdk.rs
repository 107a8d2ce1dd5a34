//! Flagsmith's own Python SDK, unchanged, pointed at the running executable.
//!
//! Behind the proxy stands `Main.json`, a document of a running Flagsmith. The SDK asks twice for
//! each of 50 identities: the proxy evaluates (remote), or the SDK does from the document that the
//! proxy serves (local). Both must say the same.
use crate::support::{Start, fixture, python};

#[test]
fn remote_and_local_evaluation_agree_for_50_identities() {
    let document = fixture::path("environments/Main.json");
    let key = "93SWrghdRQbEPS5xXUWWwM";
    let proxy = Start::serve().document(key, "ser.python-sdk", document).ready();
    let said = python::run("sdk.py", &[&proxy.api_url(), "ser.python-sdk"]);
    assert!(said.contains("50 identities agree"), "{said}");
}
