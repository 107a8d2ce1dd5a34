//! The Helm chart, rendered by Helm's own code (`tests/python/chart.py`), and what the proxy does with a mounted
//! configuration.
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Start, eventually, fixture, get, python};

#[test]
fn renders_as_the_golden_files() {
    python::run("chart.py", &["compare"]);
}

#[test]
fn refuses_misspelled_values_and_settings() {
    python::run("chart.py", &["refuse"]);
}

#[test]
fn manifests_have_the_schemas_of_kubernetes_and_values_their_own() {
    python::run("chart.py", &["validate"]);
}

/// A value that differs from the default of the setting.
fn sample(setting: &str) -> Value {
    match setting {
        "cores" => json!(2),
        "logging.log_format" => json!("generic"),
        "logging.log_level" => json!("DEBUG"),
        "server.driver" => json!("epoll"),
        "server.requests_max" | "server.connections_max" | "api_document_bytes_max" => json!(7),
        "server.head_bytes_max" => json!(8192),
        "server.http2_streams_max" | "server.spin_microseconds" => json!(7),
        "server.http2" => json!(false),
        "traits.store" => json!("memory"),
        "traits.bytes_max" | "traits.identities_max" => json!(8_388_608),
        "traits.path" => json!("/traits"),
        "traits.redis_url" => json!("redis://redis.example.com"),
        "traits.redis_prefix" => json!("another:"),
        "events.fsync" => json!("second"),
        "events.spool_bytes_max" => json!(8_388_608),
        "server.tcp" | "analytics.enabled" | "health_check.ready_from_cache" => json!(false),
        "health_check.require" => json!("any"),
        "server.unix_socket_mode" => json!("0660"),
        "api_headers" => json!({"X-Gateway-Token": "a"}),
        "admin.allowed_hosts" | "server.allow_list" | "server.deny_list" => json!(["192.0.2.1"]),
        "allow_origins" => json!(["https://www.example.com"]),
        "documents" => json!(["/documents/main.json"]),
        "endpoint_caches" | "logging.override" => json!({}),
        "server.base_path" => json!("/flags"),
        "server.forwarded_allow_ips" => json!(["10.0.0.0/8"]),
        "api_url" | "realtime.url" | "events.url" => json!("https://flags.example.com/api/v1"),
        path if path.contains("seconds") || path.contains("timeout") => json!(7),
        path if ["cert", "key", "ca", "file", "socket"].iter().any(|end| path.ends_with(end)) => json!("/a"),
        path if path.ends_with("field_name") => json!("event"),
        _ => json!(true),
    }
}

/// The first cells of the tables of settings.
fn documented_settings(page: &str) -> Vec<&str> {
    let (_, tables) = page.split_once("## Settings").expect("the tables");
    let tables = tables.split("\n## ").next().expect("the tables");
    let cells =
        tables.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split(" | ").next());
    cells.flat_map(|cell| cell.split('(').next().expect("names").split('`').skip(1).step_by(2)).collect()
}

#[test]
fn pods_are_replaced_only_for_settings_that_need_a_restart() {
    let page = std::fs::read_to_string(fixture::root().join("docs/configuration.md")).expect("the page");
    let (_, section) = page.split_once("## What needs a restart").expect("the list");
    let needs_restart: Vec<&str> =
        section.lines().filter_map(|line| line.strip_prefix("- `")?.strip_suffix('`')).collect();
    // The chart sets these, and its schema refuses them.
    let own = [
        "admin.host",
        "admin.port",
        "cache_dir",
        "environment_key_pairs",
        "proxy_key",
        "server.host",
        "server.port",
    ];
    let settings: Vec<&str> =
        documented_settings(&page).into_iter().filter(|setting| !own.contains(setting)).collect();
    assert!(settings.len() > 50, "{settings:?}");
    let samples: Vec<(&str, Value)> = settings.iter().map(|setting| (*setting, sample(setting))).collect();
    let printed = python::run("chart.py", &["restart", &json!(samples).to_string()]);
    let replaced: Value = serde_json::from_str(&printed).expect("JSON");
    for setting in settings {
        assert_eq!(replaced[setting], needs_restart.contains(&setting), "{setting}");
    }
}

/// The configuration of every case is valid, and has no name that the proxy does not know.
#[test]
fn rendered_configurations_have_no_warning() {
    for case in ["default", "everything", "client-certificates"] {
        let mut config: Value =
            serde_json::from_str(&python::run("chart.py", &["config", case])).expect("JSON");
        let start = Start::command(&["check"]);
        let scratch = start.scratch().path().to_owned();
        config["cache_dir"] = json!(scratch);
        // Its certificates come from a volume, which is not here.
        config["server"].as_object_mut().expect("an object").remove("tls");
        if config["logging"]["access_log_file"].is_string() {
            config["logging"]["access_log_file"] = json!(scratch.join("access.log"));
        }
        let path = start.scratch().write("rendered.json", config.to_string());
        let (code, text) = start.arg("--config").arg(path).run();
        let unexpected = text.lines().filter(|line| line.starts_with("warn") && !line.contains("example"));
        assert_eq!((code, unexpected.count()), (Some(0), 0), "{case}: {text}");
    }
}

/// Writes a volume as the kubelet does: files are links through `..data`, which is replaced as a whole.
fn write_volume(volume: &Path, revision: &str, config: &Value) {
    let data = volume.join(format!("..{revision}"));
    std::fs::create_dir_all(&data).expect("created");
    std::fs::write(data.join("config.json"), config.to_string()).expect("written");
    symlink(data.file_name().expect("a name"), volume.join("..data_tmp")).expect("linked");
    std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).expect("renamed");
    if !volume.join("config.json").is_symlink() {
        symlink("..data/config.json", volume.join("config.json")).expect("linked");
    }
}

#[test]
fn mounted_configuration_is_read_again_when_the_volume_is_updated() {
    let start = Start::serve();
    let (volume, port) = (start.scratch().path().join("app"), start.address().port());
    let config = |client_side_key: &str| {
        let document = fixture::path("environments/Main.json");
        json!({
            "environment_key_pairs": [{
                "client_side_key": client_side_key, "server_side_key": "ser.mounted", "document_path": document,
            }],
            "server": {"host": "127.0.0.1", "port": port},
        })
    };
    write_volume(&volume, "1", &config("before"));
    let proxy = start.arg("--config").arg(volume.join("config.json")).ready();
    assert_eq!(proxy.get("/api/v1/flags/", "before").status, 200);
    write_volume(&volume, "2", &config("after"));
    std::fs::remove_dir_all(volume.join("..1")).expect("removed");
    eventually("the new key", || {
        (get(proxy.address(), "/api/v1/flags/", "after").status == 200).then_some(())
    });
    assert_eq!(proxy.get("/api/v1/flags/", "before").status, 401, "the old key is revoked");
}
