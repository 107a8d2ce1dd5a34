//! Data from upstream besides documents, selected by the first byte.
use std::hint::black_box;

use edge_proxy::supervisor::realtime::EventParser;
use edge_proxy::upstream::{pagination, parse_discovered, url};
use http::Uri;
use serde_json::Value as Json;

/// `e` an event stream, `l` a `Link` field, `d` the environments to serve, `p` pages, one a line.
pub fn upstream(data: &[u8]) {
    let Some((&kind, rest)) = data.split_first() else { return };
    match kind {
        b'e' => events(rest),
        b'l' => links(&String::from_utf8_lossy(rest)),
        b'd' => drop(black_box(parse_discovered(rest).is_ok())),
        b'p' => merged(rest),
        _ => {}
    }
}

/// The events of a stream do not depend on its segmentation.
fn events(stream: &[u8]) {
    let read = |piece_bytes: usize| {
        let (mut events, mut found) = (EventParser::default(), Vec::new());
        let whole =
            stream.chunks(piece_bytes).all(|piece| events.feed(piece, |time| found.push(time.to_bits())));
        (whole, found)
    };
    let whole = read(stream.len().max(1));
    assert_eq!(whole, read(1));
    assert_eq!(whole, read(7));
}

/// A link resolves to an HTTP address, and an absolute one to itself.
fn links(field: &str) {
    let base = Uri::from_static("https://edge.example/api/v1/environment-document/?a=b");
    let Some(target) = url::next(field) else { return };
    let Some(address) = url::resolve(&base, target) else { return };
    assert!(matches!(address.scheme_str(), Some("http" | "https")) && address.host().is_some(), "{field}");
    if url::same_origin(&base, &address) {
        assert_eq!(address.host().map(str::to_ascii_lowercase).as_deref(), Some("edge.example"), "{field}");
    }
    black_box(url::origin(&address));
}

/// Merged pages equal the first page with the overrides of all pages, compared as JSON values where possible.
fn merged(text: &[u8]) {
    let mut pages = text.split(|&byte| byte == b'\n').map(<[u8]>::to_vec);
    let Some(first) = pages.next() else { return };
    let later: Vec<Vec<u8>> = pages.collect();
    let Ok(merged) = pagination::merge(first.clone(), &later) else { return };
    let read = |page: &[u8]| serde_json::from_slice::<Json>(page).ok();
    let all: Option<Vec<Json>> = std::iter::once(&first).chain(&later).map(|page| read(page)).collect();
    let Some(mut all) = all.filter(|all| all.len() > 1) else { return };
    let mut overrides: Vec<Json> = Vec::new();
    for page in &mut all {
        if let Some(Json::Array(items)) = page.get_mut("identity_overrides") {
            overrides.append(items);
        }
    }
    let mut expected = all.swap_remove(0);
    expected["identity_overrides"] = Json::Array(overrides);
    assert_eq!(read(&merged), Some(expected), "{}", String::from_utf8_lossy(text));
}
