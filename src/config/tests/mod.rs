use serde_json::{Value, json};

use super::*;
use crate::config::build::read_on;
use crate::config::cores::Available;
use crate::config::settings::{Inputs, SETTINGS};

/// A configuration file with this content, and these variables.
struct Case {
    inputs: Inputs,
    path: PathBuf,
}

impl Case {
    fn new(file: &Value) -> Self {
        Self::text(&file.to_string())
    }

    fn text(file: &str) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("edge-proxy-config-{}-{number}.json", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, file).expect("scratch space");
        Self { inputs: Inputs { config_path: Some(path.clone()), ..Inputs::default() }, path }
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.inputs.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    fn flag(mut self, path: &'static str, value: impl Into<Value>) -> Self {
        self.inputs.flags.push((path, "--flag", value.into()));
        self
    }

    fn read(self) -> Result<(Config, Vec<ConfigWarning>), ConfigError> {
        read_on(&self.inputs, &Available { cpus: vec![0, 1, 2, 3], quota: None })
    }

    fn config(self) -> Config {
        self.read().expect("a valid configuration").0
    }

    /// `path: expected` of each mistake.
    fn mistakes(self) -> Vec<String> {
        let error = self.read().expect_err("a mistake");
        error.mistakes.iter().map(|mistake| format!("{} = {}", mistake.path, mistake.value)).collect()
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn pair() -> Value {
    json!({"server_side_key": "ser.abc123456", "client_side_key": "def456"})
}

/// A valid file with one more member.
fn with(name: &str, value: Value) -> Value {
    let mut file = json!({"environment_key_pairs": [pair()]});
    file[name] = value;
    file
}

#[test]
fn defaults_are_those_of_the_python_proxy() {
    let config = Case::new(&json!({"environment_key_pairs": [pair()]})).config();
    assert_eq!(config.environments[0].client_side_key, "def456");
    assert_eq!(config.environments[0].server_side_key.as_ref().map(Secret::expose), Some("ser.abc123456"));
    assert_eq!(config.api_url, "https://edge.api.flagsmith.com/api/v1/");
    assert_eq!(config.api_poll_frequency, Duration::from_secs(10));
    assert_eq!(config.api_poll_timeout, Duration::from_secs(5));
    assert_eq!(config.allow_origins, ["*"]);
    assert_eq!((config.server.host, config.server.port), ([0, 0, 0, 0].into(), 8000));
    assert_eq!(config.server.timeout_keep_alive, Duration::from_secs(90));
    assert_eq!(config.health_check.environment_update_grace_period, Some(Duration::from_secs(30)));
    assert_eq!(config.logging.log_level, Level::Info);
    assert_eq!(config.logging.log_format, LogFormat::Generic);
    assert_eq!(config.logging.log_event_field_name, "message");
    assert_eq!(config.admin, None);
    assert_eq!(config.cores, [0, 1, 2, 3]);
}

#[test]
fn the_rendered_default_reads_without_a_notice() {
    let (config, notices) = Case::text(DEFAULT_JSON).read().expect("valid");
    assert_eq!(notices, []);
    let plain = Case::new(&json!({"environment_key_pairs": [
        {"server_side_key": "ser.environment_key", "client_side_key": "environment_key"}
    ]}))
    .config();
    let without_path = |config: Config| format!("{:?}", Config { path: None, ..config });
    assert_eq!(without_path(config), without_path(plain));
}

#[test]
fn aliases_mean_the_same() {
    for name in ["api_poll_frequency", "api_poll_frequency_seconds"] {
        assert_eq!(Case::new(&with(name, json!(3))).config().api_poll_frequency, Duration::from_secs(3));
    }
    for name in ["api_poll_timeout", "api_poll_timeout_seconds"] {
        assert_eq!(Case::new(&with(name, json!(3))).config().api_poll_timeout, Duration::from_secs(3));
    }
    for name in ["colours", "colors", "colour", "color"] {
        assert!(Case::new(&with("logging", json!({name: true}))).config().logging.colour, "{name}");
        assert!(!Case::new(&with("logging", json!({name: false}))).config().logging.colour, "{name}");
    }
    let both = Case::new(
        &json!({"environment_key_pairs": [pair()], "api_poll_frequency": 1, "api_poll_frequency_seconds": 2}),
    );
    assert_eq!(
        both.config().api_poll_frequency,
        Duration::from_secs(2),
        "the first name wins, as in pydantic"
    );
}

#[test]
fn flags_beat_variables_beat_the_file() {
    let file = with("server", json!({"port": 1, "host": "127.0.0.1"}));
    assert_eq!(Case::new(&file).config().server.port, 1);
    let layered = || Case::new(&file).variable("SERVER", r#"{"port": 2}"#);
    let config = layered().config();
    assert_eq!((config.server.port, config.server.host), (2, [127, 0, 0, 1].into()), "layers are merged");
    assert_eq!(layered().variable("SERVER_PORT", "3").config().server.port, 3, "the nested form is nearer");
    assert_eq!(layered().variable("server_port", "3").config().server.port, 3, "names ignore case");
    assert_eq!(layered().variable("SERVER_PORT", "3").flag("server.port", "4").config().server.port, 4);
}

#[test]
fn variables_alone_are_enough() {
    let case = Case::text("{}")
        .variable("ENVIRONMENT_KEY_PAIRS", &json!([pair()]).to_string())
        .variable("API_POLL_FREQUENCY", "7")
        .variable("LOGGING", r#"{"log_level":"DEBUG","log_format":"json"}"#)
        .variable("ALLOW_ORIGINS", "https://a.example")
        .variable("HEALTH_CHECK_ENVIRONMENT_UPDATE_GRACE_PERIOD_SECONDS", "null")
        .variable("SERVER_PROXY_HEADERS", "true")
        .variable("FORWARDED_ALLOW_IPS", "10.0.0.0/8, ::1")
        .variable("WEB_CONCURRENCY", "2")
        .variable("EDGE_PROXY_DRIVER", "epoll")
        .variable("LOGGING_COLORS", "yes")
        .variable("SERVER_SOMETHING_ELSE", "ignored")
        .variable("HOME", "/root");
    let (config, notices) = case.read().expect("valid");
    let aliases: Vec<_> = notices.iter().map(|n| (n.event, n.fields[0].1.as_str())).collect();
    let used = |name| ("unprefixed_variable_used", name);
    let names =
        ["HEALTH_CHECK_ENVIRONMENT_UPDATE_GRACE_PERIOD_SECONDS", "LOGGING_COLORS", "SERVER_PROXY_HEADERS"];
    assert_eq!(aliases, names.map(used), "each alias that Python does not read, once");
    assert_eq!(config.environments.len(), 1);
    assert_eq!(config.api_poll_frequency, Duration::from_secs(7));
    assert_eq!(config.logging.log_level, Level::Debug);
    assert_eq!(config.logging.log_format, LogFormat::Json);
    assert!(config.logging.colour);
    assert_eq!(config.allow_origins, ["https://a.example"]);
    assert_eq!(config.health_check.environment_update_grace_period, None);
    assert!(config.server.proxy_headers);
    assert!(config.server.forwarded_allow_ips.contains([10, 1, 2, 3].into()));
    assert!(!config.server.forwarded_allow_ips.contains([11, 1, 2, 3].into()));
    assert_eq!(config.cores, [0, 1]);
    assert_eq!(config.server.driver, Some(Driver::Epoll));
}

#[test]
fn origins_are_a_list_or_one_text() {
    let origins = |value| Case::new(&with("allow_origins", value)).config().allow_origins;
    assert_eq!(origins(json!("https://a.example")), ["https://a.example"]);
    assert_eq!(origins(json!(["https://a.example", "*"])), ["https://a.example", "*"]);
    let variable = |text| Case::new(&with("api_url", json!("http://x"))).variable("ALLOW_ORIGINS", text);
    assert_eq!(variable(r#"["https://b"]"#).config().allow_origins, ["https://b"]);
    assert_eq!(variable("https://a, https://b").config().allow_origins, ["https://a", "https://b"]);
    assert!(variable("https://a,").read().is_err());
    let told =
        |origin: &str| Case::new(&with("allow_origins", json!([origin]))).read().expect("valid").1.len();
    for origin in
        ["*", "null", "https://a.example", "http://localhost:3000", "capacitor://localhost", "http://[::1]"]
    {
        assert_eq!(told(origin), 0, "{origin}");
    }
    for origin in
        ["www.example.com", "https://a.example/", "https://*.example.com", "https://A.example", "https://"]
    {
        assert_eq!(told(origin), 1, "{origin}");
    }
}

#[test]
fn every_mistake_is_told_in_one_run_and_no_secret_with_it() {
    let file = json!({
        "environment_key_pairs": [
            {"server_side_key": "wrong-secret-key-1", "client_side_key": "def456"},
            {"server_side_key": "secret-key-2"},
            {"server_side_key": "ser.secret-key-3", "client_side_key": "ser.secret-key-3"},
            {"client_side_key": "no-server-key"},
            "ser.not-an-object",
            {"server_side_key": "ser.secret-key-4", "client_side_key": "def456", "document_path": 4},
        ],
        "api_url": "flagsmith.example.com",
        "api_poll_frequency": "often",
        "server": {"host": "nowhere", "port": 80000, "tls": {"cert": "a.pem"}},
        "logging": {"log_level": "LOUD", "log_format": "xml", "colours": "mauve"},
        "allow_origins": 5,
        "health_check": {"environment_update_grace_period_seconds": -1, "require": "some"},
        "realtime": true,
        "cores": "9",
        "proxy_key": 17,
    });
    let error = Case::new(&file).read().expect_err("mistakes");
    let mut paths: Vec<&str> = error.mistakes.iter().map(|mistake| mistake.path.as_str()).collect();
    paths.sort_unstable();
    assert_eq!(
        paths,
        [
            "allow_origins",
            "api_poll_frequency_seconds",
            "api_url",
            "environment_key_pairs[0].server_side_key",
            "environment_key_pairs[1].client_side_key",
            "environment_key_pairs[1].server_side_key",
            "environment_key_pairs[2].client_side_key",
            "environment_key_pairs[3].server_side_key",
            "environment_key_pairs[4]",
            "environment_key_pairs[5].document_path",
            "health_check.environment_update_grace_period_seconds",
            "health_check.require",
            "logging.colours",
            "logging.log_format",
            "logging.log_level",
            "proxy_key",
            "realtime",
            "server.host",
            "server.port",
            "server.tls.key",
        ]
    );
    let text = error.to_string();
    assert!(!text.contains("secret-key"), "{text}");
    assert!(text.contains("expected a port from 0 to 65535, not 80000"), "{text}");
    assert!(text.starts_with("the configuration has 20 mistakes:"), "{text}");
}

#[test]
fn a_file_that_is_none_is_told_with_its_place() {
    let told = |text: &str| Case::text(text).read().expect_err("a mistake").to_string();
    assert!(told("{\"a\": }").contains("line 1 column 7"), "{}", told("{\"a\": }"));
    assert!(told("[]").contains("expected a JSON object"));
    assert!(told("").contains("expected valid JSON"));
    let missing = Inputs { config_path: Some("/nowhere/config.json".into()), ..Inputs::default() };
    let available = Available { cpus: vec![0], quota: None };
    let text = read_on(&missing, &available).expect_err("missing").to_string();
    assert!(text.contains("/nowhere/config.json") && text.contains("No such file"), "{text}");
}

#[test]
fn nothing_to_serve_is_a_mistake() {
    assert_eq!(Case::text("{}").mistakes(), ["environment_key_pairs = "]);
    let discovering = Case::new(&json!({"proxy_key": "key-of-the-proxy"})).config();
    assert_eq!(discovering.environments, []);
    let documents = Case::text("{}").flag("documents", json!(["a.json", "b.json"])).config();
    let paths: Vec<_> = documents.environments.iter().map(|e| e.document_path.clone().unwrap()).collect();
    assert_eq!(paths, [PathBuf::from("a.json"), PathBuf::from("b.json")]);
}

/// A server-side key is rotated by a second pair; a pair may also be there twice by accident.
#[test]
fn pairs_with_one_client_side_key_are_joined() {
    let rotated = json!({"server_side_key": "ser.new456789", "client_side_key": "def456"});
    let other = json!({"server_side_key": "ser.other", "client_side_key": "other"});
    let file = json!({"environment_key_pairs": [pair(), rotated, other, pair()]});
    let (config, notices) = Case::new(&file).read().expect("valid");
    let keys: Vec<Vec<&str>> = config
        .environments
        .iter()
        .map(|environment| environment.server_side_keys().map(Secret::expose).collect())
        .collect();
    assert_eq!(keys, [vec!["ser.abc123456", "ser.new456789"], vec!["ser.other"]]);
    let notices: Vec<_> = notices.iter().map(|n| (n.level, n.event, n.fields[0].1.as_str())).collect();
    let repeated = |path| (Level::Warning, "client_side_key_repeated", path);
    assert_eq!(notices, [repeated("environment_key_pairs[1]"), repeated("environment_key_pairs[3]")]);
    let from_file = json!({"client_side_key": "def456", "document_path": "a.json"});
    let file = json!({"environment_key_pairs": [pair(), from_file]});
    let mistakes = Case::new(&file).mistakes();
    assert_eq!(mistakes.len(), 1, "two sources for one key: {mistakes:?}");
    assert!(mistakes[0].starts_with("environment_key_pairs[1].document_path"), "{mistakes:?}");
}

#[test]
fn what_has_no_effect_is_told_once_by_name() {
    let mut file = json!({
        "environment_key_pairs": [pair()],
        "endpoint_caches": {"flags": {"use_cache": true, "cache_max_size": 3}},
        "logging": {"override": {"handlers": {}}, "log_filename": "x"},
        "server": {"reload": true},
        "colour": 1,
    });
    let (_, notices) = Case::new(&file).read().expect("valid");
    let told: Vec<_> = notices.iter().map(|n| (n.level, n.event, n.fields[0].1.as_str())).collect();
    assert_eq!(
        told,
        [
            (Level::Warning, "unknown_setting_ignored", "colour"),
            (Level::Warning, "unknown_setting_ignored", "logging.log_filename"),
            (Level::Info, "setting_without_effect", "endpoint_caches"),
            (Level::Warning, "setting_without_effect", "logging.override"),
            (Level::Warning, "setting_without_effect", "server.reload"),
        ]
    );
    file = with("endpoint_caches", json!({"flags": {"use_cache": false}}));
    assert_eq!(Case::new(&file).read().expect("valid").1, [], "a cache that is off needs no word");
}

#[test]
fn what_is_not_understood_is_told_with_what_was_meant() {
    let mut file = with("api_poll_frequncy", json!(3));
    file["server"] = json!({"prot": 1});
    file["environment_key_pairs"][0]["sever_side_key"] = json!("ser.secret-key-1");
    let case = Case::new(&file).variable("LOGGING_LEVEL", "secret-key-2").variable("LANGUAGE", "de");
    let (_, notices) = case.read().expect("valid");
    let told: Vec<String> = notices.iter().map(ConfigWarning::sentence).collect();
    let (variables, members): (Vec<String>, Vec<String>) =
        told.into_iter().partition(|line| line.starts_with("LOGGING_LEVEL"));
    assert_eq!(variables, ["LOGGING_LEVEL: did you mean LOGGING_LOG_LEVEL?"]);
    let meant = ["api_poll_frequency_seconds?", "server.port?", "server_side_key?"];
    assert!(members.iter().zip(meant).all(|(line, meant)| line.ends_with(meant)), "{members:?}");
    assert!(!format!("{notices:?}").contains("secret-key"));
}

#[test]
fn what_is_missing_is_told_with_what_was_not_understood() {
    let file = json!({"environment_keys": [pair()], "note": 1});
    let text = Case::new(&file).read().expect_err("nothing to serve").to_string();
    let (mistakes, unknown) = text.split_once("\nand this was not understood:").expect("both");
    assert!(mistakes.contains("environment_key_pairs: missing"), "{text}");
    assert!(
        unknown.contains("environment_keys (") && unknown.contains("did you mean environment_key_pairs?")
    );
    assert!(unknown.contains("note (") && unknown.contains("no setting has this name"), "{text}");
}

#[test]
fn a_member_given_twice_is_told() {
    let text = format!(
        r#"{{"environment_key_pairs": [{}], "server": {{"port": 1}}, "server": {{"port": 2}}}}"#,
        pair()
    );
    let (config, notices) = Case::text(&text).read().expect("valid");
    assert_eq!(config.server.port, 2, "the last one counts, as in Python");
    assert_eq!((notices[0].event, notices[0].fields[0].1.as_str()), ("setting_repeated", "server"));
}

#[test]
fn variables_that_are_broken_json_are_told_with_the_place_and_without_the_key() {
    let broken = r#"[{"server_side_key": "ser.secret-key", "client_side_key": "def456",}]"#;
    let case =
        Case::text("{}").variable("ENVIRONMENT_KEY_PAIRS", broken).variable("LOGGING", "{'log_level': 1}");
    let text = case.variable("SERVER", "tcp").read().expect_err("mistakes").to_string();
    assert!(
        text.contains("3 mistakes")
            && text.contains("environment_key_pairs: expected valid JSON (trailing comma")
    );
    assert!(text.contains("logging: expected valid JSON (key must be a string"), "{text}");
    assert!(text.contains("server: expected an object, not \"tcp\""), "{text}");
    assert!(!text.contains("secret-key"), "{text}");
}

#[test]
fn the_separator_of_other_programs_with_pydantic_is_taken() {
    let case = Case::new(&with("api_url", json!("http://x"))).variable("SERVER__PORT", "9000");
    let case = case.variable("health_check__environment_update_grace_period_seconds", "7");
    let (config, notices) = case.read().expect("valid");
    assert_eq!((config.server.port, notices.len()), (9000, 2));
    assert_eq!(notices[0].fields[1].1, "EDGE_PROXY_SERVER_PORT");
    assert_eq!(config.health_check.environment_update_grace_period, Some(Duration::from_secs(7)));
    let both =
        Case::new(&with("server", json!({}))).variable("SERVER__PORT", "1").variable("SERVER_PORT", "2");
    assert_eq!(both.config().server.port, 2, "its own name wins");
}

#[test]
fn a_password_in_an_address_is_not_told() {
    for url in ["https://user:secret@x.example/?a", "ftp://user:secret@x.example/"] {
        let text = Case::new(&with("api_url", json!(url))).read().expect_err("a mistake").to_string();
        assert!(text.contains("://...@x.example") && !text.contains("secret"), "{text}");
    }
}

#[test]
fn a_server_side_key_twice_is_told() {
    let other = json!({"server_side_key": "ser.abc123456", "client_side_key": "other"});
    let (config, notices) =
        Case::new(&json!({"environment_key_pairs": [pair(), other]})).read().expect("valid");
    assert_eq!((config.environments.len(), notices[0].event), (2, "server_side_key_repeated"));
    assert!(!format!("{notices:?}").contains("abc123"));
}

#[test]
fn the_authorities_of_the_machine_count_if_they_are_there() {
    let case = Case::new(&with("api_url", json!("http://x")));
    let here = case.path.display().to_string();
    assert_eq!(case.variable("SSL_CERT_FILE", &here).config().api_ca_file, Some(here.into()));
    let read =
        |name: &str| Case::new(&with("api_url", json!("http://x"))).variable(name, "/nowhere/ca.pem").read();
    let (config, notices) = read("SSL_CERT_FILE").expect("valid");
    assert_eq!((config.api_ca_file, notices[0].event), (None, "setting_without_effect"));
    assert_eq!(read("API_CA_FILE").expect("valid").0.api_ca_file, None, "it may be of another program");
    let (config, notices) = read("EDGE_PROXY_API_CA_FILE").expect("valid");
    assert_eq!(
        (config.api_ca_file, notices),
        (Some("/nowhere/ca.pem".into()), vec![]),
        "the start refuses it"
    );
}

#[test]
fn kubernetes_service_links_are_no_ports() {
    let case = Case::new(&with("api_url", json!("http://x"))).variable("SERVER_PORT", "tcp://10.0.0.1:80");
    let (config, notices) = case.read().expect("valid");
    assert_eq!(config.server.port, 8000);
    assert_eq!(notices[0].event, "service_link_variable_ignored");
}

#[test]
fn intervals_have_units() {
    let read = |value| Case::new(&with("api_poll_frequency_seconds", value)).read();
    let cases = [
        (json!(10), 10_000),
        (json!(0.5), 500),
        (json!("10"), 10_000),
        (json!("500ms"), 500),
        (json!("10s"), 10_000),
        (json!("2m"), 120_000),
        (json!("1h"), 3_600_000),
    ];
    for (value, ms) in cases {
        assert_eq!(read(value).expect("valid").0.api_poll_frequency, Duration::from_millis(ms));
    }
    for value in [json!(0), json!(-1), json!("ten"), json!("1e3"), json!("inf"), json!(1e300), json!(null)] {
        assert!(read(value.clone()).is_err(), "{value}");
    }
}

#[test]
fn cores_are_a_count_or_a_list() {
    let available = Available { cpus: vec![0, 2, 4, 6], quota: Some(2.5) };
    let resolve = |value: Value| Cores::parse(&value).expect("valid").resolve(&available);
    assert_eq!(Cores::Available.resolve(&available), Ok((vec![0, 2, 4], false)), "the quota is rounded up");
    assert_eq!(resolve(json!(2)), Ok((vec![0, 2], false)));
    assert_eq!(resolve(json!("4")), Ok((vec![0, 2, 4, 6], false)), "an explicit count beats the quota");
    assert_eq!(resolve(json!(9)), Ok((vec![0, 2, 4, 6], true)));
    assert_eq!(resolve(json!("2,")), Ok((vec![2], false)));
    assert_eq!(resolve(json!("6,0,0")), Ok((vec![0, 6], false)));
    assert!(resolve(json!("0-3")).is_err(), "1 and 3 are not ours");
    for value in [json!("0,x"), json!("3-1"), json!("0"), json!(-1), json!("0-99999999"), json!(true)] {
        assert!(Cores::parse(&value).is_err(), "{value}");
    }
}

#[test]
fn networks_hold_their_addresses() {
    let allow = |text: &str| parse::forwarded_allow_ips(&json!(text)).expect("valid");
    assert!(allow("*").contains([8, 8, 8, 8].into()));
    assert!(allow("10.0.0.0/8").contains("::ffff:10.9.9.9".parse().expect("an address")));
    assert!(allow("0.0.0.0/0").contains([8, 8, 8, 8].into()));
    assert!(!allow("0.0.0.0/0").contains("::1".parse().expect("an address")));
    assert!(allow("fd00::/8").contains("fd12::1".parse().expect("an address")));
    assert!(allow("192.0.2.7").contains([192, 0, 2, 7].into()));
    assert!(!allow("192.0.2.7").contains([192, 0, 2, 8].into()));
    for text in ["10.0.0.0/33", "name", "10.0.0.0/x"] {
        assert!(parse::forwarded_allow_ips(&json!(text)).is_err(), "{text}");
    }
}

/// A setting that is known but never read would be a promise that nobody keeps.
#[test]
fn every_setting_is_read() {
    let source = include_str!("../build.rs");
    for setting in SETTINGS {
        let is_certificate = setting.path.ends_with(".cert") || setting.path.ends_with(".key");
        assert!(is_certificate || source.contains(&format!("\"{}\"", setting.path)), "{}", setting.path);
    }
    let mut paths: Vec<_> = SETTINGS.iter().map(|setting| setting.path).collect();
    paths.dedup();
    assert_eq!(paths.len(), SETTINGS.len());
}

/// Environment variables.
mod variables;
