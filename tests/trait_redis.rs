//! Kept traits in Redis, with Debian's `redis-server`: several proxies, outages of Redis, lost data, limits.
//!
//! `make traits` runs the long form of `fleet`. Without `redis-server` the tests are skipped with a message.
mod fleet;

use serde_json::{Value, json};

use crate::support::redis::free_port;
use crate::support::tls::Authority;
use crate::support::{Client, Proxy, RedisServer, Scratch, Start, eventually};
use crate::traits::{CLIENT, SERVER, identities, kept, of_proxy, plan, replay};

fn with_redis(url: &str) -> Start {
    Start::demo_document().set("traits.store", "redis").set("traits.redis_url", url).with_admin()
}

/// Waits until Redis has everything that this proxy has written.
fn stored(proxy: &Proxy) {
    eventually("Redis has all changes", || {
        let is_settled = proxy.metric("edge_proxy_traits_queued") == 0.0;
        (is_settled && proxy.metric("edge_proxy_traits_redis_unsent") == 0.0).then_some(())
    });
}

/// Waits until this proxy has these traits of an identity.
fn arrives(proxy: &Proxy, identifier: &str, traits: &Value) {
    let exported = || {
        let answer = of_proxy(&mut proxy.client(), "GET", identifier, SERVER);
        (answer.status == 200).then(|| answer.json()["traits"].clone())
    };
    let mut last = None;
    eventually(&format!("{identifier} has {traits}"), || {
        last = exported();
        (last.as_ref() == Some(traits)).then_some(())
    });
}

fn increment(client: &mut Client, identifier: &str) {
    let body = json!({"identifier": identifier, "trait_key": "count", "increment_by": 1}).to_string();
    let fields = [("X-Environment-Key", CLIENT), ("Content-Type", "application/json")];
    let answer = client.request("POST", "/api/v1/traits/increment-value/", &fields, body.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn recorded_sequences_are_the_same_with_redis() {
    let Some(redis) = RedisServer::start() else { return };
    replay(|start| start.set("traits.store", "redis").set("traits.redis_url", redis.url()));
}

#[test]
fn proxies_share_values_deletions_order_increments_and_erasures() {
    let Some(redis) = RedisServer::start() else { return };
    let (one, two) = (with_redis(&redis.url()).ready(), with_redis(&redis.url()).cores(2).ready());
    let (mut at_one, mut at_two) = (one.client(), two.client());
    let sent = json!([
        {"trait_key": "z", "trait_value": 1},
        {"trait_key": "a", "trait_value": "text: é\n"},
        {"trait_key": "m", "trait_value": 1.0},
        {"trait_key": "b", "trait_value": true},
    ]);
    identities(&mut at_one, "jane", &sent);
    arrives(&two, "jane", &sent);
    identities(&mut at_two, "jane", &json!([{"trait_key": "a", "trait_value": null}]));
    let left = json!([sent[0], sent[2], sent[3]]);
    arrives(&one, "jane", &left);
    identities(&mut at_one, "jane", &json!([{"trait_key": "a", "trait_value": 5}]));
    arrives(&two, "jane", &json!([sent[0], sent[2], sent[3], {"trait_key": "a", "trait_value": 5}]));
    // An identity without traits is known to the other proxy too.
    kept(&mut at_one, "nothing");
    arrives(&two, "nothing", &json!([]));
    for _ in 0..50 {
        increment(&mut at_one, "counter");
        increment(&mut at_two, "counter");
    }
    let sum = json!([{"trait_key": "count", "trait_value": 100}]);
    arrives(&one, "counter", &sum);
    arrives(&two, "counter", &sum);
    assert_eq!(of_proxy(&mut at_two, "DELETE", "jane", SERVER).status, 204);
    eventually("erased at the other proxy", || {
        (of_proxy(&mut at_one, "GET", "jane", SERVER).status == 404).then_some(())
    });
    let fields: Vec<String> = redis::cmd("HKEYS")
        .arg("edge-proxy:1:i:client-side-key jane")
        .query(&mut redis.connection())
        .expect("a hash");
    assert_eq!(fields, ["e"], "only the mark of the erasure is left");
    identities(&mut at_one, "jane", &plan("new"));
    arrives(&two, "jane", &plan("new"));
}

#[test]
fn a_start_without_redis_serves_and_stores_later() {
    let Some(mut redis) = RedisServer::start() else { return };
    redis.kill();
    let one = with_redis(&redis.url()).ready();
    one.wait_for_log("traits_store_unavailable");
    let two = with_redis(&redis.url()).set("traits.require", true).start();
    two.wait_for_log("environment_updated");
    let is_ready = |proxy: &Proxy| proxy.get("/proxy/health/readiness", "").status == 200;
    let answer = two.get("/proxy/health/readiness", "");
    assert!(answer.status == 503 && answer.text().contains("store of kept traits"), "{}", answer.text());
    identities(&mut one.client(), "jane", &plan("gold"));
    increment(&mut one.client(), "counter");
    increment(&mut two.client(), "counter");
    assert_eq!(kept(&mut one.client(), "jane"), plan("gold"));
    assert_eq!(one.metric("edge_proxy_traits_redis_unavailable"), 1.0);
    assert!(one.metric("edge_proxy_traits_redis_unsent") >= 2.0);
    redis.restart();
    arrives(&two, "jane", &plan("gold"));
    for proxy in [&one, &two] {
        arrives(proxy, "counter", &json!([{"trait_key": "count", "trait_value": 2}]));
    }
    eventually("ready with Redis", || is_ready(&two).then_some(()));
    one.wait_for_log("traits_store_available");
    assert_eq!(one.log().matches("traits_store_unavailable").count(), 1, "logged once");
    // A start with Redis has everything before it is ready.
    let three = with_redis(&redis.url()).ready();
    assert_eq!(kept(&mut three.client(), "jane"), plan("gold"));
    redis.kill();
    eventually("red without Redis", || (!is_ready(&two)).then_some(()));
    assert!(is_ready(&one), "not required");
}

#[test]
fn nothing_is_lost_when_redis_restarts_or_loses_its_data() {
    let Some(mut redis) = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]) else {
        return;
    };
    let (one, two) = (with_redis(&redis.url()).ready(), with_redis(&redis.url()).ready());
    let write = |round: usize| {
        for user in 0..20 {
            let proxy = if user % 2 == 0 { &one } else { &two };
            identities(&mut proxy.client(), &format!("{round}-{user}"), &plan(&format!("{round}")));
            increment(&mut proxy.client(), "counter");
        }
    };
    let agree = |rounds: usize| {
        for proxy in [&one, &two] {
            for round in 0..rounds {
                (0..20).for_each(|user| {
                    arrives(proxy, &format!("{round}-{user}"), &plan(&format!("{round}")));
                });
            }
            arrives(proxy, "counter", &json!([{"trait_key": "count", "trait_value": 20 * rounds}]));
        }
    };
    write(0);
    redis.kill();
    write(1);
    redis.restart();
    agree(2);
    // Its disk is empty after this restart.
    redis.kill();
    std::fs::remove_dir_all(redis.scratch().path().join("appendonlydir")).expect("its data");
    write(2);
    redis.restart();
    agree(3);
    one.wait_for_log("traits_store_lost_data");
    // The data are removed while it runs, when each proxy has read its own increments in the stream.
    stored(&one);
    stored(&two);
    identities(&mut one.client(), "after-one", &plan("gold"));
    arrives(&two, "after-one", &plan("gold"));
    identities(&mut two.client(), "after-two", &plan("gold"));
    arrives(&one, "after-two", &plan("gold"));
    redis::cmd("FLUSHALL").exec(&mut redis.connection()).expect("flushed");
    write(3);
    agree(4);
    stored(&one);
    stored(&two);
    let three = with_redis(&redis.url()).ready();
    // One and two may still be writing what Redis has lost.
    let has_all = || three.metric("edge_proxy_traits_identities") == 83.0;
    eventually("a third proxy has all identities", || has_all().then_some(()));
    assert_eq!(one.metric("edge_proxy_traits_redis_dropped_total"), 0.0);
}

#[test]
fn a_killed_proxy_has_everything_after_its_restart() {
    let Some(mut redis) = RedisServer::start() else { return };
    let scratch = Scratch::new();
    let path = scratch.path().join("traits").to_string_lossy().into_owned();
    let start = || with_redis(&redis.url()).set("traits.path", path.clone());
    let mut one = start().ready();
    identities(&mut one.client(), "jane", &plan("gold"));
    stored(&one);
    one.signal("KILL");
    one.wait();
    let mut one = start().ready();
    assert_eq!(kept(&mut one.client(), "jane"), plan("gold"));
    // Written while there is no Redis, on the disk only.
    redis.kill();
    identities(&mut one.client(), "joe", &plan("silver"));
    eventually("on the disk", || {
        let is_written = one.metric("edge_proxy_traits_unwritten") == 0.0;
        (is_written && one.metric("edge_proxy_traits_queued") == 0.0).then_some(())
    });
    one.signal("KILL");
    one.wait();
    let start = || with_redis(&redis.url()).set("traits.path", path.clone());
    let one = start().ready();
    assert_eq!(kept(&mut one.client(), "joe"), plan("silver"), "from the disk");
    redis.restart();
    let two = with_redis(&redis.url()).ready();
    arrives(&two, "jane", &plan("gold"));
    arrives(&two, "joe", &plan("silver"));
}

/// Leaves only the last entry of the stream.
fn trim_stream(connection: &mut redis::Connection) {
    redis::cmd("XTRIM").arg("edge-proxy:1:stream").arg("MAXLEN").arg(1).exec(connection).expect("trimmed");
}

#[test]
fn a_proxy_that_was_behind_the_stream_reads_all_again() {
    let Some(redis) = RedisServer::start() else { return };
    let (one, two) = (with_redis(&redis.url()).ready(), with_redis(&redis.url()).ready());
    for name in ["stays", "leaves"] {
        identities(&mut one.client(), name, &plan("gold"));
        arrives(&two, name, &plan("gold"));
    }
    two.signal("STOP");
    let mut connection = redis.connection();
    of_proxy(&mut one.client(), "DELETE", "leaves", SERVER);
    identities(&mut one.client(), "comes", &plan("gold"));
    stored(&one);
    // As after an hour: the changes and the mark of the erasure are removed.
    trim_stream(&mut connection);
    redis::cmd("DEL").arg("edge-proxy:1:i:client-side-key leaves").exec(&mut connection).expect("removed");
    redis::cmd("CLIENT")
        .arg("KILL")
        .arg("TYPE")
        .arg("normal")
        .arg("SKIPME")
        .arg("yes")
        .exec(&mut connection)
        .expect("closed");
    identities(&mut one.client(), "last", &plan("gold"));
    stored(&one);
    trim_stream(&mut connection);
    two.signal("CONT");
    for name in ["stays", "comes", "last"] {
        arrives(&two, name, &plan("gold"));
    }
    eventually("what was erased is removed", || {
        (of_proxy(&mut two.client(), "GET", "leaves", SERVER).status == 404).then_some(())
    });
    assert_eq!(two.metric("edge_proxy_traits_redis_reloads_total"), 2.0);
}

#[test]
fn an_identity_that_a_parted_proxy_has_read_stays_erased() {
    let Some(mut redis) = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]) else {
        return;
    };
    let (one, two) = (with_redis(&redis.url()).ready(), with_redis(&redis.url()).ready());
    for name in ["read", "written"] {
        identities(&mut one.client(), name, &plan("gold"));
        arrives(&two, name, &plan("gold"));
    }
    redis.kill();
    kept(&mut two.client(), "read");
    identities(&mut two.client(), "written", &plan("silver"));
    eventually("both wait", || (two.metric("edge_proxy_traits_redis_unsent") >= 2.0).then_some(()));
    two.signal("STOP");
    redis.restart();
    for name in ["read", "written"] {
        of_proxy(&mut one.client(), "DELETE", name, SERVER);
    }
    stored(&one);
    // As after an hour: the changes and the marks of the erasures are removed.
    let mut connection = redis.connection();
    for name in ["read", "written"] {
        let key = format!("edge-proxy:1:i:client-side-key {name}");
        redis::cmd("DEL").arg(key).exec(&mut connection).expect("removed");
    }
    identities(&mut one.client(), "last", &plan("gold"));
    stored(&one);
    trim_stream(&mut connection);
    two.signal("CONT");
    arrives(&two, "last", &plan("gold"));
    eventually("what was erased is removed", || {
        (of_proxy(&mut two.client(), "GET", "read", SERVER).status == 404).then_some(())
    });
    stored(&two);
    arrives(&one, "written", &plan("silver"));
    assert!(redis.keys().iter().all(|key| !key.ends_with(" read")), "{:?}", redis.keys());
}

#[test]
fn an_evicted_identity_is_whole_again_when_it_is_written() {
    let Some(redis) = RedisServer::start() else { return };
    let one = with_redis(&redis.url()).ready();
    let two = with_redis(&redis.url()).set("traits.identities_max", 50).ready();
    let both = json!([{"trait_key": "a", "trait_value": 1}, {"trait_key": "b", "trait_value": 2}]);
    for name in ["jane", "joe"] {
        identities(&mut one.client(), name, &json!([both[0]]));
    }
    for user in 0..300 {
        identities(&mut one.client(), &format!("user-{user}"), &plan("gold"));
    }
    stored(&one);
    for name in ["jane", "joe"] {
        eventually("evicted", || {
            (of_proxy(&mut two.client(), "GET", name, SERVER).status == 404).then_some(())
        });
    }
    identities(&mut one.client(), "jane", &json!([both[1]]));
    arrives(&two, "jane", &both);
    // Also if the proxy that does not have it writes.
    identities(&mut two.client(), "joe", &json!([both[1]]));
    arrives(&two, "joe", &both);
    arrives(&one, "joe", &both);
}

#[test]
fn identities_expire_in_redis_too() {
    let Some(redis) = RedisServer::start() else { return };
    let one = with_redis(&redis.url()).set("traits.ttl_seconds", 3600).ready();
    identities(&mut one.client(), "jane", &plan("gold"));
    stored(&one);
    let left: i64 = redis::cmd("TTL")
        .arg("edge-proxy:1:i:client-side-key jane")
        .query(&mut redis.connection())
        .expect("a time");
    assert!((3000..=3600).contains(&left), "{left}");
}

#[test]
fn passwords_are_used_and_never_shown() {
    let Some(redis) = RedisServer::start_with(&["--requirepass", "s3cret-word"]) else { return };
    let port = redis.port();
    let scratch = Scratch::new();
    let file = scratch.write("url", format!("redis://:s3cret-word@127.0.0.1:{port}/0\n"));
    let start = || Start::demo_document().set("traits.store", "redis").with_admin();
    let one = start().env("TRAITS_REDIS_URL_FILE", &file.to_string_lossy()).ready();
    identities(&mut one.client(), "jane", &plan("gold"));
    stored(&one);
    let (code, output) = start().env("TRAITS_REDIS_URL_FILE", &file.to_string_lossy()).check().run();
    assert!(code == Some(0) && output.contains(&format!("127.0.0.1:{port}")), "{output}");
    let wrong = format!("redis://:another-s3cret@127.0.0.1:{port}/0");
    let two = start().set("traits.redis_url", wrong.clone()).ready();
    let line = two.wait_for_log("traits_store_unavailable");
    let (code, checked) = start().set("traits.redis_url", wrong).check().run();
    assert_ne!(code, Some(0));
    let status = crate::support::get(one.admin(), "/status.json", "").text();
    for text in [line, one.log(), two.log(), output, checked, status] {
        assert!(!text.contains("s3cret"), "{text}");
    }
}

#[test]
fn redis_is_used_over_tls() {
    let authority = Authority::new();
    let issued = authority.issue("localhost");
    let scratch = Scratch::new();
    let file = |name: &str, content: &str| scratch.write(name, content).to_string_lossy().into_owned();
    let (cert, key) = (file("cert.pem", &issued.certificate), file("key.pem", &issued.key));
    let (ca, tls_port) = (file("ca.pem", &authority.pem()), free_port().to_string());
    let args = ["--tls-port", &tls_port, "--tls-cert-file", &cert, "--tls-key-file", &key];
    let no_clients = ["--tls-ca-cert-file", &ca, "--tls-auth-clients", "no"];
    let Some(redis) = RedisServer::start_with(&[&args[..], &no_clients[..]].concat()) else { return };
    let url = format!("rediss://localhost:{tls_port}");
    let one = with_redis(&url).set("traits.redis_ca_file", ca).ready();
    identities(&mut one.client(), "jane", &plan("gold"));
    stored(&one);
    assert!(redis.keys().iter().any(|key| key.ends_with("jane")));
    let two = with_redis(&url).ready();
    let line = two.wait_for_log("traits_store_unavailable");
    assert!(line.contains("certificate"), "an unknown authority is refused: {line}");
}

#[test]
fn settings_of_redis_are_checked_at_the_start() {
    for (setting, value, expected) in [
        ("traits.redis_url", "redis+sentinel://a,b", "follows the master"),
        ("traits.redis_url", "redis://a:1,b:2", "follows the master"),
        ("traits.redis_url", "http://s3cret", "rediss:// for TLS"),
        ("traits.redis_url", "redis://s3cret/database", "rediss:// for TLS"),
        ("traits.redis_ca_file", "/missing/ca.pem", "/missing/ca.pem"),
    ] {
        let (code, output) = with_redis("redis://127.0.0.1:1").set(setting, value).run();
        assert!(code == Some(64) && output.contains(expected), "{setting} {value}: {code:?} {output}");
        assert!(!output.contains("s3cret"), "{output}");
    }
    let (code, output) = Start::demo_document().set("traits.store", "redis").run();
    assert!(code == Some(64) && output.contains("traits.redis_url is not set"), "{output}");
}
