//! Kept traits: the recorded sequences of Flagsmith core, sent to the running executable.
//!
//! The recordings are not part of this repository; `EDGE_PROXY_SHARED` is their directory. Each answer has the
//! same traits, in the same order, and the same flags, or `DEVIATIONS` has what it has instead.
mod disk;
pub mod numbers;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::{Answer, Client, PATIENCE, Proxy, Scratch, Start, eventually, fixture};

/// What a step has instead of the recorded answer.
#[derive(Clone, Copy, Debug)]
enum Instead {
    Status(u16),
    /// These traits as JSON, `{key: value}`; the flags follow from them.
    Traits(&'static str),
    /// Any answer.
    Any,
}

/// The steps that differ, and why. Numbers are rows of differences.md.
const DEVIATIONS: &[(&str, usize, Instead)] = {
    use Instead::{Any, Status, Traits};
    const GOLD: Instead = Traits(r#"[["plan","gold"]]"#);
    const TYPED: Instead = Traits(r#"[["plan","gold"],["n",10],["beta",true],["ver","2.1.0"]]"#);
    const TYPED_CORE: Instead = Traits(r#"[["n",10],["x",1.5]]"#);
    const OVER: Instead = Traits(r#"[["n",2147483648]]"#);
    const OVER_KNOWN: Instead = Traits(r#"[["plan","gold"],["age",30],["country","cz"],["n",2147483648]]"#);
    const OVER_UPDATE: Instead = Traits(r#"[["plan","silver"],["n",-2147483649],["country","cz"]]"#);
    &[
        // 80: the last value of a key in one body counts, null too.
        ("repeat-new", 0, GOLD),
        ("repeat-new", 1, GOLD),
        ("repeat-new", 2, Traits(r#"[["plan","gold"],["age",30]]"#)),
        ("repeat-new", 3, Traits(r#"[["plan","gold"],["age",30]]"#)),
        ("repeat-new-retry", 0, GOLD),
        ("repeat-new-retry", 2, GOLD),
        ("repeat-same-value-new", 0, GOLD),
        ("repeat-same-value-new", 1, GOLD),
        ("repeat-known", 2, GOLD),
        ("repeat-known", 3, GOLD),
        ("repeat-three", 2, Traits(r#"[["age",30],["plan","gold"]]"#)),
        ("null-then-value-stored", 2, GOLD),
        ("value-then-null-known", 1, Traits("[]")),
        ("value-then-null-known", 2, Traits("[]")),
        ("key-blank-twice", 2, Traits(r#"[["age",1],["plan","gold"]]"#)),
        ("bulk-twice-new", 1, GOLD),
        // 80: a request is all or nothing.
        ("bulk-fault-keeps-delete", 2, Traits(r#"[["plan","gold"],["age",30]]"#)),
        ("bulk-long-key", 1, Traits("[]")),
        ("bulk-inf", 1, Traits("[]")),
        ("bulk-inf", 3, Traits("[]")),
        // 80: integers beyond 32 bits are kept.
        ("bulk-500-partial", 0, Status(200)),
        ("bulk-500-partial", 2, OVER),
        ("bulk-500-partial", 3, GOLD),
        ("trait-post-bigint", 1, Status(200)),
        ("trait-post-bigint", 2, Traits(r#"[["a",2147483648]]"#)),
        ("increment-limits", 1, Status(200)),
        ("increment-limits", 2, OVER),
        ("increment-limits", 5, OVER),
        ("int-over-known", 1, OVER_KNOWN),
        ("int-over-known", 2, OVER_KNOWN),
        ("int-over-update", 1, OVER_UPDATE),
        ("int-over-update", 2, OVER_UPDATE),
        // 14: an object with exactly `value` and `type` is a typed value.
        ("bulk-types", 0, Status(200)),
        (
            "bulk-types",
            1,
            Traits(r#"[["a",true],["b",1.5],["c",3],["d",""],["e","[1]"],["f","x"],["g",1.0]]"#),
        ),
        ("typed", 0, TYPED),
        ("typed", 1, TYPED),
        ("typed-core", 0, TYPED_CORE),
        ("typed-core", 1, TYPED_CORE),
        // 15: without the slash the same; 20: bulk-identities/; 80: no paths with an identifier.
        ("bulk-methods", 3, Status(200)),
        ("bulk-methods", 4, GOLD),
        ("bulk-identities", 0, Status(200)),
        ("bulk-identities", 1, Status(404)),
        ("bulk-identities", 2, GOLD),
        ("deprecated", 0, Status(404)),
        ("deprecated", 1, Status(404)),
        ("deprecated", 2, Status(404)),
        ("deprecated", 3, Status(404)),
        ("deprecated", 4, Status(404)),
        ("deprecated", 5, Traits("[]")),
        // compatibility.md D25: flags/ evaluates segments without an identity, as the Python proxy does.
        ("flags-endpoint", 1, Any),
    ]
};

struct Recording {
    environments: Value,
    sequences: Vec<Value>,
}

fn recording() -> Option<Recording> {
    let path = fixture::shared("recordings/core-traits.jsonl")?;
    let text = std::fs::read_to_string(path).expect("readable");
    let mut lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let environments = lines.next()?["environments"].clone();
    Some(Recording { environments, sequences: lines.collect() })
}

/// A proxy that serves the recorded environments from files.
struct Replay {
    proxy: Proxy,
    environments: Value,
    documents: BTreeMap<String, PathBuf>,
}

impl Replay {
    fn start(recording: &Recording, start: impl FnOnce(Start) -> Start) -> Self {
        let mut begin = Start::serve().set("traits.store", "memory");
        let mut documents = BTreeMap::new();
        for (name, environment) in recording.environments.as_object().expect("environments") {
            let path = begin.scratch().write(&format!("{name}.json"), environment["document"].to_string());
            let key = |role: &str| environment[role].as_str().expect("a key").to_owned();
            begin = begin.document(&key("client"), &key("server"), &path);
            documents.insert(name.clone(), path);
        }
        let proxy = start(begin).ready();
        Self { proxy, environments: recording.environments.clone(), documents }
    }

    /// Changes a setting in a document, and waits until it is served.
    fn set(&mut self, change: &Value) {
        let name = change["environment"].as_str().expect("a name");
        let document = &mut self.environments[name]["document"];
        for (path, value) in
            change.as_object().expect("an object").iter().filter(|(path, _)| *path != "environment")
        {
            let pointer = match path.as_str() {
                "organisation.persist_trait_data" => "/project/organisation/persist_trait_data",
                "allow_client_traits" => "/allow_client_traits",
                other => panic!("unknown setting {other}"),
            };
            *document.pointer_mut(pointer).expect("in the document") = value.clone();
        }
        let before = self.document(name);
        std::fs::write(&self.documents[name], self.environments[name]["document"].to_string())
            .expect("writable");
        eventually("the changed document is served", || (self.document(name) != before).then_some(()));
    }

    fn document(&self, name: &str) -> Vec<u8> {
        let key = self.environments[name]["server"].as_str().expect("a key");
        let mut client = self.proxy.client();
        client.request("GET", "/api/v1/environment-document/", &[("X-Environment-Key", key)], b"").body
    }

    fn send(&self, client: &mut Client, request: &Value) -> Answer {
        let text = |name: &str| request[name].as_str().unwrap_or_default();
        let environment = &self.environments[text("environment")];
        let key = match text("key") {
            "none" => "",
            "wrong" => "a-wrong-key",
            role => environment[role].as_str().expect("a key"),
        };
        let content_type = request["content_type"].as_str().unwrap_or("application/json");
        let mut fields = vec![("Content-Type", content_type)];
        if !key.is_empty() {
            fields.push(("X-Environment-Key", key));
        }
        let body = match (&request["body"], &request["raw_body"]) {
            (_, Value::String(raw)) => raw.clone(),
            (Value::Null, _) => String::new(),
            (body, _) => body.to_string(),
        };
        let target = match text("query") {
            "" => text("path").to_owned(),
            query => format!("{}?{query}", text("path")),
        };
        client.request(text("method"), &target, &fields, body.as_bytes())
    }

    /// Plays a sequence on one connection; returns what differs.
    fn play(&mut self, sequence: &Value) -> Vec<String> {
        let name = sequence["name"].as_str().expect("a name");
        let mut differences = Vec::new();
        let mut client = self.proxy.client();
        let mut is_settled = true;
        for (index, step) in sequence["steps"].as_array().expect("steps").iter().enumerate() {
            let instead = DEVIATIONS.iter().find(|(of, at, _)| (*of, *at) == (name, index));
            let instead = instead.map(|(_, _, instead)| *instead);
            if !step["set"].is_null() {
                self.set(&step["set"]);
                continue;
            }
            if let Some(requests) = step["request"]["together"].as_array() {
                self.together(requests, &step["answer"]);
                is_settled = false;
                continue;
            }
            let request = &step["request"];
            let mut found = compare(&self.send(&mut client, request), request, &step["answer"], instead);
            // What other connections wrote may take a moment to arrive.
            let began = std::time::Instant::now();
            while !is_settled && found.is_err() && began.elapsed() < PATIENCE {
                found = compare(&self.send(&mut client, request), request, &step["answer"], instead);
            }
            is_settled = true;
            if let Err(difference) = found {
                differences.push(format!("{name} [{index}] {request}: {difference}"));
            }
        }
        differences
    }

    fn together(&self, requests: &[Value], answer: &Value) {
        let mut clients: Vec<Client> = requests.iter().map(|_| self.proxy.client()).collect();
        let mut statuses: Vec<u16> = std::thread::scope(|scope| {
            let sent: Vec<_> = requests
                .iter()
                .zip(&mut clients)
                .map(|(request, client)| scope.spawn(|| self.send(client, request).status))
                .collect();
            sent.into_iter().map(|sent| sent.join().expect("answered")).collect()
        });
        statuses.sort_unstable();
        assert_eq!(json!(statuses), answer["statuses"]);
    }
}

fn compare(
    answer: &Answer,
    request: &Value,
    recorded: &Value,
    instead: Option<Instead>,
) -> Result<(), String> {
    let status = recorded["status"].as_u64().expect("a status");
    let is_route_of_traits = request["path"].as_str().unwrap_or_default().contains("/traits/");
    let expected: &[u16] = match (status, request["key"].as_str()) {
        _ if matches!(instead, Some(Instead::Any)) => return Ok(()),
        // Keys and bodies are refused as by the Python proxy.
        (403, Some("none" | "wrong")) => &[401],
        (403, _) if is_route_of_traits => &[403],
        (400, _) => &[400, 422],
        (415 | 500, _) => &[422],
        _ => &[status as u16],
    };
    let expected = match instead {
        Some(Instead::Status(status)) => &[status][..],
        Some(Instead::Traits(_)) => &[200],
        _ => expected,
    };
    if !expected.contains(&answer.status) {
        return Err(format!("status {} instead of {expected:?}: {}", answer.status, answer.text()));
    }
    if answer.status != 200 || matches!(instead, Some(Instead::Status(_))) {
        return Ok(());
    }
    let json = answer.json();
    if let Some(body) = recorded.get("body") {
        return if *body == json { Ok(()) } else { Err(format!("{json} instead of {body}")) };
    }
    if let Some(identifier) = recorded["identifier"].as_str().filter(|text| !text.starts_with("<random"))
        && json["identifier"] != identifier
    {
        return Err(format!("{} instead of {identifier}", json["identifier"]));
    }
    let trait_of = |item: &Value| json!([item["trait_key"], item["trait_value"]]);
    let list = |items: &Value| items.as_array().map(|items| items.iter().map(trait_of).collect::<Vec<_>>());
    let mut traits = list(&json["traits"]).unwrap_or_default();
    if let Some(Instead::Traits(expected)) = instead {
        let expected: Vec<Value> = serde_json::from_str(expected).expect("JSON");
        return match traits == expected {
            true => Ok(()),
            false => Err(format!("traits {} instead of {}", json!(traits), json!(expected))),
        };
    }
    if request["unordered"] == json!(true) {
        traits.sort_by_key(Value::to_string);
    }
    if let Some(mut expected) = list(&recorded["traits"]) {
        if request["unordered"] == json!(true) {
            expected.sort_by_key(Value::to_string);
        }
        if traits != expected {
            return Err(format!("traits {} instead of {}", json!(traits), json!(expected)));
        }
    }
    if let Some(expected) = recorded["flags"].as_object() {
        let flags = if json.is_array() { &json } else { &json["flags"] };
        compare_flags(flags, expected)?;
    }
    Ok(())
}

fn compare_flags(flags: &Value, expected: &serde_json::Map<String, Value>) -> Result<(), String> {
    let found: BTreeMap<&str, &Value> = flags
        .as_array()
        .into_iter()
        .flatten()
        .map(|flag| (flag["feature"]["name"].as_str().unwrap_or_default(), flag))
        .collect();
    for (name, state) in expected {
        let Some(flag) = found.get(name.as_str()) else { return Err(format!("no flag {name}")) };
        let same = flag["enabled"] == state[0] && flag["feature_state_value"] == state[1];
        let same_variant = state[2].is_null() || flag["variant"] == state[2];
        if !same || !same_variant {
            return Err(format!("{name} is {flag} instead of {state}"));
        }
    }
    Ok(())
}

pub fn replay(start: impl FnOnce(Start) -> Start) {
    let Some(recording) = recording() else { return };
    let mut replay = Replay::start(&recording, start);
    let differences: Vec<String> =
        recording.sequences.iter().flat_map(|sequence| replay.play(sequence)).collect();
    assert_eq!(recording.sequences.len(), 153);
    assert!(differences.is_empty(), "{} steps differ:\n{}", differences.len(), differences.join("\n"));
}

#[test]
fn recorded_sequences_have_the_traits_and_flags_of_core() {
    replay(|start| start);
}

#[test]
fn recorded_sequences_are_the_same_with_two_reactors_and_a_disk() {
    let scratch = Scratch::new();
    let path = scratch.path().join("traits").to_string_lossy().into_owned();
    replay(|start| start.cores(2).set("traits.store", "disk").set("traits.path", path));
}

pub const CLIENT: &str = "client-side-key";
pub const SERVER: &str = "ser.server-side-key";

pub fn identities(client: &mut Client, identifier: &str, traits: &Value) -> Value {
    let body = json!({"identifier": identifier, "traits": traits}).to_string();
    let fields = [("X-Environment-Key", CLIENT), ("Content-Type", "application/json")];
    let answer = client.request("POST", "/api/v1/identities/", &fields, body.as_bytes());
    assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")), "{}", answer.text());
    assert_eq!(answer.header("last-modified"), None);
    answer.json()["traits"].clone()
}

pub fn kept(client: &mut Client, identifier: &str) -> Value {
    let target = format!("/api/v1/identities/?identifier={identifier}");
    let answer = client.request("GET", &target, &[("X-Environment-Key", CLIENT)], b"");
    assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")), "{}", answer.text());
    answer.json()["traits"].clone()
}

pub fn of_proxy(client: &mut Client, method: &str, identifier: &str, key: &str) -> Answer {
    let target = format!("/proxy/traits/?identifier={identifier}");
    client.request(method, &target, &[("X-Environment-Key", key)], b"")
}

/// A number of `make traits`, or that of the short form.
pub fn count(variable: &str, short: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(short)
}

/// Stores traits of several identities in one request.
pub fn store(client: &mut Client, identifiers: impl Iterator<Item = String>, traits: usize) {
    let items: Vec<Value> = identifiers
        .flat_map(|identifier| {
            (0..traits).map(move |index| {
                let value = format!("value {index}");
                json!({"identity": {"identifier": identifier}, "trait_key": format!("trait_{index}"), "trait_value": value})
            })
        })
        .collect();
    let fields = [("X-Environment-Key", CLIENT), ("Content-Type", "application/json")];
    let body = json!(items).to_string();
    let answer = client.request("PUT", "/api/v1/traits/bulk/", &fields, body.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// Waits until the store thread has merged nearly this many writes, so that none is refused.
fn settle(proxy: &Proxy, writes: f64) {
    let is_near = || (proxy.metric("edge_proxy_traits_writes_total") + 1000.0 >= writes).then_some(());
    eventually("writes are merged", is_near);
}

pub fn plan(value: &str) -> Value {
    json!([{"trait_key": "plan", "trait_value": value}])
}

#[test]
fn kept_traits_are_exported_and_erased_with_a_server_side_key() {
    let proxy = Start::demo_document().set("traits.store", "memory").cores(2).with_admin().ready();
    let mut client = proxy.client();
    identities(&mut client, "jane", &plan("gold"));
    let exported = of_proxy(&mut client, "GET", "jane", SERVER);
    assert_eq!((exported.status, exported.header("cache-control")), (200, Some("no-store")));
    assert_eq!(exported.json()["traits"], plan("gold"));
    for method in ["GET", "DELETE"] {
        assert_eq!(of_proxy(&mut client, method, "jane", CLIENT).status, 401);
        assert_eq!(of_proxy(&mut client, method, "", SERVER).status, 422);
    }
    assert_eq!(of_proxy(&mut client, "GET", "joe", SERVER).status, 404);
    for identifier in ["jane", "joe"] {
        let erased = of_proxy(&mut client, "DELETE", identifier, SERVER);
        assert_eq!((erased.status, erased.body.len()), (204, 0));
    }
    assert_eq!(of_proxy(&mut client, "GET", "jane", SERVER).status, 404);
    assert_eq!(kept(&mut client, "jane"), json!([]));
    eventually("erased", || (proxy.metric("edge_proxy_traits_erased_total") == 2.0).then_some(()));
    let without = Start::demo_document().ready();
    for (method, path) in [
        ("GET", "/proxy/traits/?identifier=jane"),
        ("DELETE", "/proxy/traits/?identifier=jane"),
        ("PUT", "/api/v1/traits/bulk/"),
        ("POST", "/api/v1/traits/increment-value/"),
    ] {
        let answer = without.client().request(method, path, &[("X-Environment-Key", SERVER)], b"");
        assert_eq!(answer.status, 404, "{method} {path} without a store");
    }
}

#[test]
fn an_identity_beyond_its_limit_is_413_and_nothing_is_kept() {
    let proxy = Start::demo_document().set("traits.store", "memory").ready();
    let mut client = proxy.client();
    identities(&mut client, "large", &plan("gold"));
    let item = |index: usize| json!({"trait_key": format!("key {index}"), "trait_value": "v".repeat(2000)});
    let traits: Vec<Value> = (0..33).map(item).collect();
    let body = json!({"identifier": "large", "traits": traits}).to_string();
    let answer = proxy.post("/api/v1/identities/", CLIENT, &body);
    assert_eq!(answer.status, 413, "{}", answer.text());
    assert_eq!(kept(&mut client, "large"), plan("gold"));
}

#[test]
fn openfeature_bulk_and_explain_count_kept_traits() {
    let recording = recording();
    let Some(recording) = recording else { return };
    let replay = Replay::start(&recording, |start| start);
    let (client_key, server_key) = ("traitsMainClient", "ser.traitsMainServer");
    let mut client = replay.proxy.client();
    let mut send = |method: &str, target: &str, key: &str, body: &Value| {
        let fields = [("X-Environment-Key", key), ("Content-Type", "application/json")];
        client.request(method, target, &fields, body.to_string().as_bytes()).json()
    };
    let gold = json!({"data": [{"identifier": "one", "traits": plan("gold")}, {"identifier": "two"}]});
    let bulk = send("POST", "/api/v1/bulk-identities/", client_key, &gold);
    assert_eq!((&bulk[0]["traits"], &bulk[1]["traits"]), (&plan("gold"), &json!([])));
    let context = json!({"context": {"targetingKey": "one", "age": 30}});
    let flag = send("POST", "/ofrep/v1/evaluate/flags/f_plan", client_key, &context);
    assert_eq!(flag["value"], "on", "{flag}");
    let silver = json!({"context": {"targetingKey": "one", "plan": "silver"}});
    let flag = send("POST", "/ofrep/v1/evaluate/flags/f_plan", client_key, &silver);
    assert!(flag["value"].is_null(), "the context wins, so the flag is disabled: {flag}");
    let explained = send("POST", "/proxy/explain/?feature=f_plan", server_key, &json!({"identifier": "one"}));
    assert!(explained.to_string().contains("\"on\""), "{explained}");
    let again =
        send("POST", "/api/v1/bulk-identities/", client_key, &json!({"data": [{"identifier": "one"}]}));
    assert_eq!(again[0]["traits"], plan("gold"), "a context is never kept");
}

#[test]
fn http2_answers_with_kept_traits() {
    let proxy = Start::demo_document().set("traits.store", "memory").ready();
    let mut client = crate::support::http2::Http2Client::connect(proxy.address());
    let fields = [("x-environment-key", CLIENT), ("content-type", "application/json")];
    let body =
        json!([{"identity": {"identifier": "h2"}, "trait_key": "plan", "trait_value": "gold"}]).to_string();
    let stored = client.request("PUT", "/api/v1/traits/bulk/", &fields, body.as_bytes());
    assert_eq!(stored.status, 200, "{}", stored.text());
    let answer = client.request("GET", "/api/v1/identities/?identifier=h2", &fields, b"");
    assert_eq!((&answer.json()["traits"], answer.header("cache-control")), (&plan("gold"), Some("no-store")));
    let erased =
        client.request("DELETE", "/proxy/traits/?identifier=h2", &[("x-environment-key", SERVER)], b"");
    assert_eq!(erased.status, 204);
}

fn on_disk(folder: &std::path::Path) -> Start {
    let path = folder.to_string_lossy().into_owned();
    Start::demo_document().set("traits.store", "disk").set("traits.path", path).with_admin()
}

fn written(proxy: &Proxy) {
    eventually("everything is on the disk", || {
        let is_written = proxy.metric("edge_proxy_traits_unwritten") == 0.0;
        (is_written && proxy.metric("edge_proxy_traits_commits_total") > 0.0).then_some(())
    });
}

#[test]
fn traits_on_disk_survive_a_kill_and_a_stop() {
    let scratch = Scratch::new();
    let folder = scratch.path().join("traits");
    let mut proxy = on_disk(&folder).ready();
    let mut client = proxy.client();
    for user in 0..500 {
        identities(&mut client, &format!("user-{user}"), &plan("gold"));
    }
    of_proxy(&mut client, "DELETE", "user-7", SERVER);
    eventually("merged", || (proxy.metric("edge_proxy_traits_erased_total") == 1.0).then_some(()));
    written(&proxy);
    proxy.signal("KILL");
    proxy.wait();
    let mut proxy = on_disk(&folder).ready();
    let mut client = proxy.client();
    assert_eq!(proxy.metric("edge_proxy_traits_identities"), 499.0, "read before it is ready");
    assert_eq!((kept(&mut client, "user-1"), kept(&mut client, "user-7")), (plan("gold"), json!([])));
    // What was written immediately before a stop is on the disk too.
    identities(&mut client, "user-1", &plan("silver"));
    proxy.signal("TERM");
    proxy.wait();
    let proxy = on_disk(&folder).ready();
    assert_eq!(kept(&mut proxy.client(), "user-1"), plan("silver"));
}

#[test]
fn a_damaged_file_is_put_aside_and_an_unusable_folder_is_logged() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path().join("traits")).expect("a folder");
    let file = scratch.write("traits/traits.redb", "x".repeat(100_000));
    let proxy = on_disk(file.parent().expect("a folder")).ready();
    proxy.wait_for_log("traits_file_damaged");
    let mut client = proxy.client();
    identities(&mut client, "jane", &plan("gold"));
    written(&proxy);
    let not_a_folder = scratch.write("file", "");
    let proxy = on_disk(&not_a_folder.join("traits")).ready();
    proxy.wait_for_log("traits_store_unavailable");
    let mut client = proxy.client();
    identities(&mut client, "jane", &plan("gold"));
    assert_eq!(kept(&mut client, "jane"), plan("gold"), "kept in memory");
    eventually("a failed commit is counted", || {
        (proxy.metric("edge_proxy_traits_commits_failed_total") > 0.0).then_some(())
    });
    let (code, output) = on_disk(&not_a_folder.join("traits")).check().run();
    assert!(code != Some(0) && output.contains("traits.path"), "{output}");
}
