//! All 204 requests that were recorded with the Python proxy, sent to the running executable.
//!
//! Each response equals the recorded one (status, body, significant fields), or this file lists the difference
//! for that case. Responses of `identities/` are compared without `variant` and `reason`, which the recorded
//! engine did not send (differences.md 17). The recordings are not part of this repository; `EDGE_PROXY_SHARED`
//! is their directory.
use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::support::{Answer, Client, Proxy, Start, fixture};

#[derive(Debug)]
struct Case {
    group: String,
    name: String,
    command: String,
    /// As recorded: complete or truncated.
    body: Option<Vec<u8>>,
    status: u16,
    headers: Vec<(String, String)>,
    answer: Vec<u8>,
}

/// A recorded response that was truncated: its length and the start of its SHA-256.
#[derive(Debug, PartialEq)]
struct Cut {
    length: usize,
    digest: String,
}

/// An allowed difference of a case.
enum Instead {
    /// This status, and a body that contains this text.
    Answer(u16, &'static str),
    /// The recorded response except for these fields, which are compared with the text.
    Fields(&'static str, &'static str),
    /// The recorded response of another case, by group and name.
    As(&'static str, &'static str),
}

/// Every case that differs, and why. The numbers are those of differences.md.
const DIFFERENCES: &[(&str, &str, &str, Instead)] = {
    use Instead::{Answer, As, Fields};
    const FLAGS: &str = "GET /api/v1/flags/";
    const POST: &str = "POST /api/v1/identities/";
    const GET: &str = "GET /api/v1/identities/";
    const DOCUMENT: &str = "GET /api/v1/environment-document";
    const OVERRIDE: &str = r#""feature_state_value":"#;
    &[
        (FLAGS, "missing key header", "2", Answer(401, r#"{"status":"unauthorized","message":"missing key"#)),
        (FLAGS, "key in query string instead of header", "2", Answer(401, "missing key")),
        (FLAGS, "WITHOUT trailing slash", "15", As(FLAGS, "ok, client key")),
        (FLAGS, "without trailing slash, with query", "15", As(FLAGS, "?feature=existing")),
        (
            FLAGS,
            "without trailing slash, Host: evil.example (redirect target)",
            "15",
            As(FLAGS, "ok, client key"),
        ),
        (FLAGS, "If-None-Match / If-Modified-Since ignored?", "22", Answer(304, "")),
        (FLAGS, "method POST", "16: HEAD is served", Fields("allow", "GET, HEAD")),
        (FLAGS, "method PUT", "16: HEAD is served", Fields("allow", "GET, HEAD")),
        (FLAGS, "method PATCH", "16: HEAD is served", Fields("allow", "GET, HEAD")),
        (FLAGS, "method DELETE", "16: HEAD is served", Fields("allow", "GET, HEAD")),
        (
            POST,
            "identity override value -1",
            "8: hash(-1) is hash(-2) there",
            Answer(200, r#""name":"int_flag","type":"STANDARD"},"enabled":true,"feature_state_value":-1"#),
        ),
        (
            POST,
            "identity override value true (1==True grouping)",
            "8",
            Answer(200, r#""name":"int_flag","type":"STANDARD"},"enabled":true,"feature_state_value":true"#),
        ),
        (POST, "without trailing slash", "15", Answer(200, r#"{"identifier":"u1","traits":[],"flags":[{"#)),
        (POST, "missing identifier", "13", Answer(200, OVERRIDE)),
        (POST, "identifier null", "13", Answer(200, OVERRIDE)),
        (POST, "identifier empty string", "13", Answer(200, OVERRIDE)),
        (
            POST,
            "identifier lone surrogate",
            "500 there: 422 here",
            Answer(422, r#""type":"string_unicode","loc":["body","identifier"]"#),
        ),
        (
            POST,
            "trait_value {type,value} object (Core API form)",
            "14",
            Answer(200, r#""traits":[{"trait_key":"t","trait_value":"x"}]"#),
        ),
        (
            POST,
            "trait_value [NaN] (invalid type AND NaN echoed in 422)",
            "500 there: 422 here",
            Answer(422, r#""msg":"Input should be a valid boolean","input":[null]"#),
        ),
        (POST, "trait_value 2^64", "27", Answer(200, r#""trait_value":18446744073709551616}"#)),
        (POST, "trait_value 10^30", "27", Answer(200, r#""trait_value":1000000000000000000000000000000}"#)),
        (
            POST,
            "trait_value lone surrogate",
            "500 there: 422 here",
            Answer(422, r#""type":"string_unicode","loc":["body","traits",0,"trait_value"]"#),
        ),
        (
            POST,
            "identifier 5000 chars",
            "40",
            Answer(422, r#""type":"string_too_long","loc":["body","identifier"]"#),
        ),
        (
            POST,
            "trait_value 2001-char string",
            "38",
            Answer(422, r#"...","ctx":{"max_length":2000,"actual_length":2001}"#),
        ),
        (POST, "5 MB body (one huge unknown field)", "limit: a body has at most 1 MiB", Answer(413, "{")),
        (
            POST,
            "Content-Encoding: gzip request body",
            "gzip bodies are read",
            Answer(200, r#"{"identifier":"u1","#),
        ),
        (POST, "unknown key, bad body (which error wins?)", "13", Answer(401, "unknown key 'nope'")),
        (POST, "missing key, good body", "2", Answer(401, "missing key")),
        (POST, "missing key, bad body", "13, 2", Answer(401, "missing key")),
        (
            POST,
            "MODULO '0|0' segment with numeric trait",
            "5",
            Answer(200, r#""traits":[{"trait_key":"modtrait","trait_value":4}]"#),
        ),
        (
            POST,
            "invalid REGEX segment with trait set",
            "5",
            Answer(200, r#""traits":[{"trait_key":"badre","trait_value":"x"}]"#),
        ),
        (GET, "missing key", "2", Answer(401, "missing key")),
        (GET, "without trailing slash", "15", As(GET, "ok")),
        (GET, "DELETE method", "16: HEAD is served", Fields("allow", "GET, HEAD, POST")),
        (
            DOCUMENT,
            "server key",
            "28",
            Answer(200, r#"{"id":3,"name":"Quirks","api_key":"QuirksClientKey0000000","#),
        ),
        (
            DOCUMENT,
            "CLIENT key (leaks the full document incl. server-key-only feature?)",
            "1",
            Answer(401, "unknown key 'QuirksClientKey0000000'"),
        ),
        (DOCUMENT, "no key", "2", Answer(401, "missing key")),
        (
            DOCUMENT,
            "with trailing slash (what SDKs in local evaluation mode call)",
            "15",
            Answer(200, r#"{"id":3,"#),
        ),
        (DOCUMENT, "with trailing slash, follow redirects", "15", Answer(200, r#"{"id":3,"#)),
        (DOCUMENT, "with ?page_id=", "28", Answer(200, r#"{"id":3,"#)),
        (DOCUMENT, "POST", "16: HEAD is served", Fields("allow", "GET, HEAD")),
        (
            "Health",
            "/health",
            "25",
            Answer(200, r#"{"status":"ok","reason":null,"last_successful_update":"20"#),
        ),
        ("Health", "/health/ (trailing slash)", "15", Answer(200, r#"{"status":"ok","reason":null,"#)),
        ("Health", "/proxy/health", "25", Answer(200, r#"{"status":"ok","reason":null,"#)),
        ("Health", "/proxy/health/ (trailing slash)", "15", Answer(200, r#"{"status":"ok","reason":null,"#)),
        ("Health", "/proxy/health/readiness", "25", Answer(200, r#"{"status":"ok","reason":null,"#)),
        (
            "Health",
            "/proxy/health/readiness/ (trailing slash)",
            "15",
            Answer(200, r#"{"status":"ok","reason":null,"#),
        ),
        ("Health", "/proxy/health/liveness/ (trailing slash)", "15", As("Health", "/proxy/health/liveness")),
        ("Health", "POST /proxy/health", "16: HEAD is served", Fields("allow", "GET, HEAD")),
        (
            "CORS",
            "OPTIONS with Origin, without Access-Control-Request-Method",
            "16: HEAD is served",
            Fields("allow", "GET, HEAD"),
        ),
        ("CORS", "OPTIONS without Origin", "16: HEAD is served", Fields("allow", "GET, HEAD")),
        ("CORS", "Origin on a 500 (missing key)", "2", Answer(401, "missing key")),
        ("CORS", "Origin on a redirect", "15", As(FLAGS, "ok, client key")),
        ("CORS", "Origin on a 422", "13", Answer(200, OVERRIDE)),
        ("CORS", "Origin on environment-document", "28", Answer(200, r#"{"id":3,"#)),
        (
            "Compression",
            "Accept-Encoding: gzip;q=0",
            "RFC 9110 12.5.3: it says no",
            As("Compression", "flags identity (no Accept-Encoding)"),
        ),
        ("HEAD", "HEAD /api/v1/flags/", "16", Answer(200, "")),
        ("HEAD", "HEAD /api/v1/identities/?identifier=u1", "16", Answer(200, "")),
        ("HEAD", "HEAD /api/v1/environment-document", "16", Answer(200, "")),
        ("HEAD", "HEAD /health", "16", Answer(200, "")),
        ("HEAD", "HEAD /proxy/health", "16", Answer(200, "")),
        ("HEAD", "HEAD /proxy/health/readiness", "16", Answer(200, "")),
        ("HEAD", "HEAD /proxy/health/liveness", "16", Answer(200, "")),
        ("Other paths", "POST /api/v1/analytics/flags/", "19", Answer(200, "{}")),
        ("Other paths", "GET /api/v1/traits/", "21", Answer(405, r#"{"detail":"Method Not Allowed"}"#)),
        ("Other paths", "POST /api/v1/traits/", "21", Answer(200, r#""trait_key":"a","trait_value":1}"#)),
        ("Other paths", "GET /docs", "a page that loads nothing from elsewhere", Answer(200, "openapi.json")),
        (
            "Other paths",
            "GET /redoc",
            "a page that loads nothing from elsewhere",
            Answer(200, "openapi.json"),
        ),
        ("Other paths", "GET /openapi.json", "it describes this proxy", Answer(200, r#""openapi": "3.1.0""#)),
        (
            "Other paths",
            "GET /docs/oauth2-redirect",
            "a part of Swagger UI",
            Answer(404, r#"{"detail":"Not Found"}"#),
        ),
        ("Other paths", "GET /", "56", Answer(200, r#"{"name":"edge-proxy","description""#)),
        ("HTTP", "100 KB header", "limit: a head has at most 16 KiB", Answer(431, "{")),
    ]
};

#[test]
fn answers_as_recorded_or_as_documented_differences() {
    let Some(recordings) = fixture::shared("recordings/python-edge-proxy-2.23.md") else { return };
    let Some(documents) = fixture::shared("profiles") else { return };
    let text = std::fs::read(recordings).expect("the recordings");
    let cases = parse(&text);
    let proxies = [start(&documents, &["*"]), start(&documents, &["https://ok.example"])];
    let recorded: BTreeMap<(&str, &str), &Case> =
        cases.iter().map(|case| ((case.group.as_str(), case.name.as_str()), case)).collect();
    assert_eq!(cases.len(), 210, "204 requests and 6 with an allow list");
    let (mut wrong, mut same, mut different) = (Vec::new(), 0, 0);
    for case in &cases {
        let answer = send(&proxies[usize::from(case.group.starts_with("CORS with allow_origins"))], case);
        let named = DIFFERENCES.iter().find(|(group, name, ..)| *group == case.group && *name == case.name);
        let outcome = match named {
            None => compare(case, &answer, &[]).map(|()| same += 1),
            Some((_, _, _, instead)) => allowed(case, &answer, instead, &recorded).map(|()| different += 1),
        };
        if let Err(problem) = outcome {
            let why = named.map_or("", |(_, _, why, _)| why);
            wrong.push(format!("{} / {} {why}\n  {}\n  {problem}", case.group, case.name, case.command));
        }
    }
    for (group, name, ..) in DIFFERENCES {
        assert!(recorded.contains_key(&(*group, *name)), "no such case: {group} / {name}");
    }
    let ran = same + different;
    fixture::say(&format!("replay: {ran} of 210 ran: {same} as recorded, {different} named differences"));
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// Serves the documents of the recordings.
fn start(documents: &Path, origins: &[&str]) -> Proxy {
    let file = |name: &str| documents.join(name);
    Start::serve()
        .document("QuirksClientKey0000000", "ser.quirks0000000000000000", file("quirks.json"))
        .document("HiddenClientKey0000000", "ser.hidden0000000000000000", file("hidden.json"))
        .document("ComplexClientKey000000", "ser.complex000000000000000", file("heavy.json"))
        .set("allow_origins", origins.to_vec())
        .ready()
}

// --- comparing ---

fn allowed(
    case: &Case,
    answer: &Answer,
    instead: &Instead,
    recorded: &BTreeMap<(&str, &str), &Case>,
) -> Result<(), String> {
    match instead {
        Instead::Answer(status, text) => {
            let body = String::from_utf8_lossy(&answer.body);
            let head_is_empty = !case.command.contains(" -I ") || answer.body.is_empty();
            (answer.status == *status && body.contains(text) && head_is_empty)
                .then_some(())
                .ok_or_else(|| format!("expected {status} with {text}\n  got {} {body:.400}", answer.status))
        }
        Instead::Fields(name, value) => {
            if answer.header(name) != Some(value) {
                return Err(format!("{name}: expected {value}, got {:?}", answer.header(name)));
            }
            compare(case, answer, &[name])
        }
        Instead::As(group, name) => {
            let other = recorded.get(&(*group, *name)).ok_or("no such case")?;
            let ignored: &[&str] = if case.command.contains("Origin:") {
                &["access-control-allow-origin", "access-control-allow-credentials"]
            } else {
                &[]
            };
            compare(other, answer, ignored)
        }
    }
}

/// The significant fields. `vary` may name more than the recorded one (differences.md 22).
const FIELDS: [&str; 9] = [
    "content-type",
    "content-encoding",
    "allow",
    "access-control-allow-origin",
    "access-control-allow-methods",
    "access-control-allow-headers",
    "access-control-allow-credentials",
    "access-control-max-age",
    "location",
];

fn compare(case: &Case, answer: &Answer, ignored: &[&str]) -> Result<(), String> {
    if answer.status != case.status {
        return Err(format!("status {}, got {}: {:.300}", case.status, answer.status, answer.text()));
    }
    for name in FIELDS.iter().filter(|name| !ignored.contains(*name)) {
        let expected = case.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
        if answer.header(name) != expected {
            return Err(format!("{name}: expected {expected:?}, got {:?}", answer.header(name)));
        }
    }
    for (_, value) in case.headers.iter().filter(|(name, _)| name == "vary") {
        if !answer.headers.iter().any(|(name, found)| name == "vary" && found.contains(value)) {
            return Err(format!("vary does not name {value}"));
        }
    }
    if case.command.contains(" -I ") {
        return answer.body.is_empty().then_some(()).ok_or_else(|| "a body after HEAD".to_owned());
    }
    let plain = without_reasons(&answer.plain());
    let (expected, cut) = split_cut(&case.answer);
    match cut {
        // Compressed bytes differ by compressor; the plain bytes do not.
        _ if answer.header("content-encoding").is_some() => Ok(()),
        None if plain == expected => Ok(()),
        Some(cut) if plain.len() == cut.length && digest(&plain).starts_with(&cut.digest) => Ok(()),
        _ => Err(format!(
            "expected {:.600}\n  got    {:.600}",
            String::from_utf8_lossy(expected),
            String::from_utf8_lossy(&plain)
        )),
    }
}

/// Removes `,"variant":...,"reason":"..."` from each flag.
pub fn without_reasons(body: &[u8]) -> Vec<u8> {
    let mut rest = String::from_utf8_lossy(body).into_owned();
    let mut kept = String::new();
    while let Some(at) = rest.find(",\"variant\":") {
        let Some(end) = rest[at..].find("\"}") else { break };
        kept.push_str(&rest[..at]);
        rest = rest[at + end + 1..].to_owned();
    }
    (kept + &rest).into_bytes()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Splits the recorder's note from a truncated body.
fn split_cut(body: &[u8]) -> (&[u8], Option<Cut>) {
    const NOTE: &[u8] = "\n… <truncated; body is ".as_bytes();
    const BINARY: &[u8] = b"<binary ";
    let (start, note) = match body.windows(NOTE.len()).rposition(|window| window == NOTE) {
        Some(at) => (&body[..at], &body[at + NOTE.len()..]),
        None if body.starts_with(BINARY) => (&body[..0], &body[BINARY.len()..]),
        None if body.starts_with(&NOTE[1..]) => (&body[..0], &body[NOTE.len() - 1..]),
        None => return (body, None),
    };
    let note = String::from_utf8_lossy(note);
    let length = note.split(' ').next().and_then(|length| length.parse().ok()).expect("a length");
    let digest = note.split("sha256 ").nth(1).expect("a digest").chars().take(16).collect();
    (start, Some(Cut { length, digest }))
}

// --- sending ---

/// Sends a case as `curl` sent it.
fn send(proxy: &Proxy, case: &Case) -> Answer {
    let mut method = None;
    let mut headers: Vec<(String, String)> = Vec::new();
    let mut target = String::new();
    let mut has_body = false;
    let mut version = "1.1";
    let words = words(&case.command);
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "-X" => method = words.next().map(str::to_owned),
            "-I" => method = Some("HEAD".to_owned()),
            "--http1.0" => version = "1.0",
            "--max-time" => drop(words.next()),
            "--data-binary" => {
                has_body = true;
                words.next();
            }
            "-H" => headers.push(header(words.next().unwrap_or_default())),
            _ => {
                if let Some(path) = word.strip_prefix("$B") {
                    path.clone_into(&mut target);
                }
            }
        }
    }
    let body = if has_body { body(case) } else { Vec::new() };
    let named = |headers: &[(String, String)], name: &str| {
        headers.iter().any(|(found, _)| found.eq_ignore_ascii_case(name))
    };
    if has_body && !named(&headers, "content-type") {
        headers.push(header("Content-Type: application/x-www-form-urlencoded"));
    }
    // curl omits a field whose value is empty after a colon.
    headers.retain(|(name, value)| !(value.is_empty() && name.eq_ignore_ascii_case("content-type")));
    if !named(&headers, "host") {
        headers.insert(0, header("Host: 127.0.0.1:9921"));
    }
    let method = method.unwrap_or(if has_body { "POST" } else { "GET" }.to_owned());
    let mut bytes = format!("{method} {target} HTTP/{version}\r\n");
    for (name, value) in &headers {
        bytes.push_str(&format!("{name}:{value}\r\n"));
    }
    let mut bytes = bytes.into_bytes();
    if named(&headers, "transfer-encoding") {
        bytes.extend_from_slice(format!("\r\n{:x}\r\n", body.len()).as_bytes());
        bytes.extend_from_slice(&body);
        bytes.extend_from_slice(b"\r\n0\r\n\r\n");
    } else {
        if has_body {
            bytes.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&body);
    }
    let mut client = Client::connect(proxy.address());
    // An error response to a large request may arrive before all of the request is sent.
    let _ = client.try_send(bytes);
    client.answer(&method)
}

/// `Name: value` or, for a field with an empty value, `Name;`.
fn header(text: &str) -> (String, String) {
    match (text.split_once(':'), text.strip_suffix(';')) {
        (Some((name, value)), _) => {
            (name.to_owned(), value.strip_prefix(' ').map_or(value, |_| value).to_owned())
        }
        (None, Some(name)) => (name.to_owned(), String::new()),
        (None, None) => panic!("not a header: {text}"),
    }
}

/// The body of a case: as recorded, or generated where the recording is truncated.
fn body(case: &Case) -> Vec<u8> {
    let recorded = case.body.clone().unwrap_or_default();
    let (shown, Some(cut)) = split_cut(&recorded) else { return recorded };
    let value = |value: String| {
        format!(r#"{{"identifier":"u1","traits":[{{"trait_key":"t","trait_value":{value}}}]}}"#)
    };
    let made = match case.name.as_str() {
        "identifier 5000 chars" => format!(r#"{{"identifier": "{}"}}"#, "x".repeat(5000)).into_bytes(),
        "trait_value 5000-digit int" => value("1".repeat(5000)).into_bytes(),
        "trait_value 2000-char string" => value(format!("\"{}\"", "x".repeat(2000))).into_bytes(),
        "trait_value 2001-char string" => value(format!("\"{}\"", "x".repeat(2001))).into_bytes(),
        "trait_value 2000 emoji (8000 bytes)" => value(format!("\"{}\"", "😀".repeat(2000))).into_bytes(),
        "deep nesting (100k '[')" => "[".repeat(100_000).into_bytes(),
        "1000 traits" => {
            let traits: Vec<String> =
                (0..1000).map(|i| format!(r#"{{"trait_key": "t{i}", "trait_value": {i}}}"#)).collect();
            format!(r#"{{"identifier": "u1", "traits": [{}]}}"#, traits.join(", ")).into_bytes()
        }
        "5 MB body (one huge unknown field)" => {
            format!(r#"{{"identifier": "u1", "junk": "{}"}}"#, "x".repeat(5_000_000)).into_bytes()
        }
        "JSON in UTF-16" => {
            let text = "\u{feff}{\"identifier\":\"u1\"}";
            text.encode_utf16().flat_map(u16::to_le_bytes).collect()
        }
        "invalid UTF-8 in body" => b"{\"identifier\":\"\xff\xfe\"}".to_vec(),
        "Content-Encoding: gzip request body" => {
            let mut gzip =
                flate2::GzBuilder::new().mtime(0x6b03_e363).write(Vec::new(), flate2::Compression::best());
            std::io::Write::write_all(&mut gzip, br#"{"identifier": "u1", "traits": []}"#).expect("memory");
            return gzip.finish().expect("memory");
        }
        other => panic!("unknown generated body: {other}, {shown:?}"),
    };
    assert_eq!((made.len(), &digest(&made)[..16]), (cut.length, cut.digest.as_str()), "{}", case.name);
    made
}

// --- reading the recordings ---

fn parse(text: &[u8]) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut group = String::new();
    for section in split(text, b"\n## ").into_iter().skip(1) {
        let mut parts = split(section, b"\n### ").into_iter();
        String::from_utf8_lossy(parts.next().unwrap_or_default()).trim().clone_into(&mut group);
        for part in parts {
            cases.push(parse_case(&group, part));
        }
    }
    cases
}

fn parse_case(group: &str, part: &[u8]) -> Case {
    let fences: Vec<&[u8]> = split(part, b"\n```");
    let name = String::from_utf8_lossy(fences[0]).lines().next().unwrap_or_default().to_owned();
    let mut answers = fences.iter().filter_map(|fence| fence.strip_prefix(b"http\n"));
    let answer = answers.next_back().expect("an answer");
    let (command, body) = match fences.get(1).filter(|fence| !fence.starts_with(b"http\n")) {
        Some(fence) => split_body(fence.strip_prefix(b"\n").unwrap_or(fence)),
        None => (allow_list_command(&name), None),
    };
    // A body may contain blank lines, so only the first one ends the head.
    let end = answer.windows(2).position(|window| window == b"\n\n").unwrap_or(answer.len());
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let headers = lines.filter_map(|line| line.split_once(": "));
    Case {
        group: group.to_owned(),
        name: name.trim_end().to_owned(),
        command,
        body,
        status: status.expect("a status"),
        headers: headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect(),
        answer: answer.get(end + 2..).unwrap_or_default().trim_ascii_end().to_vec(),
    }
}

fn split_body(fence: &[u8]) -> (String, Option<Vec<u8>>) {
    let parts = split(fence, b"\n# body: ");
    let command = String::from_utf8_lossy(parts[0]).trim().to_owned();
    (command, parts.get(1).map(|body| body.to_vec()))
}

/// The last section has no commands, only `Origin <origin> preflight`.
fn allow_list_command(name: &str) -> String {
    let mut words = name.split(' ').skip(1);
    let origin = words.next().unwrap_or_default();
    match words.next() {
        Some("preflight") => format!(
            "curl -X OPTIONS -H 'Origin: {origin}' -H 'Access-Control-Request-Method: GET' -H 'Access-Control-Request-Headers: x-environment-key' $B/api/v1/flags/"
        ),
        _ => format!(
            "curl -H 'X-Environment-Key: QuirksClientKey0000000' -H 'Origin: {origin}' '$B/api/v1/flags/?feature=str_flag'"
        ),
    }
}

fn split<'a>(text: &'a [u8], separator: &[u8]) -> Vec<&'a [u8]> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.windows(separator.len()).position(|window| window == separator) {
        parts.push(&rest[..at]);
        rest = &rest[at + separator.len()..];
    }
    parts.push(rest);
    parts
}

/// Words of a command line. A quote ends only before a space, because the recorder did not escape.
fn words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = command.trim();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('\'') {
            Some(inner) => inner.split_once("' ").unwrap_or((inner.trim_end_matches('\''), "")),
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        words.push(word.to_owned());
        rest = after.trim_start();
    }
    words
}
