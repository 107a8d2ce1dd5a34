//! The configuration file: bytes to a JSON object.
//!
//! In: a path. Out: the object, and the members that stand in it twice, or what is wrong with
//! the file and what to do. Invariant: nothing here knows a setting. Of a member that is given
//! twice the last counts, as in Python, and it is told: the first is seldom left there on purpose.
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::config::{ConfigError, ConfigIssue};
use crate::files;
use crate::files::Links;
use crate::limits::CONFIG_BYTES_MAX;

/// What stands in the file.
#[derive(Debug, Default)]
pub struct ConfigFile {
    pub object: Map<String, Value>,
    /// Paths of members that are given twice.
    pub repeated: Vec<String>,
}

/// Reads the file; `None` if it is not there and nobody named it.
///
/// # Errors
/// It cannot be read, or it is no JSON object.
pub fn read(path: &Path, is_named: bool) -> Result<Option<ConfigFile>, ConfigError> {
    let failed = |expected: String| ConfigError::of(ConfigIssue::file(path, expected));
    let bytes = match files::read(path, Links::Follow, CONFIG_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !is_named => return Ok(None),
        Err(error) => return Err(failed(readable(&error))),
    };
    let text = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes);
    match parse(text) {
        Ok((Value::Object(object), repeated)) => Ok(Some(ConfigFile { object, repeated })),
        Ok(_) => Err(failed("a JSON object".to_owned())),
        Err(error) => Err(failed(format!("valid JSON ({error}{})", hint(text, &error)))),
    }
}

/// What the file should be instead.
fn readable(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            format!("a file that is there ({error}); CONFIG_PATH or --config names it")
        }
        std::io::ErrorKind::PermissionDenied => {
            format!(
                "a file that this user may read ({error}); see its owner and mode, and those of its folder"
            )
        }
        _ => format!("a readable JSON file ({error})"),
    }
}

/// What people write who know other languages better.
fn hint(text: &[u8], error: &serde_json::Error) -> &'static str {
    let line = text.split(|byte| *byte == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let rest = line.get(error.column().saturating_sub(1)..).unwrap_or_default();
    match rest.first() {
        Some(b'/' | b'#') => "; JSON has no comments",
        Some(b'\'') => "; JSON text stands in double quotes",
        _ => "",
    }
}

fn parse(text: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let Strict { value, repeated } = serde_json::from_slice(text)?;
    Ok((value, repeated))
}

/// A value, and the members in it that are given twice, by their path from here.
struct Strict {
    value: Value,
    repeated: Vec<String>,
}

impl Strict {
    fn plain(value: impl Into<Value>) -> Self {
        Self { value: value.into(), repeated: Vec::new() }
    }
}

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Strict;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Strict, E> {
        Ok(Strict::plain(()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Strict, E> {
        Ok(Strict::plain(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Strict, E> {
        Ok(Strict::plain(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Strict, E> {
        Ok(Strict::plain(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Strict, E> {
        Ok(Strict::plain(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Strict, E> {
        Ok(Strict::plain(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Strict, A::Error> {
        let (mut values, mut repeated) = (Vec::new(), Vec::new());
        while let Some(item) = items.next_element::<Strict>()? {
            let at = format!("[{}]", values.len());
            repeated.extend(item.repeated.iter().map(|path| joined(&at, path)));
            values.push(item.value);
        }
        Ok(Strict { value: Value::Array(values), repeated })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Strict, A::Error> {
        let (mut object, mut repeated) = (Map::new(), Vec::new());
        while let Some((name, member)) = members.next_entry::<String, Strict>()? {
            repeated.extend(member.repeated.iter().map(|path| joined(&name, path)));
            if object.insert(name.clone(), member.value).is_some() {
                repeated.push(name);
            }
        }
        Ok(Strict { value: Value::Object(object), repeated })
    }
}

/// `server` and `port` is `server.port`; `pairs` and `[0]` is `pairs[0]`.
fn joined(parent: &str, path: &str) -> String {
    if path.starts_with('[') { format!("{parent}{path}") } else { format!("{parent}.{path}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_what_serde_json_makes_of_it_and_repetitions_are_told() {
        for text in
            [r#"{"a":[1,-1,1.5,"x",null,true,{"b":{}}],"c":12345678901234567890}"#, "[]", "1", "\"x\""]
        {
            let (value, repeated) = parse(text.as_bytes()).expect("JSON");
            assert_eq!(value, serde_json::from_str::<Value>(text).expect("JSON"));
            assert_eq!(repeated, [""; 0]);
        }
        let text = br#"{"a":1,"s":{"p":1,"q":[{"x":1,"x":2}],"p":2},"a":3}"#;
        let (value, repeated) = parse(text).expect("JSON");
        assert_eq!(value["a"], 3, "the last one counts");
        assert_eq!(repeated, ["s.q[0].x", "s.p", "a"]);
    }

    #[test]
    fn what_other_languages_have_is_told() {
        for (text, expected) in [
            ("{\n  // a comment\n}", "JSON has no comments"),
            ("{\"a\": 1 # one\n}", "JSON has no comments"),
            ("{'a': 1}", "double quotes"),
            ("{\"a\": 'x'}", "double quotes"),
        ] {
            let error = parse(text.as_bytes()).expect_err("no JSON");
            assert!(hint(text.as_bytes(), &error).contains(expected), "{text}: {error}");
        }
        let error = parse(b"{\"a\": 1,}").expect_err("no JSON");
        assert_eq!((error.to_string().contains("trailing comma"), hint(b"{\"a\": 1,}", &error)), (true, ""));
    }
}
