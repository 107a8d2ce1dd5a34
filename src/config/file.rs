//! The configuration file: a JSON object, with the lines of its values and repeated names.
//!
//! The last of several members with one name is used, as in Python, and reported: a repetition is rarely
//! intended.
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::config::issue::{ConfigError, ConfigIssue};
use crate::files;
use crate::files::Links;
use crate::limits::CONFIG_BYTES_MAX;

#[derive(Debug, Default)]
pub struct ConfigFile {
    pub object: Map<String, Value>,
    /// Paths of members whose name occurs more than once in their object.
    pub repeated: Vec<String>,
    /// The line of each value, counted from 1, by its path (`environment_key_pairs[0].client_side_key`).
    pub lines: HashMap<String, usize>,
}

/// Reads the file. Returns `None` if it does not exist and `is_named` is false.
///
/// # Errors
/// The file cannot be read or is not a JSON object.
pub fn read(path: &Path, is_named: bool) -> Result<Option<ConfigFile>, ConfigError> {
    let invalid = |expected: String| ConfigError::from(ConfigIssue::file(path, expected));
    let bytes = match files::read(path, Links::Follow, CONFIG_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !is_named => return Ok(None),
        Err(error) => return Err(invalid(expected_file(&error))),
    };
    let text = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes);
    match parse(text) {
        Ok((Value::Object(object), MemberIndex { lines, repeated })) => {
            Ok(Some(ConfigFile { object, repeated, lines }))
        }
        Ok(_) => Err(invalid("a JSON object".to_owned())),
        Err(error) => Err(invalid(format!("valid JSON ({error}{})", hint(text, &error)))),
    }
}

fn expected_file(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            format!("an existing file ({error}; it is set by --config or CONFIG_PATH)")
        }
        std::io::ErrorKind::PermissionDenied => {
            format!(
                "a file that this user may read ({error}; check owner and mode of the file and its directories)"
            )
        }
        _ => format!("a readable JSON file ({error})"),
    }
}

/// Explains syntax of other languages that JSON does not have.
fn hint(text: &[u8], error: &serde_json::Error) -> &'static str {
    let line = text.split(|byte| *byte == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let rest = line.get(error.column().saturating_sub(1)..).unwrap_or_default();
    match rest.first() {
        Some(b'/' | b'#') => "; JSON has no comments",
        Some(b'\'') => "; JSON strings need double quotes",
        _ => "",
    }
}

fn parse(text: &[u8]) -> Result<(Value, MemberIndex), serde_json::Error> {
    // Parsed first, because serde_json limits the depth of a value but not that of a `RawValue`.
    let value: Value = serde_json::from_slice(text)?;
    let mut members = MemberIndex::default();
    if let Ok(raw) = serde_json::from_slice(text) {
        LineCounter { text, offset: 0, line: 1 }.visit("", raw, &mut members);
    }
    Ok((value, members))
}

/// What [`Value`] does not keep of a document.
#[derive(Debug, Default)]
struct MemberIndex {
    lines: HashMap<String, usize>,
    repeated: Vec<String>,
}

/// Counts line feeds up to a value. Values are visited in the order of the text, so each byte is counted
/// once.
struct LineCounter<'t> {
    text: &'t [u8],
    offset: usize,
    line: usize,
}

impl<'t> LineCounter<'t> {
    /// The line of a value, which is a part of the text.
    fn line_of(&mut self, value: &'t RawValue) -> usize {
        let offset = (value.get().as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize);
        let between = self.text.get(self.offset..offset).unwrap_or_default();
        self.line += between.iter().filter(|byte| **byte == b'\n').count();
        self.offset = offset.max(self.offset);
        self.line
    }

    fn visit(&mut self, path: &str, value: &'t RawValue, members: &mut MemberIndex) {
        members.lines.insert(path.to_owned(), self.line_of(value));
        match value.get().as_bytes().first() {
            Some(b'{') => {
                let mut seen = HashSet::new();
                let RawObject(object) = serde_json::from_str(value.get()).unwrap_or_default();
                for (name, member) in object {
                    let member_path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    self.visit(&member_path, member, members);
                    if !seen.insert(name) {
                        members.repeated.push(member_path);
                    }
                }
            }
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(value.get()).unwrap_or_default();
                for (index, item) in items.into_iter().enumerate() {
                    self.visit(&format!("{path}[{index}]"), item, members);
                }
            }
            _ => {}
        }
    }
}

/// All members of an object in their order, repeated names included.
#[derive(Default)]
struct RawObject<'t>(Vec<(String, &'t RawValue)>);

impl<'de> Deserialize<'de> for RawObject<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawObjectVisitor)
    }
}

struct RawObjectVisitor;

impl<'de> Visitor<'de> for RawObjectVisitor {
    type Value = RawObject<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<RawObject<'de>, A::Error> {
        let mut object = Vec::new();
        while let Some(member) = members.next_entry()? {
            object.push(member);
        }
        Ok(RawObject(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_serde_json_and_repeated_members_are_reported() {
        for text in
            [r#"{"a":[1,-1,1.5,"x",null,true,{"b":{}}],"c":12345678901234567890}"#, "[]", "1", "\"x\""]
        {
            let (value, members) = parse(text.as_bytes()).expect("JSON");
            assert_eq!(value, serde_json::from_str::<Value>(text).expect("JSON"));
            assert_eq!(members.repeated, [""; 0]);
        }
        let text = br#"{"a":1,"s":{"p":1,"q":[{"x":1,"x":2}],"p":2},"a":3}"#;
        let (value, members) = parse(text).expect("JSON");
        assert_eq!(value["a"], 3, "the last one is used");
        assert_eq!(members.repeated, ["s.q[0].x", "s.p", "a"]);
    }

    #[test]
    fn lines_of_values_are_found() {
        let text = b"\n{\"a\": 1,\n \"s\": {\n  \"p\":\n   [{\"x\": 1}, {\n\"x\": 2}]}, \"a\": 2}";
        let (_, members) = parse(text).expect("JSON");
        for (path, line) in
            [("", 2), ("s", 3), ("s.p", 5), ("s.p[0]", 5), ("s.p[0].x", 5), ("s.p[1].x", 6), ("a", 6)]
        {
            assert_eq!(members.lines.get(path), Some(&line), "{path}");
        }
    }

    #[test]
    fn deep_nesting_is_an_error() {
        let deep = "[".repeat(200_000) + &"]".repeat(200_000);
        assert!(parse(deep.as_bytes()).is_err());
    }

    #[test]
    fn syntax_of_other_languages_is_explained() {
        for (text, expected) in [
            ("{\n  // a comment\n}", "JSON has no comments"),
            ("{\"a\": 1 # one\n}", "JSON has no comments"),
            ("{'a': 1}", "double quotes"),
            ("{\"a\": 'x'}", "double quotes"),
        ] {
            let error = parse(text.as_bytes()).expect_err("invalid JSON");
            assert!(hint(text.as_bytes(), &error).contains(expected), "{text}: {error}");
        }
        let error = parse(b"{\"a\": 1,}").expect_err("invalid JSON");
        assert_eq!((error.to_string().contains("trailing comma"), hint(b"{\"a\": 1,}", &error)), (true, ""));
    }
}
