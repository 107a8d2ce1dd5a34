//! Endpoints besides flags and identities, and responses to invalid input.
//!
//! One small document: a value of every type, a server-only feature, a segment on a trait.
use serde_json::{Value, json};

use crate::support::{Answer, Client, Proxy, Start, Upstream, eventually, request};

mod document;
pub use document::{CLIENT, SERVER, document};

fn start() -> Proxy {
    start_with(&document(0))
}

fn start_with(document: &Value) -> Proxy {
    let start = Start::serve();
    let path = start.scratch().write("surface.json", document.to_string());
    start.document(CLIENT, SERVER, path).ready()
}

fn flag<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let flags = answer["flags"].as_array().expect("flags");
    flags.iter().find(|flag| flag["feature"]["name"] == name || flag["key"] == name).unwrap_or(&Value::Null)
}

fn send(proxy: &Proxy, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    Client::connect(proxy.address()).request(method, target, headers, body.as_bytes())
}

#[test]
fn conditional_requests_return_304() {
    let proxy = start();
    let key = ("X-Environment-Key", SERVER);
    for path in ["/api/v1/flags/", "/api/v1/environment-document/"] {
        let first = send(&proxy, "GET", path, &[key], "");
        let etag = first.header("etag").expect("an entity tag").to_owned();
        assert!(etag.starts_with('"') && etag.ends_with('"'), "strong: {etag}");
        assert_eq!(first.header("x-flagsmith-document-updated-at"), Some("1795168800.5"), "{path}");
        assert_eq!(first.header("last-modified"), Some("Fri, 20 Nov 2026 10:00:00 GMT"));
        let is_document = path.ends_with("document/");
        let cache_control = if is_document { "private, no-cache" } else { "no-cache" };
        assert_eq!(first.header("cache-control"), Some(cache_control), "{path}");
        for condition in
            [("If-None-Match", etag.as_str()), ("If-Modified-Since", "Fri, 20 Nov 2026 10:00:00 GMT")]
        {
            let again = send(&proxy, "GET", path, &[key, condition], "");
            assert_eq!((again.status, again.body.len()), (304, 0), "{path} {condition:?}");
            assert_eq!(again.header("etag"), Some(etag.as_str()));
        }
        for condition in
            [("If-None-Match", "\"other\""), ("If-Modified-Since", "Fri, 20 Nov 2026 09:59:59 GMT")]
        {
            assert_eq!(send(&proxy, "GET", path, &[key, condition], "").status, 200, "{path} {condition:?}");
        }
        let head = send(&proxy, "HEAD", path, &[key], "");
        assert_eq!((head.status, head.header("content-length")), (200, first.header("content-length")));
    }
    let identities =
        send(&proxy, "GET", "/api/v1/identities/?identifier=u", &[key, ("If-None-Match", "*")], "");
    assert_eq!(identities.status, 200, "responses of identities have no entity tag and are never 304");
    assert_eq!(identities.header("x-flagsmith-document-updated-at"), Some("1795168800.5"));
    assert!(identities.header("etag").is_none());
}

#[test]
fn client_side_key_reads_no_document_and_no_server_only_feature() {
    let proxy = start();
    let answer = proxy.get("/api/v1/environment-document/", CLIENT);
    assert_eq!((answer.status, answer.json()["status"].clone()), (401, json!("unauthorized")));
    let names = |key: &str| -> Vec<String> {
        let answer = proxy.get("/api/v1/flags/", key).json();
        answer
            .as_array()
            .unwrap()
            .iter()
            .map(|flag| flag["feature"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(SERVER), ["banner", "on", "off", "dark", "secret", "split", "count"]);
    assert_eq!(names(CLIENT), ["banner", "on", "off", "dark", "split", "count"]);
    let one = proxy.get("/api/v1/identities/?identifier=u&feature=banner", CLIENT).json();
    assert_eq!(one["flags"].as_array().unwrap().len(), 1, "only that flag, in a list");
    assert_eq!(
        proxy.get("/api/v1/identities/?identifier=u&feature=secret", CLIENT).json()["flags"],
        json!([])
    );
}

#[test]
fn client_traits_require_allow_client_traits() {
    let mut closed = document(0);
    closed["allow_client_traits"] = json!(false);
    closed["hide_sensitive_data"] = json!(true);
    let proxy = start_with(&closed);
    let body = r#"{"identifier":"u","traits":[{"trait_key":"plan","trait_value":"gold"}]}"#;
    for (key, value) in [(CLIENT, "hello"), (SERVER, "golden")] {
        let answer = proxy.post("/api/v1/identities/", key, body).json();
        assert_eq!(flag(&answer, "banner")["feature_state_value"], value, "{key}");
        assert_eq!(answer["traits"], json!([]), "hide_sensitive_data");
    }
    let open = start();
    let answer = open.post("/api/v1/identities/", CLIENT, body).json();
    assert_eq!(answer["traits"], json!([{"trait_key": "plan", "trait_value": "gold"}]));
    assert_eq!(flag(&answer, "banner")["reason"], "TARGETING_MATCH");
    let answer = open.post("/api/v1/identities/", SERVER, body).json();
    assert_eq!(flag(&answer, "banner")["reason"], "TARGETING_MATCH; segment=gold plan");
}

/// Visibility depends on whether the flag is enabled for this identity, not in the environment.
#[test]
fn disabled_flags_are_hidden_from_browsers_on_every_route() {
    let mut hiding = document(0);
    hiding["hide_disabled_flags"] = json!(true);
    let states = &mut hiding["project"]["segments"][0]["feature_states"];
    let mut turned = [document(0)["feature_states"][1].clone(), document(0)["feature_states"][2].clone()];
    turned[0]["enabled"] = json!(false);
    turned[1]["enabled"] = json!(true);
    states.as_array_mut().unwrap().extend(turned);
    let proxy = start_with(&hiding);
    let gold = json!({"identifier": "u", "traits": [{"trait_key": "plan", "trait_value": "gold"}]});
    let ofrep = |context: &str| format!(r#"{{"context":{{"targetingKey":"u"{context}}}}}"#);
    let names = |answer: &Answer| -> Vec<String> {
        let answer = answer.json();
        let flags = if answer["flags"].is_array() { answer["flags"].clone() } else { answer };
        let flags = if flags[0]["flags"].is_array() { flags[0]["flags"].clone() } else { flags };
        let name =
            |flag: &Value| flag["feature"]["name"].as_str().or(flag["key"].as_str()).unwrap().to_owned();
        flags.as_array().unwrap().iter().map(name).collect()
    };
    let plain = ["banner", "on", "split", "count"];
    let golden = ["banner", "off", "split", "count"];
    for (answer, expected) in [
        (proxy.get("/api/v1/flags/", CLIENT), plain),
        (proxy.get("/api/v1/identities/?identifier=u", CLIENT), plain),
        (proxy.post("/api/v1/identities/", CLIENT, &gold.to_string()), golden),
        (proxy.post("/api/v1/bulk-identities/", CLIENT, &json!({"data": [gold]}).to_string()), golden),
        (proxy.post("/ofrep/v1/evaluate/flags", CLIENT, &ofrep("")), plain),
        (proxy.post("/ofrep/v1/evaluate/flags", CLIENT, &ofrep(r#","plan":"gold""#)), golden),
    ] {
        assert_eq!(names(&answer), expected);
    }
    assert_eq!(proxy.get("/api/v1/flags/?feature=off", CLIENT).status, 404);
    assert_eq!(proxy.get("/api/v1/identities/?identifier=u&feature=off", CLIENT).json()["flags"], json!([]));
    assert_eq!(proxy.post("/ofrep/v1/evaluate/flags/off", CLIENT, &ofrep("")).status, 404);
    assert_eq!(proxy.post("/ofrep/v1/evaluate/flags/off", CLIENT, &ofrep(r#","plan":"gold""#)).status, 200);
    assert_eq!(proxy.get("/api/v1/flags/?feature=off", SERVER).status, 200);
    assert_eq!(names(&proxy.get("/api/v1/flags/", SERVER)).len(), 7, "server-side keys read all");
}

#[test]
fn bulk_identities_are_answered_in_order() {
    let proxy = start();
    let gold = json!({"identifier": "a", "traits": [{"trait_key": "plan", "trait_value": "gold"}]});
    let body = json!({"data": [gold, {"identifier": "b"}, {}]}).to_string();
    let answer = proxy.post("/api/v1/bulk-identities/", CLIENT, &body);
    assert_eq!(answer.status, 200);
    let answers = answer.json();
    assert_eq!(answers.as_array().unwrap().len(), 3);
    assert_eq!(flag(&answers[0], "banner")["feature_state_value"], "golden");
    assert_eq!(
        (&answers[1]["identifier"], &flag(&answers[1], "banner")["feature_state_value"]),
        (&json!("b"), &json!("hello"))
    );
    assert_eq!(answers[2]["identifier"].as_str().unwrap().len(), 32, "transient");
    let one = proxy.post("/api/v1/identities/", CLIENT, &gold.to_string()).json();
    assert_eq!(answers[0], one, "the same as a single request");
}

#[test]
fn rejects_invalid_bulk_identities() {
    let proxy = start();
    let many = |count: usize| json!({"data": vec![json!({"identifier": "u"}); count]}).to_string();
    for (body, status, text) in [
        (many(100), 200, "identifier"),
        (many(101), 400, "101 identities, at most 100"),
        (r#"{"data":[{"identifier":"a"},5,{"identifier":7}]}"#.into(), 422, r#""loc":["body","data",1]"#),
        (
            r#"{"data":[{"identifier":"a"},{"identifier":7}]}"#.into(),
            422,
            r#""loc":["body","data",1,"identifier"]"#,
        ),
        (r#"{"data":[null]}"#.into(), 422, r#"model_attributes_type","loc":["body","data",0]"#),
        (r#"{"data":{}}"#.into(), 422, r#"list_type","loc":["body","data"]"#),
        (
            r#"{"data":[{"identifier":"a"},{"identifier":"b","traits":[{"trait_key":"t","trait_value":[]}]},{"identifier":"c"}]}"#.into(),
            422,
            r#""loc":["body","data",1,"traits",0,"trait_value","str"]"#,
        ),
        (
            r#"{"data":[{"identifier":"a"},{"traits":null},{"identifier":"c"}]}"#.into(),
            422,
            r#""loc":["body","data",1,"traits"]"#,
        ),
        (r#"{"data":[]}"#.into(), 200, "[]"),
        (r#"{"data":null}"#.into(), 422, r#"list_type","loc":["body","data"]"#),
        ("{}".into(), 422, r#"missing","loc":["body","data"]"#),
        ("[]".into(), 422, "model_attributes_type"),
        (String::new(), 422, r#"missing","loc":["body"]"#),
        ("{".into(), 422, "json_invalid"),
    ] {
        let answer = proxy.post("/api/v1/bulk-identities/", CLIENT, &body);
        assert!(
            answer.status == status && answer.text().contains(text),
            "{body:.80} {} {:.300}",
            answer.status,
            answer.text()
        );
    }
    assert_eq!(proxy.post("/api/v1/bulk-identities/", "nope", &many(1)).status, 401);
}

/// The first bytes of a long body already determine the error.
#[test]
fn a_long_body_that_is_not_json_is_an_error_before_the_key() {
    let proxy = start();
    let body = "x".repeat(100_000);
    let fields = [("X-Environment-Key", "unknown"), ("Content-Type", "text/plain")];
    for path in ["/api/v1/identities/", "/api/v1/bulk-identities/", "/api/v1/traits/"] {
        let answer = proxy.client().request("POST", path, &fields, body.as_bytes());
        assert!(
            answer.status == 422 && answer.text().contains("model_attributes_type"),
            "{path} {} {:.300}",
            answer.status,
            answer.text()
        );
    }
}

#[test]
fn traits_are_echoed_and_not_stored() {
    let proxy = start();
    let body = r#"{"identity":{"identifier":"u1"},"trait_key":"plan","trait_value":"gold"}"#;
    let answer = proxy.post("/api/v1/traits/", CLIENT, body);
    assert_eq!((answer.status, answer.text()), (200, body.to_owned()));
    let after = proxy.get("/api/v1/identities/?identifier=u1", CLIENT).json();
    assert_eq!(
        (&after["traits"], &flag(&after, "banner")["feature_state_value"]),
        (&json!([]), &json!("hello"))
    );
    for (body, status, text) in [
        (r#"{"trait_key":"a","trait_value":1}"#, 422, r#""loc":["body","identity"]"#),
        (r#"{"identity":{"identifier":"u"},"trait_value":1}"#, 422, r#""loc":["body","trait_key"]"#),
        (r#"{"identity":{"identifier":"u"},"trait_key":"a","trait_value":[]}"#, 422, "bool_type"),
        (r#"{"identity":5,"trait_key":"a"}"#, 422, r#""loc":["body","identity"]"#),
        ("5", 422, "model_attributes_type"),
        ("", 422, "missing"),
    ] {
        let answer = proxy.post("/api/v1/traits/", CLIENT, body);
        assert!(answer.status == status && answer.text().contains(text), "{body} {}", answer.text());
    }
}

#[test]
fn analytics_responses_are_defined_for_every_body() {
    let proxy = start();
    for (path, body, status, answered) in [
        ("/api/v1/analytics/flags/", r#"{"banner":3,"on":1}"#, 200, "{}"),
        (
            "/api/v1/analytics/flags",
            r#"{"unknown":3,"on":-1,"off":1.5,"count":"7","split":99999999999999999999,"dark":true}"#,
            200,
            "{}",
        ),
        ("/api/v1/analytics/flags/", "{}", 200, "{}"),
        ("/api/v1/analytics/flags/", "[]", 400, r#"{"status":"bad_request","#),
        ("/api/v1/analytics/flags/", "", 400, r#"{"status":"bad_request","#),
        ("/api/v1/analytics/flags/", "{", 400, r#"{"status":"bad_request","#),
        (
            "/api/v2/analytics/flags/",
            r#"{"evaluations":[{"feature_name":"on","identity_identifier":"u","enabled_when_evaluated":true,"count":2}]}"#,
            204,
            "",
        ),
        ("/api/v2/analytics/flags/", r#"{"evaluations":[]}"#, 204, ""),
        (
            "/api/v2/analytics/flags/",
            r#"{"evaluations":[{"feature_name":"on","count":2}]}"#,
            400,
            "each evaluation needs",
        ),
        ("/api/v2/analytics/flags/", r#"{"evaluations":{}}"#, 400, "a list named evaluations"),
        ("/api/v2/analytics/flags/", "5", 400, "a list named evaluations"),
    ] {
        let answer = proxy.post(path, CLIENT, body);
        assert!(
            answer.status == status && answer.text().contains(answered),
            "{path} {body} {} {}",
            answer.status,
            answer.text()
        );
        assert!(answered != "{}" || answer.text() == "{}", "exactly {{}}: {}", answer.text());
    }
    assert_eq!(proxy.post("/api/v1/analytics/flags/", "nope", "{}").status, 401);
    assert_eq!(proxy.get("/api/v1/analytics/flags/", CLIENT).header("allow"), Some("POST"));
}

const V1: &str = "/api/v1/analytics/flags/";
const V2: &str = "/api/v2/analytics/flags/";

/// A proxy that uploads its counts only at exit, and an upstream that accepts them.
fn counting(is_enabled: bool) -> (Upstream, Proxy) {
    let upstream = Upstream::start();
    upstream.document(SERVER, document(1).to_string());
    upstream.on(V1, crate::support::Reply::json("{}"));
    upstream.on(V2, crate::support::Reply::new(204, ""));
    let proxy = Start::serve()
        .set("api_url", upstream.api_url())
        .set("analytics", json!({"enabled": is_enabled, "flush_interval_seconds": 3600}))
        .environment(CLIENT, SERVER)
        .ready();
    (upstream, proxy)
}

#[test]
fn uploads_counts_of_known_features_with_labels() {
    let (upstream, mut proxy) = counting(true);
    let wrong = r#"{"unknown":3,"on":-1,"off":1.5,"dark":"7","split":99999999999999999999,"count":true,
        "secret":null,"banner":0,"BANNER":1,"":1,"on ":[1]}"#;
    let ask = |path: &str, labels: &[(&str, &str)], body: &str, status: u16| {
        let fields = [&[("X-Environment-Key", CLIENT)], labels].concat();
        assert_eq!(send(&proxy, "POST", path, &fields, body).status, status, "{body}");
    };
    let app = [
        ("Flagsmith-Application-Name", "shop"),
        ("Flagsmith-Application-Version", "1.2"),
        ("User-Agent", "ua/1"),
        ("Flagsmith-SDK-User-Agent", "sdk/1"),
    ];
    ask(V1, &[], wrong, 200);
    ask(V1, &[], r#"{"banner":2147483647,"on":2147483648,"off":2}"#, 200);
    ask(V1, &app, r#"{"off":5}"#, 200);
    ask(V1, &app[..1], r#"{"off":7}"#, 200);
    ask(V1, &[], r#"[{"off":1}]"#, 400);
    let evaluation = |feature: &str, count: &str| {
        format!(
            r#"{{"feature_name":"{feature}","identity_identifier":"u","enabled_when_evaluated":true,"count":{count}}}"#
        )
    };
    let rows =
        [evaluation("on", "4"), evaluation("unknown", "4"), evaluation("on", "-4"), evaluation("on", "0")];
    ask(V2, &[], &format!(r#"{{"evaluations":[{}]}}"#, rows.join(",")), 204);
    // One invalid row rejects the whole body: nothing is counted.
    ask(
        V2,
        &[],
        &format!(r#"{{"evaluations":[{},{}]}}"#, evaluation("on", "9"), evaluation("on", "1.5")),
        400,
    );
    assert_eq!(send(&proxy, "POST", V1, &[("X-Environment-Key", "nope")], r#"{"off":9}"#).status, 401);
    assert!(
        upstream.requests_for(V1).is_empty() && upstream.requests_for(V2).is_empty(),
        "not before its time"
    );
    proxy.signal("TERM");
    assert!(proxy.wait().success());
    let mut sent: Vec<(Value, Vec<Option<String>>)> = upstream
        .requests_for(V1)
        .iter()
        .map(|request| {
            (
                request.json(),
                app.iter().map(|(name, _)| request.header(&name.to_lowercase()).map(str::to_owned)).collect(),
            )
        })
        .collect();
    sent.sort_by_key(|(counts, _)| counts.to_string());
    let counts: Vec<&Value> = sent.iter().map(|(counts, _)| counts).collect();
    assert_eq!(counts, [&json!({"banner": 2_147_483_647, "off": 2}), &json!({"off": 5}), &json!({"off": 7})]);
    let labels = |at: usize| sent[at].1.iter().map(Option::as_deref).collect::<Vec<_>>();
    assert_eq!(labels(1), [Some("shop"), Some("1.2"), Some("ua/1"), Some("sdk/1")]);
    assert_eq!((labels(2)[0], labels(2)[1], labels(2)[3]), (Some("shop"), None, None));
    assert!(upstream.requests_for(V1).iter().all(|request| request.key() == CLIENT));
    let detailed: Vec<Value> = upstream.requests_for(V2).iter().map(|request| request.json()).collect();
    assert_eq!(
        detailed,
        [json!({"evaluations": [
        {"feature_name": "on", "identity_identifier": "u", "enabled_when_evaluated": true, "count": 4}]})]
    );
}

#[test]
fn disabled_analytics_are_accepted_and_not_uploaded() {
    let (upstream, mut proxy) = counting(false);
    assert_eq!(proxy.post(V1, CLIENT, r#"{"banner":3}"#).text(), "{}");
    assert_eq!(proxy.post(V2, CLIENT, r#"{"evaluations":[]}"#).status, 204);
    proxy.signal("TERM");
    assert!(proxy.wait().success());
    assert!(upstream.requests_for(V1).is_empty() && upstream.requests_for(V2).is_empty());
}

#[test]
fn unknown_keys_are_401() {
    let upstream = Upstream::start();
    let proxy =
        Start::serve().set("api_url", upstream.api_url()).environment("waiting", "ser.waiting").start();
    for (key, status, text) in [
        (None, 401, "missing key"),
        (Some(""), 401, "unknown key ''"),
        (Some("nope"), 401, "unknown key 'nope'"),
        (Some("waiting"), 502, r#"{"status":"unavailable","message":"no environment document yet"#),
    ] {
        let fields: Vec<(&str, &str)> = key.map(|key| ("X-Environment-Key", key)).into_iter().collect();
        for (method, path, body) in [
            ("GET", "/api/v1/flags/", ""),
            ("GET", "/api/v1/identities/?identifier=u", ""),
            ("POST", "/api/v1/identities/", r#"{"identifier":"u"}"#),
            // Half a surrogate pair: the reference checks the key first.
            ("POST", "/api/v1/identities/", r#"{"identifier":"\ud800"}"#),
        ] {
            let answer = send(&proxy, method, path, &fields, body);
            assert!(
                answer.status == status && answer.text().contains(text),
                "{path} {key:?} {} {}",
                answer.status,
                answer.text()
            );
        }
    }
    let document =
        send(&proxy, "GET", "/api/v1/environment-document/", &[("X-Environment-Key", "ser.waiting")], "");
    assert_eq!(document.status, 502);
    let health = proxy.get("/proxy/health/readiness", "");
    assert_eq!(
        (health.status, &health.json()["reason"]),
        (503, &json!("environment document(s) not updated."))
    );
    assert_eq!(health.json()["environments"][0]["state"], "missing");
}

/// Deep nesting must not overflow the stack of a reactor, which would end the process.
#[test]
fn deep_nesting_is_answered_on_every_route() {
    let proxy = start();
    let values = |depth: usize| {
        let nested = |open: &str, close: &str| format!("{}1{}", open.repeat(depth), close.repeat(depth));
        [nested("[", "]"), nested(r#"{"a":"#, "}"), nested(r#"[{"a":"#, "}]")]
    };
    for value in [700, 1400, 1490, 1496, 3000, 60_000].into_iter().flat_map(values) {
        for (path, body) in [
            ("/api/v1/identities/", format!(r#"{{"identifier":"u","x":{value}}}"#)),
            (
                "/api/v1/identities/",
                format!(r#"{{"identifier":"u","traits":[{{"trait_key":"t","trait_value":{value}}}]}}"#),
            ),
            ("/api/v1/identities/", value.clone()),
            ("/api/v1/bulk-identities/", format!(r#"{{"data":[{value}]}}"#)),
            ("/api/v1/traits/", format!(r#"{{"identity":{value},"trait_key":"t"}}"#)),
            ("/api/v1/analytics/flags/", format!(r#"{{"banner":{value}}}"#)),
            ("/api/v2/analytics/flags/", format!(r#"{{"evaluations":[{value}]}}"#)),
            ("/ofrep/v1/evaluate/flags", format!(r#"{{"context":{{"targetingKey":"u","x":{value}}}}}"#)),
            ("/proxy/explain/", format!(r#"{{"identifier":"u","x":{value}}}"#)),
        ] {
            let answer = proxy.post(path, SERVER, &body);
            assert!([200, 204, 400, 422].contains(&answer.status), "{path} {}: {body:.40}", answer.status);
        }
    }
    assert_eq!(proxy.get("/proxy/health/liveness", "").status, 200);
}

#[test]
fn event_stream_reports_a_new_document_immediately() {
    let upstream = Upstream::start();
    upstream.document(SERVER, document(1).to_string());
    let proxy = Start::serve()
        .set("api_url", upstream.api_url())
        .set("api_poll_frequency", 1)
        .environment(CLIENT, SERVER)
        .ready();
    let mut streams: Vec<Client> =
        ["/sse/environments/SurfaceClientKey/stream", "/ofrep/v1/environments/SurfaceClientKey/stream"]
            .map(|path| {
                let mut client = Client::connect(proxy.address());
                client.send(request("GET", path, &[("Origin", "https://app.example")], b""));
                let (status, fields) = client.head().expect("a head").expect("an answer");
                let field = |name: &str| {
                    fields.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
                };
                assert_eq!((status, field("content-type")), (200, Some("text/event-stream")));
                assert_eq!(field("access-control-allow-origin"), Some("*"));
                client
            })
            .into();
    let next = |client: &mut Client| loop {
        let line = client.line().expect("a line before the deadline");
        if let Some(data) = line.strip_prefix("data: ") {
            return data.to_owned();
        }
    };
    assert_eq!(
        next(&mut streams[0]),
        r#"{"updated_at": 1795168801.5}"#,
        "the current time after subscribing"
    );
    assert_eq!(next(&mut streams[1]), r#"{"type":"refetchEvaluation","lastModified":1795168801}"#);
    upstream.document(SERVER, document(2).to_string());
    assert_eq!(next(&mut streams[0]), r#"{"updated_at": 1795168802.5}"#);
    assert_eq!(next(&mut streams[1]), r#"{"type":"refetchEvaluation","lastModified":1795168802}"#);
    let header =
        proxy.get("/api/v1/flags/", CLIENT).header("x-flagsmith-document-updated-at").map(str::to_owned);
    assert_eq!(header.as_deref(), Some("1795168802.5"), "the same time as in responses");
    assert_eq!(proxy.get("/sse/environments/nope/stream", "").status, 401);
}

#[test]
fn event_stream_ends_after_its_lifetime_and_at_shutdown() {
    let start = || {
        let start = Start::serve();
        let path = start.scratch().write("surface.json", document(0).to_string());
        start.document(CLIENT, SERVER, path)
    };
    let subscribe = |proxy: &Proxy| {
        let mut client = Client::connect(proxy.address());
        client.send(request("GET", "/sse/environments/SurfaceClientKey/stream", &[], b""));
        assert_eq!(client.head().expect("a head").expect("an answer").0, 200);
        client
    };
    let lines = |mut client: Client| {
        let mut lines = Vec::new();
        while let Ok(line) = client.line() {
            lines.push(line);
        }
        lines
    };
    // Ruby reads a stream to its end, and Flutter reconnects every 29 seconds.
    let limited = start().set("sse", json!({"max_stream_seconds": 1})).ready();
    let whole = lines(subscribe(&limited));
    assert!(whole.contains(&"event: environment_updated".to_owned()), "{whole:?}");
    let mut stopped = start().ready();
    let client = subscribe(&stopped);
    stopped.signal("TERM");
    assert!(!lines(client).is_empty(), "closed while it drains, not reset");
    assert!(stopped.wait().success());
}

#[test]
fn serves_its_openapi_description() {
    let start = Start::serve().set("cache_dir", "cache").set("events.enabled", true);
    let start = start.set("traits.store", "memory");
    let path = start.scratch().write("surface.json", document(0).to_string());
    let proxy = start.document(CLIENT, SERVER, path).ready();
    let document = proxy.get("/openapi.json", "").json();
    let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
    assert!(paths.len() >= 17, "{paths:?}");
    for path in paths {
        let path = path.replace("{key}", CLIENT);
        let answer = send(&proxy, "OPTIONS", &path, &[], "");
        assert_eq!(answer.status, 405, "{path} exists and does not answer OPTIONS");
    }
    let page = proxy.get("/docs", "");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
}

#[test]
fn counts_reach_upstream_exactly() {
    let upstream = Upstream::start();
    upstream.document(SERVER, document(1).to_string());
    upstream.on("/api/v1/analytics/flags/", crate::support::Reply::json("{}"));
    let proxy = Start::serve()
        .set("api_url", upstream.api_url())
        .set("analytics", json!({"flush_interval_seconds": 1}))
        .environment(CLIENT, SERVER)
        .cores(2)
        .ready();
    let senders: Vec<_> = (0..8)
        .map(|sender| {
            let address = proxy.address();
            std::thread::spawn(move || {
                let mut client = Client::connect(address);
                let fields = [
                    ("X-Environment-Key", CLIENT),
                    ("User-Agent", if sender % 2 == 0 { "even/1" } else { "odd/1" }),
                ];
                for _ in 0..250 {
                    let answer = client.request(
                        "POST",
                        "/api/v1/analytics/flags/",
                        &fields,
                        br#"{"banner":3,"on":1,"unknown":9}"#,
                    );
                    assert_eq!(answer.text(), "{}");
                }
            })
        })
        .collect();
    senders.into_iter().for_each(|sender| sender.join().expect("all answered"));
    eventually("all counts upstream", || {
        let (mut banner, mut on, mut agents) = (0, 0, std::collections::BTreeSet::new());
        for sent in upstream.requests_for("/api/v1/analytics/flags/") {
            let counts = sent.json();
            assert!(counts.get("unknown").is_none(), "{counts}");
            banner += counts["banner"].as_u64().unwrap_or(0);
            on += counts["on"].as_u64().unwrap_or(0);
            agents.insert(sent.header("user-agent").unwrap_or_default().to_owned());
        }
        assert!(banner <= 6000 && on <= 2000, "counted twice: {banner} {on}");
        (banner == 6000 && on == 2000 && agents.contains("even/1") && agents.contains("odd/1")).then_some(())
    });
}

#[test]
fn the_root_says_what_this_is_and_leads_to_the_demo() {
    let proxy = start();
    let answer = proxy.get("/", "");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    assert_eq!(answer.text().lines().count(), 1);
    let said = answer.json();
    assert_eq!((&said["name"], &said["version"]), (&json!("edge-proxy"), &json!(env!("CARGO_PKG_VERSION"))));
    for link in ["docs", "openapi", "health"] {
        assert_eq!(proxy.get(said[link].as_str().expect("a path"), "").status, 200, "{link}");
    }
    assert!(!answer.text().contains(CLIENT) && !answer.text().contains("surface"), "{}", answer.text());
    assert_eq!(send(&proxy, "POST", "/", &[], "").status, 405);
    assert_eq!((proxy.get("//", "").status, proxy.get("/nope", "").status), (404, 404));
    let path = proxy.scratch().write("below.json", document(0).to_string());
    let below = Start::serve().document(CLIENT, SERVER, path).set("server.base_path", "/edge/v2").ready();
    assert_eq!(below.get("/", "").status, 404);
    let said = below.get("/edge/v2/", "").json();
    assert_eq!((&said["docs"], below.get("/edge/v2/docs", "").status), (&json!("/edge/v2/docs"), 200));
    let demo = Start::demo().ready();
    let answer = demo.get("/", "");
    assert_eq!((answer.status, answer.header("location")), (307, Some("/demo/")));
    assert_eq!(demo.get("/demo/", "").status, 200);
}
