//! Answers with gzip: each decodes to the plain answer, however it was made. In all they are smaller than
//! those that zlib's fastest level makes, and none is over 2 % larger.
//!
//! Requests go to the handlers without a socket, so that many thousand can be tried. `SEED=` repeats a run,
//! `ANSWERS=` sets how many identities are tried.
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use edge_proxy::engine::program::Role;
use edge_proxy::handlers::{HandlerSettings, HandlerState, handle};
use edge_proxy::http::ResponseWriter;
use edge_proxy::http::deflate::SHORT_TEXT_BYTES_MAX;
use edge_proxy::http::request::{Progress, RequestReader};
use edge_proxy::limits::{BODY_BYTES_MAX, COMPRESS_BYTES_MIN, RESULT_CACHE_BYTES_MAX};
use edge_proxy::snapshot::{Environment, KeyAccess, Snapshot};
use flate2::{Compress, Compression, FlushCompress};
use serde_json::{Value, json};

use crate::conformance::count_of;
use crate::support::{Answer, Client, Start, Upstream, eventually, fixture, handler, python};

const CLIENT: &str = "compression-client";
const SERVER: &str = "ser.compression";

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound.max(1)
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()]
    }
}

/// `features` features, a third of them with variants, and three segments that override some.
fn document(label: &str, features: u32) -> Value {
    let state = |number: u32, value: String, priority: Value| {
        let variants = if number.is_multiple_of(3) && priority.is_null() { 3 } else { 0 };
        let variants: Vec<Value> = (0..variants)
            .map(|id| {
                json!({"id": id + 1, "percentage_allocation": 30.0, "multivariate_feature_option": {"id": id, "value": format!("{value}-{id}")}})
            })
            .collect();
        json!({
            "feature": {"id": number, "name": format!("feature_{number}"), "type": "STANDARD"}, "enabled": number.is_multiple_of(2),
            "django_id": number + 1, "featurestate_uuid": format!("00000000-0000-4000-8000-{number:012}"), "feature_state_value": value, "feature_segment": priority,
            "multivariate_feature_state_values": variants,
        })
    };
    let segment = |number: u32, operator: &str, property: &str, value: &str| {
        let overridden: Vec<Value> = (0..features)
            .filter(|feature| feature % 4 == number)
            .map(|feature| state(feature, format!("{label}-segment-{number}"), json!({"priority": number})))
            .collect();
        let condition = json!({"operator": operator, "property_": property, "value": value});
        json!({
            "id": number, "name": format!("segment-{number}"), "feature_states": overridden,
            "rules": [{"type": "ALL", "conditions": [], "rules": [{"type": "ANY", "conditions": [condition], "rules": []}]}],
        })
    };
    let states: Vec<Value> =
        (0..features).map(|number| state(number, format!("{label}-{number}"), Value::Null)).collect();
    json!({
        "id": 1, "api_key": CLIENT, "name": "E", "updated_at": "2026-01-15T10:30:00Z", "allow_client_traits": true,
        "feature_states": states, "identity_overrides": [],
        "project": {
            "id": 1, "name": "P", "hide_disabled_flags": false, "server_key_only_feature_ids": [1],
            "organisation": {"id": 1, "name": "O", "feature_analytics": false, "stop_serving_flags": false, "persist_trait_data": true},
            "segments": [
                segment(0, "EQUAL", "plan", "gold"),
                segment(1, "GREATER_THAN", "age", "30"),
                segment(2, "PERCENTAGE_SPLIT", "", "50"),
            ],
        },
    })
}

fn snapshot(document: &Value) -> Snapshot {
    let (environment, _) = Environment::compile(document.to_string().as_bytes()).expect("a good document");
    let one = handler::snapshot(CLIENT, SERVER, environment);
    let access = |role| KeyAccess { slot: 0, role, expires_at: None };
    let keys = [(CLIENT, Role::Client), (SERVER, Role::Server)];
    let keys = keys.map(|(key, role)| (key.as_bytes().into(), access(role)));
    Snapshot::new(1, one.slots, keys)
}

/// Handlers, and the buffers that all of their requests share.
struct Handlers {
    settings: HandlerSettings,
    state: HandlerState,
    output: ResponseWriter,
}

impl Handlers {
    fn new() -> Self {
        let (settings, state) = (handler::settings(CLIENT, SERVER), HandlerState::default());
        Self { settings, state, output: ResponseWriter::default() }
    }

    /// Status, whether the body is compressed, and the body.
    fn ask(
        &mut self,
        snapshot: &Snapshot,
        key: &str,
        target: &str,
        body: Option<&str>,
        gzip: bool,
    ) -> (u16, bool, Vec<u8>) {
        let method = if body.is_some() { "POST" } else { "GET" };
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: a\r\nX-Environment-Key: {key}\r\n");
        if gzip {
            head.push_str("Accept-Encoding: gzip, deflate\r\n");
        }
        let body = body.unwrap_or_default();
        let _ =
            write!(head, "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let (mut reader, mut buffer) = (RequestReader::default(), BytesMut::from(head.as_bytes()));
        assert_eq!(reader.advance(&mut buffer), Ok(Progress::Ready));
        let mut request = reader.request(&mut buffer).expect("ready");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let Self { settings, state, output } = self;
        let outcome = handle(settings, snapshot, now, &mut request, state, output);
        let mut bytes = std::mem::take(&mut output.bytes);
        bytes.extend(output.tail.take().iter().flat_map(|tail| tail.iter()));
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
        let is_gzip = String::from_utf8_lossy(&bytes[..end]).contains("content-encoding: gzip");
        (outcome.status, is_gzip, bytes.split_off(end))
    }
}

fn gunzip(member: &[u8]) -> Vec<u8> {
    let mut decoder = flate2::bufread::GzDecoder::new(member);
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut decoder, &mut plain).expect("a valid member");
    assert!(decoder.into_inner().is_empty(), "nothing after the member");
    plain
}

/// The size of the body as zlib's fastest level makes it, with the head and the end of a member.
fn zlib_size(plain: &[u8]) -> usize {
    let mut out = Vec::with_capacity(plain.len() + plain.len() / 8 + 64);
    Compress::new(Compression::fast(), false).compress_vec(plain, &mut out, FlushCompress::Finish).unwrap();
    out.len() + 18
}

fn text(random: &mut Random, chars_max: u64) -> String {
    const PIECES: [char; 16] =
        ['a', 'e', '"', '\\', '\n', '\u{1}', '\u{7f}', 'é', 'ß', '日', '本', '😀', '\u{ffff}', '0', '/', ' '];
    let count = random.below(chars_max);
    let kind = random.below(4);
    (0..count)
        .map(|at| match kind {
            0 => random.pick(&PIECES),
            1 => char::from_u32(u32::try_from(random.below(0x11_0000)).unwrap()).unwrap_or('\u{fffd}'),
            2 => char::from(b'a' + u8::try_from(random.below(26)).unwrap()),
            _ => char::from(b'a' + u8::try_from(at % 5).unwrap()),
        })
        .collect()
}

/// A trait's value, as JSON text.
fn trait_value(random: &mut Random) -> String {
    match random.below(9) {
        0 => "null".into(),
        1 => "true".into(),
        2 => (random.below(u64::MAX).cast_signed()).to_string(),
        3 => format!("{}{}", random.below(u64::MAX), random.below(u64::MAX)),
        4 => format!("{}.{}", random.below(1000), random.below(1000)),
        5 => format!("-{}.5e{}", random.below(10), random.below(300)),
        6 => r#""\ud83d\ude00\u00e9\u0000\/""#.into(),
        7 => json!(text(random, 1900)).to_string(),
        _ => json!(text(random, 30)).to_string(),
    }
}

fn body(random: &mut Random, traits: u64) -> String {
    let identifier = json!(text(random, 60) + "i");
    let mut body = format!(r#"{{"identifier":{identifier},"traits":["#);
    for at in 0..traits {
        let name = match random.below(4) {
            0 => "plan".into(),
            1 => "age".into(),
            _ => text(random, 20),
        };
        let comma = if at > 0 { "," } else { "" };
        let _ = write!(
            body,
            r#"{comma}{{"trait_key":{},"trait_value":{}}}"#,
            json!(name + "n"),
            trait_value(random)
        );
    }
    body + "]}"
}

/// As an SDK writes it: an identifier and some traits, of values that occur.
fn usual_body(random: &mut Random) -> String {
    let digits = |random: &mut Random| random.below(1_000_000_000);
    let identifier = match random.below(3) {
        0 => format!("user-{}", digits(random)),
        1 => format!("{}.name{}@example.com", text_of_letters(random), random.below(100)),
        _ => format!(
            "{:08x}-{:04x}-4000-8000-{:012x}",
            digits(random),
            random.below(65_536),
            random.below(1 << 48)
        ),
    };
    let all = [
        json!({"trait_key": "plan", "trait_value": random.pick(&["gold", "silver", "free"])}),
        json!({"trait_key": "age", "trait_value": random.below(90)}),
        json!({"trait_key": "email", "trait_value": format!("{}@example.com", text_of_letters(random))}),
        json!({"trait_key": "is_beta", "trait_value": random.below(2) == 0}),
        json!({"trait_key": "score", "trait_value": random.below(1000) as f64 / 8.0}),
        json!({"trait_key": "app_version", "trait_value": format!("{}.{}.{}", random.below(9), random.below(20), random.below(9))}),
        json!({"trait_key": "country", "trait_value": random.pick(&["DE", "NL", "US", "JP"])}),
        json!({"trait_key": "organisation", "trait_value": format!("Org {}", digits(random))}),
    ];
    let count = usize::try_from(random.below(all.len() as u64 + 1)).unwrap();
    json!({"identifier": identifier, "traits": all[..count]}).to_string()
}

fn text_of_letters(random: &mut Random) -> String {
    (0..4 + random.below(8)).map(|_| char::from(b'a' + u8::try_from(random.below(26)).unwrap())).collect()
}

/// Pairs of member and plain body for a decoder in another language.
#[derive(Default)]
struct Members(Vec<u8>);

impl Members {
    fn add(&mut self, member: &[u8], plain: &[u8]) {
        for part in [member, plain] {
            self.0.extend_from_slice(&u32::try_from(part.len()).unwrap().to_le_bytes());
            self.0.extend_from_slice(part);
        }
    }
}

#[test]
fn every_answer_decodes_to_the_plain_one() {
    let seed = count_of("SEED", 1);
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let snapshots =
        [12, 50, 200].map(|features| snapshot(&document(&format!("document-of-{features}"), features)));
    let mut handlers = Handlers::new();
    let (mut members, mut compared, mut larger) = (Members::default(), 0, Vec::new());
    let (mut ours, mut theirs) = (0, 0);
    for round in 0..count_of("ANSWERS", 176) {
        let snapshot = &snapshots[usize::try_from(random.below(3)).unwrap()];
        let key = random.pick(&[CLIENT, SERVER]);
        let is_usual = round.is_multiple_of(2);
        let (target, body) = match round % 16 {
            // The largest body that is accepted.
            15 if round % 160 == 15 => {
                let mut body = body(&mut random, 900);
                body.truncate(body.len() - 2);
                while body.len() < BODY_BYTES_MAX - 200 {
                    body += r#",{"trait_key":"more","trait_value":"0123456789 0123456789 é日本"}"#;
                }
                ("/api/v1/identities/", Some(body + "]}"))
            }
            13 => ("/api/v1/identities/?identifier=someone%20else", None),
            11 => {
                let context = json!({"context": {"targetingKey": text(&mut random, 9) + "k", "plan": "gold", "age": random.below(60)}});
                ("/ofrep/v1/evaluate/flags", Some(context.to_string()))
            }
            9 => ("/api/v1/identities/?identifier=u&feature=feature_3", None),
            _ if is_usual => ("/api/v1/identities/", Some(usual_body(&mut random))),
            _ => {
                let traits = random.below(40);
                ("/api/v1/identities/", Some(body(&mut random, traits)))
            }
        };
        let (status, is_gzip, plain) = handlers.ask(snapshot, key, target, body.as_deref(), false);
        assert!(status == 200 && !is_gzip, "{status} {body:?}: {}", String::from_utf8_lossy(&plain));
        // Not in the cache, put into it, and from it.
        for again in 0..3 {
            let (status, is_gzip, member) = handlers.ask(snapshot, key, target, body.as_deref(), true);
            assert_eq!((status, is_gzip), (200, plain.len() >= COMPRESS_BYTES_MIN), "SEED={seed}");
            if !is_gzip {
                assert!(member == plain, "SEED={seed} {again} {body:?}");
                continue;
            }
            assert!(gunzip(&member) == plain, "SEED={seed} {again} {body:?}");
            members.add(&member, &plain);
            compared += 1;
            let zlib = zlib_size(&plain);
            if is_usual {
                (ours, theirs) = (ours + member.len(), theirs + zlib);
                // A repetition that was found elsewhere may cost some bytes.
                if member.len() > zlib + zlib / 50 {
                    larger.push((member.len(), zlib, body.clone()));
                }
            }
            assert!(member.len() <= zlib + SHORT_TEXT_BYTES_MAX, "{} {zlib}", member.len());
        }
    }
    assert!(larger.is_empty(), "SEED={seed}, {} larger than zlib's: {:?}", larger.len(), larger[0]);
    assert!(ours < theirs, "SEED={seed}: {ours} bytes in all, {theirs} of zlib's");
    let counts = handlers.state.result_cache_counts();
    assert!(counts.hits > 50 && counts.misses > 50, "{counts:?}");
    assert!(counts.bytes > 0 && counts.bytes <= 2 * RESULT_CACHE_BYTES_MAX as u64, "{counts:?}");
    let mut file = tempfile(&members.0);
    let printed = python::run("gzip_members.py", &[&file.path()]);
    file.remove();
    assert_eq!(printed.trim(), format!("{compared} members"), "SEED={seed}");
    fixture::say(&format!("compression: {compared} answers, two decoders, {counts:?}, SEED={seed}"));
}

/// A file that another process reads.
struct TemporaryFile(std::path::PathBuf);

fn tempfile(bytes: &[u8]) -> TemporaryFile {
    let path = std::env::temp_dir().join(format!("edge-proxy-gzip-members-{}", std::process::id()));
    std::fs::File::create(&path).and_then(|mut file| file.write_all(bytes)).expect("writable");
    TemporaryFile(path)
}

impl TemporaryFile {
    fn path(&self) -> String {
        self.0.to_string_lossy().into_owned()
    }

    fn remove(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn nothing_is_kept_where_no_client_accepts_gzip() {
    let snapshot = snapshot(&document("document", 50));
    let mut handlers = Handlers::new();
    let context = json!({"context": {"targetingKey": "k"}}).to_string();
    for _ in 0..5 {
        for (target, body) in [
            ("/api/v1/identities/", Some(r#"{"identifier":"u"}"#)),
            ("/api/v1/identities/?identifier=u", None),
            ("/ofrep/v1/evaluate/flags", Some(&*context)),
        ] {
            handlers.ask(&snapshot, SERVER, target, body, false);
        }
    }
    assert_eq!(handlers.state.result_cache_counts(), edge_proxy::handlers::ResultCacheCounts::default());
}

/// The cached OFREP result has the validators of one that is made anew, for both codings.
#[test]
fn cached_ofrep_results_have_their_entity_tags() {
    let start = Start::serve();
    let path = start.scratch().write("document.json", document("document", 50).to_string());
    let proxy = start.document(CLIENT, SERVER, path).ready();
    let mut client = proxy.client();
    let context = json!({"context": {"targetingKey": "k"}}).to_string();
    let mut ask = |fields: &[(&str, &str)]| {
        let fields =
            [&[("X-Environment-Key", SERVER), ("Content-Type", "application/json")], fields].concat();
        client.request("POST", "/ofrep/v1/evaluate/flags", &fields, context.as_bytes())
    };
    let gzip = ("Accept-Encoding", "gzip");
    let tag = |answer: &Answer| answer.header("etag").expect("a tag").to_owned();
    let (new_plain, new) = (ask(&[]), ask(&[gzip]));
    for _ in 0..3 {
        let (plain, packed) = (ask(&[]), ask(&[gzip]));
        assert_eq!((tag(&plain), tag(&packed)), (tag(&new_plain), tag(&new)));
        assert!(plain.body == new_plain.body && packed.plain() == new_plain.body);
        assert_eq!(
            (plain.header("content-encoding"), packed.header("content-encoding")),
            (None, Some("gzip"))
        );
        let (same, other) = (("If-None-Match", tag(&new)), ("If-None-Match", tag(&new_plain)));
        assert_eq!(ask(&[gzip, (same.0, &same.1)]).status, 304);
        assert_eq!(ask(&[gzip, (other.0, &other.1)]).status, 200);
        assert_eq!(ask(&[(other.0, &other.1)]).status, 304);
    }
    assert_ne!(tag(&new), tag(&new_plain));
}

/// OFREP results contain the base path, which a reload may change.
#[test]
fn cached_ofrep_results_follow_the_base_path() {
    let start = Start::serve();
    let path = start.scratch().write("document.json", document("document", 50).to_string());
    let proxy = start.document(CLIENT, SERVER, path).ready();
    let body = json!({"context": {"targetingKey": "k"}}).to_string();
    let ask = |target: &str| {
        let fields = [("X-Environment-Key", SERVER), ("Accept-Encoding", "gzip")];
        proxy.client().request("POST", target, &fields, body.as_bytes())
    };
    let stream = |answer: &Answer| {
        let value: Value = serde_json::from_slice(&answer.plain()).expect("JSON");
        value["eventStreams"][0]["endpoint"]["requestUri"].as_str().map(str::to_owned)
    };
    for _ in 0..4 {
        let answer = ask("/ofrep/v1/evaluate/flags");
        let expected = format!("/ofrep/v1/environments/{CLIENT}/stream");
        assert_eq!((answer.status, stream(&answer)), (200, Some(expected)));
    }
    let mut config = proxy.config().clone();
    config["server"]["base_path"] = json!("/edge");
    proxy.scratch().write("config.json", config.to_string());
    proxy.signal("HUP");
    let target = "/edge/ofrep/v1/evaluate/flags";
    eventually("the base path", || (ask(target).status == 200).then_some(()));
    for _ in 0..4 {
        let expected = format!("/edge/ofrep/v1/environments/{CLIENT}/stream");
        assert_eq!(stream(&ask(target)), Some(expected));
    }
}

/// Two environments whose documents change while readers ask for both with both of their keys, both codings
/// and several results: each answer has the requested environment, one revision, the role of its key and its coding.
#[test]
fn no_answer_is_of_another_document_key_or_coding() {
    const FEATURES: u32 = 16;
    let (north, south) = (("north", "ser.north"), ("south", "ser.south"));
    let upstream = Upstream::start();
    let publish = |(client, server): (&str, &str), revision: u32| {
        let mut document = document(&format!("{client}.r{revision}."), FEATURES);
        document["api_key"] = json!(client);
        document["updated_at"] = json!(format!("2026-01-15T10:30:{revision:02}Z"));
        upstream.document(server, document.to_string());
    };
    publish(north, 1);
    publish(south, 1);
    let proxy = Start::serve()
        .environment(north.0, north.1)
        .environment(south.0, south.1)
        .set("api_url", upstream.api_url())
        .set("api_poll_frequency_seconds", 0.1)
        .with_admin()
        .ready();
    let (stop, requested) = (std::sync::atomic::AtomicBool::new(false), std::sync::atomic::AtomicU64::new(0));
    let swaps = u32::try_from(count_of("SWAPS", 10)).expect("a few");
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut client = proxy.client();
                let mut newest = [0, 0];
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    for (number, environment) in [north, south].into_iter().enumerate() {
                        let revision = judge_environment(&mut client, environment, FEATURES);
                        assert!(revision >= newest[number], "{revision} after {}", newest[number]);
                        newest[number] = revision;
                        requested.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    }
                }
            });
        }
        for revision in 2..swaps + 2 {
            publish(north, revision);
            publish(south, revision);
            for (client, server) in [north, south] {
                eventually("the revision is served", || {
                    let answer = proxy.get("/api/v1/flags/", server);
                    answer.text().contains(&format!("{client}.r{revision}.")).then_some(())
                });
            }
            let goal = requested.load(std::sync::atomic::Ordering::Relaxed) + 6;
            eventually("it is read", || {
                (requested.load(std::sync::atomic::Ordering::Relaxed) >= goal).then_some(())
            });
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let metric = |name: &str| proxy.metric(&format!("edge_proxy_result_cache_{name}"));
    eventually("the caches are reported", || (metric("hits_total") > 0.0).then_some(()));
    assert!(metric("misses_total") > 0.0 && metric("bytes") <= 2.0 * RESULT_CACHE_BYTES_MAX as f64);
}

/// Requests everything that is cached, twice, and gives the one revision of the last answer.
fn judge_environment(client: &mut Client, (client_key, server_key): (&str, &str), features: u32) -> u32 {
    let other = if client_key == "north" { "south" } else { "north" };
    let posts = [
        ("/api/v1/identities/", r#"{"identifier":"u"}"#),
        (
            "/api/v1/identities/",
            r#"{"identifier":"u","traits":[{"trait_key":"plan","trait_value":"gold"},{"trait_key":"age","trait_value":40}]}"#,
        ),
        ("/ofrep/v1/evaluate/flags", r#"{"context":{"targetingKey":"u","plan":"gold"}}"#),
    ];
    let mut newest = 0;
    for (target, body) in [posts[0], posts[1], posts[2], ("/api/v1/identities/?identifier=u", "")] {
        for (key, accepts) in [
            (server_key, true),
            (client_key, true),
            (client_key, false),
            (server_key, true),
            (client_key, true),
            (server_key, false),
        ] {
            let mut fields = vec![("X-Environment-Key", key), ("Content-Type", "application/json")];
            fields.extend(accepts.then_some(("Accept-Encoding", "gzip")));
            let method = if body.is_empty() { "GET" } else { "POST" };
            let answer = client.request(method, target, &fields, body.as_bytes());
            assert_eq!(answer.status, 200, "{target}: {}", answer.text());
            assert_eq!(answer.header("content-encoding"), accepts.then_some("gzip"));
            let plain = String::from_utf8(answer.plain()).expect("UTF-8");
            assert!(!plain.contains(&format!("{other}.r")), "{target} {key}: {plain}");
            let value: Value = serde_json::from_str(&plain).expect("JSON");
            let count = value["flags"].as_array().map_or(0, Vec::len);
            let hidden = usize::from(key == client_key);
            assert_eq!(count, features as usize - hidden, "{target} {key}: {plain}");
            let mark = format!("{client_key}.r");
            let mut revisions: Vec<u32> =
                plain.split(&*mark).skip(1).filter_map(|rest| rest.split('.').next()?.parse().ok()).collect();
            revisions.dedup();
            assert_eq!(revisions.len(), 1, "mixed: {plain}");
            assert!(revisions[0] >= newest, "{} after {newest}", revisions[0]);
            newest = revisions[0];
        }
    }
    newest
}
