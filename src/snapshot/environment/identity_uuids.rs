//! Keeps each `identity_uuid` of a document that replaces another.
//!
//! Flagsmith's core generates them anew for each fetch of a document, so that no two fetches are equal and a
//! delta would contain all of them. Nothing reads them.
use hashbrown::HashMap;

use crate::engine::document::error::CompileError;
use crate::engine::document::raw_json::{DocumentPath, elements, members};
use crate::yielding;

/// The canonical document with the `identity_uuid` that each identity has in the canonical `before`.
/// Identities that are there more than once keep their own.
pub fn keep(canonical: String, before: &str) -> Result<String, CompileError> {
    let mut known: HashMap<&str, Option<&str>, foldhash::fast::RandomState> = HashMap::default();
    for (identifier, uuid) in identities(before)? {
        known.entry(identifier).and_modify(|known| *known = None).or_insert(Some(uuid));
        yielding::step();
    }
    let mut kept = String::with_capacity(canonical.len());
    let mut copied = 0;
    for (identifier, uuid) in identities(&canonical)? {
        yielding::step();
        let Some(before) = known.get(identifier).copied().flatten().filter(|before| *before != uuid) else {
            continue;
        };
        // Both are slices of the same text.
        let from = uuid.as_ptr() as usize - canonical.as_ptr() as usize;
        kept.push_str(&canonical[copied..from]);
        kept.push_str(before);
        copied = from + uuid.len();
    }
    if copied == 0 {
        return Ok(canonical);
    }
    kept.push_str(&canonical[copied..]);
    Ok(kept)
}

/// The identifier and the `identity_uuid` of each override, as they are written.
fn identities(canonical: &str) -> Result<Vec<(&str, &str)>, CompileError> {
    let mut found = Vec::new();
    let [overrides] = members(canonical, &DocumentPath::ROOT, ["identity_overrides"])?;
    let entries = overrides.map(|raw| elements(raw, &DocumentPath::ROOT)).and_then(Result::ok);
    for entry in entries.into_iter().flatten().filter(|entry| entry.starts_with('{')) {
        if let [Some(identifier), Some(uuid)] =
            members(entry, &DocumentPath::ROOT, ["identifier", "identity_uuid"])?
        {
            found.push((identifier, uuid));
        }
        yielding::step();
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_keep_their_uuid_and_new_ones_have_their_own() {
        let before = r#"{"identity_overrides":[{"identifier":"a","identity_uuid":"1"},{"identifier":"b","identity_uuid":null},{"identifier":"c","identity_uuid":"3"},{"identifier":"c","identity_uuid":"4"}]}"#;
        for (now, expected) in [
            (
                r#"{"identity_overrides":[{"identity_uuid":"11","identifier":"b"},{"x":1,"identifier":"a","identity_uuid":"12"},{"identifier":"d","identity_uuid":"13"}],"name":"n"}"#,
                r#"{"identity_overrides":[{"identity_uuid":null,"identifier":"b"},{"x":1,"identifier":"a","identity_uuid":"1"},{"identifier":"d","identity_uuid":"13"}],"name":"n"}"#,
            ),
            (
                r#"{"identity_overrides":[{"identifier":"c","identity_uuid":"14"},{"identifier":"a"},7]}"#,
                r#"{"identity_overrides":[{"identifier":"c","identity_uuid":"14"},{"identifier":"a"},7]}"#,
            ),
            (r#"{"identity_overrides":null}"#, r#"{"identity_overrides":null}"#),
            ("{}", "{}"),
        ] {
            assert_eq!(keep(now.to_owned(), before).unwrap(), expected);
        }
        assert_eq!(keep("{}".to_owned(), "{}").unwrap(), "{}");
    }
}
