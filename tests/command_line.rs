//! What the command line prints for people, shells and packages: versions, completions, man pages, every
//! setting, the schema of the configuration file, and the reason for a second Ctrl-C.
use std::process::{Command, Stdio};

use edge_proxy::config::settings::SETTINGS;
use edge_proxy::config::{ConfigError, Inputs};
use serde_json::{Value, json};

use crate::support::{Scratch, Start, executable, fixture, get, python, upstream::Upstream};

/// stdout of a command that succeeds.
fn stdout(args: &[&str]) -> String {
    let output = Command::new(executable()).args(args).env_clear().output().expect("starts");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn the_build_is_named_in_the_version_the_metrics_and_the_status() {
    let version = stdout(&["--version"]);
    let inside =
        version.trim_end().rsplit_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).expect("()");
    let (commit, rest) = inside.split_once(' ').expect("a commit");
    let (date, target) = rest.split_once(", ").expect("a date");
    assert!(target.contains("-linux-"), "{version}");
    let proxy = Start::demo_document().with_admin().ready();
    let status = get(proxy.admin(), "/status.json", "").json();
    assert_eq!(
        (&status["commit"], &status["commit_date"], &status["target"]),
        (&json!(commit), &json!(date), &json!(target))
    );
    let info = format!(
        "edge_proxy_info{{version=\"{}\",commit=\"{commit}\",commit_date=\"{date}\",target=\"{target}\"}}",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(proxy.metric(&info), 1.0);
}

#[test]
fn completions_are_accepted_by_their_shell() {
    let scratch = Scratch::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&["completions", shell]);
        for word in ["render-config", "take-over", "poll-interval", "completions"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        let path = scratch.write(&format!("completion.{shell}"), &script);
        // Parses without running; a shell that is not installed cannot judge.
        match Command::new(shell).arg("-n").arg(&path).output() {
            Ok(output) => {
                assert!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr));
            }
            Err(_) => fixture::say(&format!("{shell} is not installed: its completions were not parsed")),
        }
    }
    // What bash would offer.
    let offered = "source \"$0\"; set -- $(complete -p edge-proxy); while [ \"$1\" != -F ]; do shift; done; \
                   COMP_WORDS=(edge-proxy rend); COMP_CWORD=1; \"$2\" edge-proxy rend edge-proxy; \
                   echo \"${COMPREPLY[@]}\"";
    let path = scratch.path().join("completion.bash");
    let output = Command::new("bash").args(["-c", offered]).arg(path).output().expect("bash");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "render-config");
    let (code, text) = Start::command(&["completions", "tcl"]).run();
    assert!(code == Some(64) && text.contains("bash"), "{text}");
}

#[test]
fn man_pages_have_every_command_and_flag() {
    let scratch = Scratch::new();
    stdout(&["man", scratch.path().to_str().expect("UTF-8")]);
    let page = |name: &str| std::fs::read_to_string(scratch.path().join(name)).expect(name);
    let main = page("edge-proxy.8");
    for part in [
        ".TH edge-proxy 8",
        ".SH SYNOPSIS",
        ".SH \"EXIT STATUS\"",
        "edge\\-proxy\\-explain(8)",
        "take\\-over",
    ] {
        assert!(main.contains(part), "{part} in\n{main}");
    }
    let serve = page("edge-proxy-serve.8");
    assert!(serve.contains("EDGE_PROXY_SERVER_PORT") && serve.contains(".SH LISTENERS"), "{serve}");
    let mut pages: Vec<_> = std::fs::read_dir(scratch.path())
        .expect("readable")
        .map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8"))
        .collect();
    pages.sort();
    let commands = ["-check", "-completions", "-demo", "-explain", "-health", "-render-config", "-serve", ""];
    assert_eq!(pages, commands.map(|command| format!("edge-proxy{command}.8")));
    // mandoc or groff, whichever is installed, has nothing to complain of.
    for name in &pages {
        let path = scratch.path().join(name);
        match Command::new("groff").args(["-man", "-ww", "-z", "-Tutf8"]).arg(&path).output() {
            Ok(output) => {
                assert!(output.stderr.is_empty(), "{name}: {}", String::from_utf8_lossy(&output.stderr))
            }
            Err(_) => fixture::say("groff is not installed: the man pages were not formatted"),
        }
    }
    assert!(!stdout(&["--help"]).contains("\n  man "), "hidden: it is for packages");
}

#[test]
fn help_groups_flags_and_names_their_variables() {
    let help = stdout(&["serve", "--help"]);
    let at = |text: &str| help.find(text).unwrap_or_else(|| panic!("{text} in\n{help}"));
    assert!(at("Configuration and environments:") < at("--config"));
    assert!(at("--document") < at("Listeners:") && at("Listeners:") < at("--port"));
    assert!(at("--admin-port") < at("CPUs and log:") && at("CPUs and log:") < at("--cores"));
    at("[env: EDGE_PROXY_API_POLL_FREQUENCY_SECONDS]");
    assert!(stdout(&["--help"]).contains("render-config --all"));
}

#[test]
fn every_setting_is_printed_without_writing_a_file() {
    let start = Start::command(&["render-config", "--all"]);
    let path = start.scratch().path().join("config.json");
    let (code, text) = start.run();
    assert!(code == Some(0) && !path.exists(), "{text}");
    let all: Value = serde_json::from_str(&text).expect("JSON");
    for setting in SETTINGS {
        let place = setting.path.split('.').try_fold(&all, |place, name| place.get(name));
        assert!(place.is_some(), "{} in {all}", setting.path);
    }
    let (code, text) = Start::command(&["render-config", "--all", "--schema"]).run();
    assert_eq!(code, Some(64), "{text}");
}

#[test]
fn the_published_schema_is_that_of_the_executable() {
    let published = std::fs::read_to_string(fixture::root().join("docs/config.schema.json")).expect("a file");
    let printed = stdout(&["render-config", "--schema"]);
    assert!(published == printed, "write it: edge-proxy render-config --schema > docs/config.schema.json");
}

/// Judges files by the published schema.
fn judge(files: &[Value]) -> Vec<bool> {
    let lines: Vec<String> = files.iter().map(Value::to_string).collect();
    let scratch = Scratch::new();
    let input = scratch.write("files.jsonl", lines.join("\n"));
    let output = Command::new(python::interpreter())
        .arg(fixture::root().join("tests/python/schema.py"))
        .arg(fixture::root().join("docs/config.schema.json"))
        .stdin(Stdio::from(std::fs::File::open(input).expect("a file")))
        .output()
        .expect("Python");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let verdicts: Vec<bool> =
        String::from_utf8_lossy(&output.stdout).lines().map(|line| line == "true").collect();
    assert_eq!(verdicts.len(), files.len());
    verdicts
}

/// Whether the proxy reads the file without an issue of this setting.
fn is_accepted(file: &Value, path: &str) -> bool {
    let scratch = Scratch::new();
    let config_path = Some(scratch.write("config.json", file.to_string()));
    let inputs = Inputs { config_path, ..Inputs::default() };
    match edge_proxy::config::load(&inputs) {
        Ok(_) => true,
        Err(ConfigError { issues, .. }) => !issues.iter().any(|issue| issue.setting.starts_with(path)),
    }
}

/// A file in which every setting may have any value by itself: both files of each certificate are set, and
/// so is a second listener.
fn file_with(path: &str, value: &Value) -> Value {
    let mut file = json!({
        "environment_key_pairs": [{"server_side_key": "ser.a", "client_side_key": "b"}],
        "documents": ["/d"],
        "cache_dir": "/c",
        "api_client_certificate": {"cert": "/c", "key": "/k"},
        "server": {"unix_socket": "/s", "tls": {"cert": "/c", "key": "/k"}},
        "traits": {"store": "memory"},
    });
    let place = path.split('.').fold(&mut file, |place, name| &mut place[name]);
    *place = value.clone();
    if value.is_null() && (path.ends_with(".cert") || path.ends_with(".key")) {
        // Both or neither.
        let (group, _) = path.rsplit_once('.').expect("a group");
        *group.split('.').fold(&mut file, |place, name| &mut place[name]) = Value::Null;
    }
    file
}

/// Values of every shape.
const VALUES: &str = r#"[
        null, true, false, 0, 1, -1, 2.5, 0.001, 80, 65535, 65536, 16384, 4095, 3.3e9, "", " ", "x", "10s", "0s",
        "500ms", "5ms", ".5", ".", "1.5m", "-1", "2h", "1d", "all", "any", "auto", "group", "memory", "uring", "json", "generic",
        "INFO", "LOUD", "*", "0,2-5", "0660", "1777", "9", "127.0.0.1", "256.0.0.1", "::1", "1::2::3", "localhost",
        "10.0.0.0/8", "http://a/b", "https://a", "ftp://a", "http://a?b=c", "http://", "ser.x", "a b", "/a/b",
        [], [1], ["*"], ["a"], [""], ["10.0.0.0/8", "::/0"], ["10.0.0.0/33"], ["::1/129"], [".example.com"],
        ["a..b"], "/flags", "/a/", "/../b", {"X-Gateway": "b"}, {"X Y": "b"}, {"X-Y": " b"}, ["https://a.example"], ["a b"], {}, {"a": 1},
        [{"server_side_key": "ser.x", "client_side_key": "y"}], [{"server_side_key": "x", "client_side_key": "y"}],
        [{"server_side_key": "ser.x"}], [{"client_side_key": "y"}], [{"client_side_key": "ser.y", "server_side_key": "ser.x"}],
        [{"client_side_key": "y", "document_path": "/d"}], [{"client_side_key": "y", "document_path": null}],
        [{"client_side_key": "", "server_side_key": "ser.x"}], [{"client_side_key": "y", "server_side_key": null}]
]"#;

/// What the schema accepts the proxy accepts, for values of every shape in every setting; and each setting
/// has values that both refuse.
#[test]
fn what_the_schema_accepts_the_proxy_accepts() {
    let values: Value = serde_json::from_str(VALUES).expect("JSON");
    let values = values.as_array().expect("a list");
    let cases: Vec<(&str, &Value)> =
        SETTINGS.iter().flat_map(|setting| values.iter().map(move |value| (setting.path, value))).collect();
    let files: Vec<Value> = cases.iter().map(|(path, value)| file_with(path, value)).collect();
    let verdicts = judge(&files);
    let mut wrong = Vec::new();
    let mut accepted = std::collections::BTreeMap::<&str, (usize, usize)>::new();
    // The machine of the test may have fewer CPUs than a list names.
    let is_of_machine = |path: &str, value: &Value| path == "cores" && *value == "0,2-5";
    // The environment of the test has no such document, and a list of none serves the pair.
    for (((path, value), file), is_valid) in cases.iter().zip(&files).zip(verdicts) {
        let (valid, refused) = accepted.entry(path).or_default();
        *valid += usize::from(is_valid);
        let is_accepted = is_of_machine(path, value) || is_accepted(file, path);
        *refused += usize::from(!is_valid && !is_accepted);
        if is_valid && !is_accepted {
            wrong.push(format!("{path}: {value}"));
        }
    }
    assert!(wrong.is_empty(), "the schema accepts what the proxy refuses:\n{}", wrong.join("\n"));
    for (path, (valid, refused)) in accepted {
        assert!(valid > 0, "{path}: nothing is valid");
        let takes_all = ["endpoint_caches", "logging.override", "server.reload"].contains(&path);
        assert!(takes_all || refused > 10, "{path}: {refused} values are refused by both");
    }
}

#[test]
fn the_schema_accepts_the_files_that_are_shown_and_refuses_typing_errors() {
    let example: Value = serde_json::from_str(edge_proxy::config::DEFAULT_JSON).expect("JSON");
    let all: Value = serde_json::from_str(&stdout(&["render-config", "--all"])).expect("JSON");
    let mut named = example.clone();
    named["$schema"] = "./config.schema.json".into();
    named["logging"]["colour"] = true.into();
    named["api_poll_frequency"] = "10s".into();
    assert_eq!(judge(&[example.clone(), all, named]), [true; 3]);
    let mut misspelled = [example.clone(), example.clone(), example];
    misspelled[0]["api_pol_frequency"] = 3.into();
    misspelled[1]["server"]["prot"] = 3.into();
    misspelled[2]["environment_key_pairs"][0]["client_key"] = "x".into();
    assert_eq!(judge(&misspelled), [false; 3]);
}

const CLIENT: &str = "93SWrghdRQbEPS5xXUWWwM";

/// A rotated Secret: the file that the variable names is replaced while the proxy serves.
#[test]
fn a_secret_file_that_changes_is_read_again() {
    let upstream = Upstream::start();
    let document = std::fs::read(fixture::path("environments/Main.json")).expect("a document");
    upstream.document("ser.first-key", document.clone());
    upstream.document("ser.second-key", document);
    let start = Start::command(&["serve"]);
    let pairs =
        |key: &str| format!("[{{\"client_side_key\": \"{CLIENT}\", \"server_side_key\": \"{key}\"}}]\n");
    let path = start.scratch().write("pairs", pairs("ser.first-key"));
    let mut proxy = start
        .env("ENVIRONMENT_KEY_PAIRS_FILE", path.to_str().expect("UTF-8"))
        .env("API_URL", &upstream.api_url())
        .env("EDGE_PROXY_SERVER_HOST", "127.0.0.1")
        .env("EDGE_PROXY_SERVER_PORT", "0")
        .spawn();
    proxy.wait_for_log("listening");
    // Replaced by a rename, as Kubernetes does it.
    let scratch = proxy.scratch().path().to_owned();
    proxy.scratch().write("pairs.new", pairs("ser.second-key"));
    std::fs::rename(scratch.join("pairs.new"), &path).expect("renamed");
    proxy.until("the second key is used", || {
        upstream
            .requests()
            .iter()
            .any(|request| format!("{request:?}").contains("ser.second-key"))
            .then_some(())
    });
    assert!(!proxy.log().contains("second-key"), "{}", proxy.log());
}

#[test]
fn a_second_interrupt_says_what_it_ends() {
    let mut proxy = Start::demo_document().set("server.shutdown_delay_seconds", 600).ready();
    proxy.signal("INT");
    let line = proxy.wait_for_log("stopping");
    assert!(line.contains("a second signal ends the wait"), "{line}");
    proxy.signal("INT");
    let line = proxy.wait_for_log("stopping_sooner");
    assert!(line.contains("no new connections are accepted"), "{line}");
    assert_eq!(proxy.wait().code(), Some(0));
}
