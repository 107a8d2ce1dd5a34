//! Compares parsed bodies with recorded responses of FastAPI and pydantic (`tests/fixtures/identities`).
use super::*;
use crate::json::write;

struct Recorded {
    body: Vec<u8>,
    content_type: Option<String>,
    status: u16,
    answer: String,
}

fn recorded() -> Vec<Recorded> {
    let lines = include_str!("../../tests/fixtures/identities/bodies.jsonl").lines();
    lines
        .map(|line| {
            let (body, content_type, status, answer): (String, Option<String>, u16, String) =
                serde_json::from_str(line).unwrap();
            let answer = String::from_utf8(unhex(&answer)).unwrap();
            Recorded { body: unhex(&body), content_type, status, answer }
        })
        .collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn echo(identity: &Identity<'_>) -> String {
    let mut out = b"{\"identifier\":".to_vec();
    write::string(identity.identifier, &mut out);
    out.extend_from_slice(b",\"traits\":[");
    crate::identity::echo::write_all(identity.traits, &mut out);
    out.extend_from_slice(b"]}");
    String::from_utf8(out).unwrap()
}

/// The identity as the handler echoes it. Checks that the ready text equals the rendered traits.
fn answered(sent: &ParsedIdentity<'_>) -> String {
    let written = echo(&sent.identity);
    if let Some(ready) = sent.echo {
        assert!(written.ends_with(&format!("\"traits\":[{ready}]}}")), "{ready} {written}");
    }
    written
}

fn read(reader: &mut IdentityReader, body: &[u8], content_type: Option<&str>) -> (u16, String) {
    let mut body = body.to_vec();
    reader.read(&mut body, content_type.map(str::as_bytes), |sent| match sent {
        Ok(sent) => (200, answered(&sent)),
        Err(IdentityError::Invalid(detail) | IdentityError::Unwritable(detail)) => {
            (422, String::from_utf8(detail.body).unwrap())
        }
        Err(IdentityError::Unreadable) => {
            (400, String::from_utf8_lossy(IdentityError::UNREADABLE).into_owned())
        }
    })
}

/// The reason why a response may differ from the recorded one, if there is one.
fn difference(case: &Recorded, status: u16, answer: &str) -> Option<&'static str> {
    let body = String::from_utf8_lossy(&case.body);
    let is_big = |text: &str| text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 18);
    if is_transient(case) {
        // The same errors without that of the identifier, or 200 if it was the only one.
        let rest = serde_json::from_str::<serde_json::Value>(&case.answer).map_or(Vec::new(), |recorded| {
            let errors = recorded["detail"].as_array().cloned().unwrap_or_default();
            errors
                .into_iter()
                .filter(|error| error["loc"] != serde_json::json!(["body", "identifier"]))
                .collect()
        });
        let answered: serde_json::Value = serde_json::from_str(answer).unwrap();
        let same = match rest.is_empty() {
            true => status == 200 && !answer.starts_with(r#"{"identifier":"""#),
            false => status == 422 && answered["detail"] == serde_json::Value::Array(rest),
        };
        return same.then_some("differences.md 13");
    }
    let before_input = |text: &str| text.split("\"input\":").next().map(str::to_owned);
    match (case.status, status) {
        (422, 422) if answer.contains("...\"") && before_input(answer) == before_input(&case.answer) => {
            Some("differences.md 38")
        }
        (500, 200) if is_big(&body) && is_big(answer) => Some("differences.md 27"),
        (500, 422) if answer.contains("string_unicode") => Some("lone surrogate: 422 instead of 500"),
        (500, 422) if answer.contains("\"input\":") => {
            Some("quotes what json.dumps cannot encode: 422 instead of 500")
        }
        _ => None,
    }
}

/// An object without an identifier, or with an empty one.
fn is_transient(case: &Recorded) -> bool {
    let is_json = is_json(case.content_type.as_deref().map(str::as_bytes));
    let Ok(body) = validation_errors::body_value(&case.body, is_json) else { return false };
    let crate::python::json::PyValue::Dict(members) = body.root() else { return false };
    match members.get("identifier") {
        None | Some(crate::python::json::PyValue::Null) => true,
        Some(crate::python::json::PyValue::Text(text)) => text.text.is_empty(),
        Some(_) => false,
    }
}

#[test]
fn matches_recorded_responses_of_fastapi_and_pydantic() {
    let mut reader = IdentityReader::default();
    let (mut same, mut different, mut wrong) = (0, std::collections::BTreeMap::new(), Vec::new());
    for case in recorded() {
        let (status, answer) = read(&mut reader, &case.body, case.content_type.as_deref());
        if (status, &answer) == (case.status, &case.answer) {
            same += 1;
        } else if let Some(reason) = difference(&case, status, &answer) {
            *different.entry(reason).or_insert(0) += 1;
        } else {
            wrong.push(format!(
                "{:.200} as {:?}\n expected {} {:.300}\n answered {status} {answer:.300}",
                String::from_utf8_lossy(&case.body),
                case.content_type,
                case.status,
                case.answer
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong, {same} same, {different:?}\n{}",
        wrong.len(),
        wrong[..wrong.len().min(12)].join("\n")
    );
    assert!(same > 1900, "{same} same, {different:?}");
}

#[test]
fn simd_json_agrees_with_the_python_parser() {
    let mut reader = IdentityReader::default();
    let mut accepted = 0;
    for case in recorded().into_iter().filter(|case| is_json(case.content_type.as_deref().map(str::as_bytes)))
    {
        let mut body = case.body.clone();
        let (mut tape, mut traits) = (Tape(Vec::new()), Vec::new());
        if simd_json::fill_tape(&mut body, &mut reader.buffers, &mut tape).is_err() {
            continue;
        }
        let Some(identifier) = tape_identity(&tape.0, &mut traits) else { continue };
        accepted += 1;
        let plain = echo(&Identity { identifier, traits: &traits });
        let reference = parse_like_python(&case.body, true, |sent| sent.map(|sent| answered(&sent)));
        assert_eq!(reference, Ok(plain), "{:.200}", String::from_utf8_lossy(&case.body));
    }
    assert!(accepted > 300, "{accepted}");
}

/// The result of the fast path, if it accepts the body.
fn fast(body: &str) -> Option<(String, bool)> {
    let mut traits = Vec::new();
    let parsed = fast_path::parse(body, &mut traits)?;
    let identity = Identity { identifier: parsed.identifier, traits: &traits };
    Some((
        answered(&ParsedIdentity { identity, echo: parsed.echo, is_anonymous: false }),
        parsed.echo.is_some(),
    ))
}

#[test]
fn fast_path_agrees_with_the_python_parser() {
    let (mut accepted, mut echoed) = (0, 0);
    for case in recorded() {
        let Ok(body) = std::str::from_utf8(&case.body) else { continue };
        let Some((answer, is_echo)) = fast(body) else { continue };
        accepted += 1;
        echoed += usize::from(is_echo);
        let reference = parse_like_python(&case.body, true, |sent| sent.map(|sent| answered(&sent)));
        assert_eq!(reference, Ok(answer), "{body:.200}");
    }
    assert!(accepted > 150 && echoed > 25, "{accepted} {echoed}");
}

#[test]
fn fast_path_accepts_bodies_of_sdks() {
    let traits = r#"{"trait_key":"a","trait_value":1},{"trait_key":"é","trait_value":"x y"},{"trait_key":"c","trait_value":-12.5},{"trait_key":"d","trait_value":null},{"trait_key":"e","trait_value":1000000.0}"#;
    for (traits, is_echo) in [
        (traits.to_owned(), true),
        (String::new(), true),
        (traits.replace(',', ", "), false),
        (traits.replace(':', ": "), false),
        (traits.replace('}', ",\"transient\":true}"), false),
        (traits.replace("12.5", "12.50"), false),
        (traits.replace("12.5", "0.001"), false),
        (traits.replace("12.5", "1234567890.123456"), false),
        (traits.replace("12.5", "1234567890.12345"), true),
    ] {
        for body in [
            format!(r#"{{"identifier":"u","traits":[{traits}]}}"#),
            format!(r#"{{"identifier":"u","traits":[{traits}],"transient":false}}"#),
            format!("{{\"traits\" : [{traits}] ,\n \"identifier\": \"u\" }}\n"),
        ] {
            let (answer, echoed) = fast(&body).expect(&body);
            assert_eq!(echoed, is_echo, "{body}");
            let reference = parse_like_python(body.as_bytes(), true, |sent| sent.map(|sent| answered(&sent)));
            assert_eq!(reference, Ok(answer), "{body}");
        }
    }
}

#[test]
fn fast_path_declines_bodies_that_are_not_plain() {
    for (from, to) in [
        ("\"u\"", "\"\""),
        ("\"u\"", "\"\\u0075\""),
        ("\"u\"", "\"\n\""),
        ("\"u\"", "null"),
        ("\"k\"", "7"),
        (":1", ":01"),
        (":1", ":-0"),
        (":1", ":1e3"),
        (":1", ":1.5E3"),
        (":1", ":1."),
        (":1", ":.5"),
        (":1", ":+1"),
        (":1", ":-"),
        (":1", ":NaN"),
        (":1", ":1234567890123456789"),
        (":1", ":[1]"),
        (":1", ":{}"),
        (":1", ":1,"),
        (":1", ":1,\"trait_value\":2"),
        (":1", ":tru"),
        ("[{", "[,{"),
        ("}]", "},]"),
        ("}]", "}"),
        ("]}", "]"),
        ("]}", "],}"),
        ("]}", "]}x"),
        ("]}", "],\"traits\":[]}"),
        ("]}", "],\"identifier\":\"v\"}"),
    ] {
        let body = r#"{"identifier":"u","traits":[{"trait_key":"k","trait_value":1}]}"#;
        assert!(fast(body).is_some() && body.contains(from));
        let body = body.replace(from, to);
        assert!(fast(&body).is_none(), "{body}");
    }
}

#[test]
fn reuses_buffers_for_plain_bodies() {
    let mut reader = IdentityReader::default();
    let body = br#"{"identifier":"u","traits":[{"trait_key":"a","trait_value":1},{"trait_key":"b","trait_value":"\n"}]}"#;
    read(&mut reader, body, None);
    let (capacity, nodes) = (reader.traits.capacity(), reader.tape.0.capacity());
    let address = reader.traits.as_ptr();
    for _ in 0..10 {
        read(&mut reader, body, None);
    }
    assert!(capacity >= 2 && nodes > 2);
    assert_eq!(
        (reader.traits.capacity(), reader.tape.0.capacity(), reader.traits.as_ptr()),
        (capacity, nodes, address)
    );
}

#[test]
fn deep_nesting_is_accepted_to_the_limit_and_400_beyond() {
    let mut reader = IdentityReader::default();
    for (depth, status) in [(JSON_DEPTH_MAX - 1, 200), (JSON_DEPTH_MAX, 400), (500_000, 400)] {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let inner = if open == "[" { "" } else { "1" };
            let body = format!(
                "{{\"identifier\":\"u\",\"x\":{}{inner}{}}}",
                open.repeat(depth),
                close.repeat(depth)
            );
            assert_eq!(read(&mut reader, body.as_bytes(), None).0, status, "{depth} of {open}");
        }
    }
}

#[test]
fn identity_without_identifier_is_transient_as_in_core() {
    let mut reader = IdentityReader::default();
    // hashlib.sha256("a1.5bTruecxd10").hexdigest()
    let expected = "9c64c17d1f7adc75a219088a132ecdc3710ba7caff392ceac9dcb303581bd092";
    let traits = r#"[{"trait_key":"d","trait_value":10},{"trait_key":"b","trait_value":true},{"trait_key":"n","trait_value":null},{"trait_key":"a","trait_value":1.5},{"trait_key":"c","trait_value":"x"}]"#;
    let mut answers = Vec::new();
    for start in ["", r#""identifier":null,"#, r#""identifier":"","#] {
        let (status, answer) = read(&mut reader, format!("{{{start}\"traits\":{traits}}}").as_bytes(), None);
        assert_eq!(status, 200);
        answers.push(answer);
    }
    assert!(
        answers.iter().all(|answer| answer.starts_with(&format!("{{\"identifier\":\"{expected}\""))),
        "{answers:?}"
    );
    let (first, second) = (read(&mut reader, b"{}", None).1, read(&mut reader, b"{\"traits\":[]}", None).1);
    assert!(first != second && first.len() == r#"{"identifier":"","traits":[]}"#.len() + 32, "{first}");
}

#[test]
fn reports_lone_surrogates_only_without_other_errors() {
    let mut reader = IdentityReader::default();
    for (body, types) in [
        (r#"{"identifier":"\ud800","traits":[{"trait_key":"\udc00"}]}"#, &["string_unicode"; 2][..]),
        (
            r#"{"identifier":"\ud800","traits":[{"trait_key":"k","trait_value":"\ud800x"},7]}"#,
            &["model_attributes_type"],
        ),
        (r#"{"identifier":7,"traits":[{"trait_key":"k","trait_value":"\ud800x"}]}"#, &["string_type"]),
    ] {
        let (status, answer) = read(&mut reader, body.as_bytes(), None);
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        let found: Vec<&str> = answer["detail"]
            .as_array()
            .unwrap()
            .iter()
            .map(|error| error["type"].as_str().unwrap())
            .collect();
        assert_eq!((status, &found[..]), (422, types), "{body}");
    }
}

#[test]
fn strips_content_type_like_python() {
    for (content_type, expected) in [
        (&b"\xa0application/json\x85;x"[..], true),
        (b"\t application/json\x0b", true),
        (b"\x1capplication/x+json\x1f", true),
        (b"\xadapplication/json", false),
        (b"application/ json", false),
        (b"\xa0", false),
    ] {
        assert_eq!(is_json(Some(content_type)), expected, "{content_type:?}");
    }
}

#[test]
fn accepts_typed_trait_values() {
    let mut reader = IdentityReader::default();
    for (typed, expected) in [
        (r#"{"value":"a","type":"string"}"#, Some(r#""a""#)),
        (r#"{"value":"1.2.3","type":"semver"}"#, Some(r#""1.2.3""#)),
        (r#"{"type":"unicode","value":"x"}"#, Some(r#""x""#)),
        (r#"{"value":"1.50","type":"decimal"}"#, Some("1.5")),
        (r#"{"value":"10","type":"decimal"}"#, Some("10")),
        (r#"{"value":"1E+3","type":"decimal"}"#, Some("1000.0")),
        (r#"{"value":7,"type":"decimal"}"#, Some("7")),
        (r#"{"value":"99999999999999999999","type":"decimal"}"#, Some("99999999999999999999")),
        (r#"{"value":"true","type":"boolean"}"#, Some("true")),
        (r#"{"value":false,"type":"boolean"}"#, Some("false")),
        (r#"{"value":null,"type":"string"}"#, Some("null")),
        (r#"{"value":"ten","type":"decimal"}"#, None),
        (r#"{"value":1,"type":"string"}"#, None),
        (r#"{"value":1,"type":"colour"}"#, None),
        (r#"{"value":1}"#, None),
    ] {
        let body = format!(r#"{{"identifier":"u","traits":[{{"trait_key":"t","trait_value":{typed}}}]}}"#);
        let (status, answer) = read(&mut reader, body.as_bytes(), None);
        match expected {
            Some(value) => {
                let traits = format!(r#""traits":[{{"trait_key":"t","trait_value":{value}}}]"#);
                assert!(status == 200 && answer.contains(&traits), "{typed} {answer}");
            }
            None => assert!(status == 422 && answer.contains("bool_type"), "{typed} {answer}"),
        }
    }
}

#[test]
fn decodes_queries_like_starlette() {
    for (query, expected) in [
        ("identifier=u1", Some("u1")),
        ("identifier=a&identifier=b", Some("b")),
        ("identifier=a+b%2Bc", Some("a b+c")),
        ("identifier=%ff", Some("\u{fffd}")),
        ("identifier=%F0%9F%98%80%", Some("\u{1f600}%")),
        ("identifier=", Some("")),
        ("identifier", Some("")),
        ("%69dentifier=x", Some("x")),
        ("identifier=a=b;c", Some("a=b;c")),
        ("&&x=1", None),
        ("", None),
    ] {
        assert_eq!(query::parameter(query.as_bytes(), "identifier").as_deref(), expected, "{query}");
    }
}
