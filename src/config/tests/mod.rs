use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::config::build::load_for;
use crate::config::cores::{Available, Cores};
use crate::config::settings::{SETTINGS, restart_required};

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
        load_for(&self.inputs, &Available { cpus: vec![0, 1, 2, 3], quota: None })
    }

    fn config(self) -> Config {
        self.read().expect("a valid configuration").0
    }

    /// `setting = value` of each issue.
    fn issues(self) -> Vec<String> {
        let error = self.read().expect_err("an invalid configuration");
        let shown = |issue: &ConfigIssue| format!("{} = {:?}", issue.setting, issue.value);
        error.issues.iter().map(shown).collect()
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
fn rendered_default_has_no_warning() {
    let (config, warnings) = Case::text(DEFAULT_JSON).read().expect("valid");
    assert_eq!(warnings, []);
    let plain = Case::new(&json!({"environment_key_pairs": [
        {"server_side_key": "ser.environment_key", "client_side_key": "environment_key"}
    ]}))
    .config();
    assert_eq!(Config { path: None, ..config }, Config { path: None, ..plain });
}

#[test]
fn accepts_aliases() {
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
fn flags_override_variables_override_the_file() {
    let file = with("server", json!({"port": 1, "host": "127.0.0.1"}));
    assert_eq!(Case::new(&file).config().server.port, 1);
    let layered = || Case::new(&file).variable("SERVER", r#"{"port": 2}"#);
    let config = layered().config();
    assert_eq!((config.server.port, config.server.host), (2, [127, 0, 0, 1].into()), "layers are merged");
    assert_eq!(
        layered().variable("SERVER_PORT", "3").config().server.port,
        3,
        "the variable of the setting overrides that of its group"
    );
    assert_eq!(layered().variable("server_port", "3").config().server.port, 3, "names ignore case");
    assert_eq!(layered().variable("SERVER_PORT", "3").flag("server.port", "4").config().server.port, 4);
}

#[test]
fn variables_suffice() {
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
    let (config, warnings) = case.read().expect("valid");
    let aliases: Vec<_> = warnings.iter().map(|n| (n.event, n.fields[0].1.as_str())).collect();
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
fn origins_are_a_list_or_a_string() {
    let origins = |value| Case::new(&with("allow_origins", value)).config().allow_origins;
    assert_eq!(origins(json!("https://a.example")), ["https://a.example"]);
    assert_eq!(origins(json!(["https://a.example", "*"])), ["https://a.example", "*"]);
    let variable = |text| Case::new(&with("api_url", json!("http://x"))).variable("ALLOW_ORIGINS", text);
    assert_eq!(variable(r#"["https://b"]"#).config().allow_origins, ["https://b"]);
    assert_eq!(variable("https://a, https://b").config().allow_origins, ["https://a", "https://b"]);
    assert!(variable("https://a,").read().is_err());
    let warnings =
        |origin: &str| Case::new(&with("allow_origins", json!([origin]))).read().expect("valid").1.len();
    for origin in
        ["*", "null", "https://a.example", "http://localhost:3000", "capacitor://localhost", "http://[::1]"]
    {
        assert_eq!(warnings(origin), 0, "{origin}");
    }
    for origin in
        ["www.example.com", "https://a.example/", "https://*.example.com", "https://A.example", "https://"]
    {
        assert_eq!(warnings(origin), 1, "{origin}");
    }
}

#[test]
fn reports_every_issue_and_no_secret() {
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
        "server": {"host": "unknown.invalid", "port": 80000, "tls": {"cert": "a.pem"}},
        "logging": {"log_level": "LOUD", "log_format": "xml", "colours": "mauve"},
        "allow_origins": 5,
        "health_check": {"environment_update_grace_period_seconds": -1, "require": "some"},
        "realtime": true,
        "cores": "9",
        "proxy_key": 17,
    });
    let error = Case::new(&file).read().expect_err("an invalid configuration");
    let mut paths: Vec<&str> = error.issues.iter().map(|issue| issue.setting.as_str()).collect();
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
    assert!(text.contains("expected a port from 0 to 65535, got 80000"), "{text}");
    assert!(text.starts_with("invalid configuration, 20 errors:"), "{text}");
}

#[test]
fn reports_where_the_file_is_invalid() {
    let error = |text: &str| Case::text(text).read().expect_err("an invalid file").to_string();
    assert!(error("{\"a\": }").contains("line 1 column 7"), "{}", error("{\"a\": }"));
    assert!(error("[]").contains("expected a JSON object"));
    assert!(error("").contains("expected valid JSON"));
    let missing = Inputs { config_path: Some("/does-not-exist/config.json".into()), ..Inputs::default() };
    let available = Available { cpus: vec![0], quota: None };
    let text = load_for(&missing, &available).expect_err("missing").to_string();
    assert!(text.contains("/does-not-exist/config.json") && text.contains("No such file"), "{text}");
}

#[test]
fn rejects_configuration_without_environment() {
    assert_eq!(Case::text("{}").issues(), ["environment_key_pairs = None"]);
    let discovering = Case::new(&json!({"proxy_key": "key-of-the-proxy"})).config();
    assert_eq!(discovering.environments, []);
    let documents = Case::text("{}").flag("documents", json!(["a.json", "b.json"])).config();
    let paths: Vec<_> = documents.environments.iter().map(|e| e.document_path.clone().unwrap()).collect();
    assert_eq!(paths, [PathBuf::from("a.json"), PathBuf::from("b.json")]);
}

/// A second pair rotates a server-side key; a pair may also be repeated by accident.
#[test]
fn joins_pairs_with_the_same_client_side_key() {
    let rotated = json!({"server_side_key": "ser.new456789", "client_side_key": "def456"});
    let other = json!({"server_side_key": "ser.other", "client_side_key": "other"});
    let file = json!({"environment_key_pairs": [pair(), rotated, other, pair()]});
    let (config, warnings) = Case::new(&file).read().expect("valid");
    let keys: Vec<Vec<&str>> = config
        .environments
        .iter()
        .map(|environment| environment.server_side_keys().map(Secret::expose).collect())
        .collect();
    assert_eq!(keys, [vec!["ser.abc123456", "ser.new456789"], vec!["ser.other"]]);
    let warnings: Vec<_> = warnings.iter().map(|n| (n.level, n.event, n.fields[0].1.as_str())).collect();
    let repeated = |path| (Level::Warning, "client_side_key_repeated", path);
    assert_eq!(warnings, [repeated("environment_key_pairs[1]"), repeated("environment_key_pairs[3]")]);
    let from_file = json!({"client_side_key": "def456", "document_path": "a.json"});
    let file = json!({"environment_key_pairs": [pair(), from_file]});
    let issues = Case::new(&file).issues();
    assert_eq!(issues.len(), 1, "two sources for one key: {issues:?}");
    assert!(issues[0].starts_with("environment_key_pairs[1].document_path"), "{issues:?}");
}

#[test]
fn warns_of_settings_without_effect() {
    let mut file = json!({
        "environment_key_pairs": [pair()],
        "endpoint_caches": {"flags": {"use_cache": true, "cache_max_size": 3}},
        "logging": {"override": {"handlers": {}}, "log_filename": "x"},
        "server": {"reload": true},
        "colour": 1,
    });
    let (_, warnings) = Case::new(&file).read().expect("valid");
    let found: Vec<_> = warnings.iter().map(|n| (n.level, n.event, n.fields[0].1.as_str())).collect();
    assert_eq!(
        found,
        [
            (Level::Warning, "unknown_setting_ignored", "colour"),
            (Level::Warning, "unknown_setting_ignored", "logging.log_filename"),
            (Level::Info, "setting_without_effect", "endpoint_caches"),
            (Level::Warning, "setting_without_effect", "logging.override"),
            (Level::Warning, "setting_without_effect", "server.reload"),
        ]
    );
    file = with("endpoint_caches", json!({"flags": {"use_cache": false}}));
    assert_eq!(Case::new(&file).read().expect("valid").1, [], "a disabled cache needs no warning");
}

#[test]
fn suggests_names_for_unknown_ones() {
    let mut file = with("api_poll_frequncy", json!(3));
    file["server"] = json!({"prot": 1});
    file["environment_key_pairs"][0]["sever_side_key"] = json!("ser.secret-key-1");
    let case = Case::new(&file).variable("LOGGING_LEVEL", "secret-key-2").variable("LANGUAGE", "de");
    let (_, warnings) = case.read().expect("valid");
    let sentences: Vec<String> = warnings.iter().map(ConfigWarning::sentence).collect();
    let (variables, members): (Vec<String>, Vec<String>) =
        sentences.into_iter().partition(|line| line.starts_with("LOGGING_LEVEL"));
    assert_eq!(variables, ["LOGGING_LEVEL: did you mean LOGGING_LOG_LEVEL?"]);
    let suggested = ["api_poll_frequency_seconds?", "server.port?", "server_side_key?"];
    assert!(members.iter().zip(suggested).all(|(line, suggested)| line.ends_with(suggested)), "{members:?}");
    assert!(!format!("{warnings:?}").contains("secret-key"));
}

#[test]
fn lists_unknown_names_beside_a_missing_setting() {
    let file = json!({"environment_keys": [pair()], "note": 1});
    let text = Case::new(&file).read().expect_err("nothing to serve").to_string();
    let (issues, unknown) = text.split_once("\nunknown names:").expect("both");
    assert!(issues.contains("environment_key_pairs: not set"), "{text}");
    assert!(
        unknown.contains("environment_keys (") && unknown.contains("did you mean environment_key_pairs?")
    );
    assert!(unknown.contains("note (") && unknown.contains("unknown setting"), "{text}");
}

#[test]
fn warns_of_repeated_members() {
    let text = format!(
        r#"{{"environment_key_pairs": [{}], "server": {{"port": 1}}, "server": {{"port": 2}}}}"#,
        pair()
    );
    let (config, warnings) = Case::text(&text).read().expect("valid");
    assert_eq!(config.server.port, 2, "the last one is used, as in Python");
    assert_eq!((warnings[0].event, warnings[0].fields[0].1.as_str()), ("setting_repeated", "server"));
}

#[test]
fn reports_where_json_of_a_variable_is_invalid_without_the_key() {
    let broken = r#"[{"server_side_key": "ser.secret-key", "client_side_key": "def456",}]"#;
    let case =
        Case::text("{}").variable("ENVIRONMENT_KEY_PAIRS", broken).variable("LOGGING", "{'log_level': 1}");
    let text = case.variable("SERVER", "tcp").read().expect_err("an invalid configuration").to_string();
    assert!(
        text.contains("3 errors")
            && text.contains("environment_key_pairs: expected valid JSON (trailing comma")
    );
    assert!(text.contains("logging: expected valid JSON (key must be a string"), "{text}");
    assert!(text.contains("server: expected an object, got \"tcp\" (environment variable SERVER)"), "{text}");
    assert!(!text.contains("secret-key"), "{text}");
}

#[test]
fn accepts_double_underscore_separators() {
    let case = Case::new(&with("api_url", json!("http://x"))).variable("SERVER__PORT", "9000");
    let case = case.variable("health_check__environment_update_grace_period_seconds", "7");
    let (config, warnings) = case.read().expect("valid");
    assert_eq!((config.server.port, warnings.len()), (9000, 2));
    assert_eq!(warnings[0].fields[1].1, "EDGE_PROXY_SERVER_PORT");
    assert_eq!(config.health_check.environment_update_grace_period, Some(Duration::from_secs(7)));
    let both =
        Case::new(&with("server", json!({}))).variable("SERVER__PORT", "1").variable("SERVER_PORT", "2");
    assert_eq!(both.config().server.port, 2, "the exact name takes precedence");
}

#[test]
fn hides_passwords_of_urls() {
    for url in ["https://user:secret@x.example/?a", "ftp://user:secret@x.example/"] {
        let text =
            Case::new(&with("api_url", json!(url))).read().expect_err("an invalid configuration").to_string();
        assert!(text.contains("://...@x.example") && !text.contains("secret"), "{text}");
    }
}

#[test]
fn warns_of_repeated_server_side_keys() {
    let other = json!({"server_side_key": "ser.abc123456", "client_side_key": "other"});
    let (config, warnings) =
        Case::new(&json!({"environment_key_pairs": [pair(), other]})).read().expect("valid");
    assert_eq!((config.environments.len(), warnings[0].event), (2, "server_side_key_repeated"));
    assert!(!format!("{warnings:?}").contains("abc123"));
}

#[test]
fn ssl_cert_file_is_ignored_unless_it_exists() {
    let case = Case::new(&with("api_url", json!("http://x")));
    let here = case.path.display().to_string();
    assert_eq!(case.variable("SSL_CERT_FILE", &here).config().api_ca_file, Some(here.into()));
    let read = |name: &str| {
        Case::new(&with("api_url", json!("http://x"))).variable(name, "/does-not-exist/ca.pem").read()
    };
    let (config, warnings) = read("SSL_CERT_FILE").expect("valid");
    assert_eq!((config.api_ca_file, warnings[0].event), (None, "setting_without_effect"));
    assert_eq!(read("API_CA_FILE").expect("valid").0.api_ca_file, None, "it may belong to another program");
    let (config, warnings) = read("EDGE_PROXY_API_CA_FILE").expect("valid");
    assert_eq!(
        (config.api_ca_file, warnings),
        (Some("/does-not-exist/ca.pem".into()), vec![]),
        "serve reports the missing file"
    );
}

#[test]
fn ignores_kubernetes_service_links() {
    let case = Case::new(&with("api_url", json!("http://x"))).variable("SERVER_PORT", "tcp://10.0.0.1:80");
    let (config, warnings) = case.read().expect("valid");
    assert_eq!(config.server.port, 8000);
    assert_eq!(warnings[0].event, "service_link_variable_ignored");
}

#[test]
fn parses_units_of_intervals() {
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
    assert_eq!(resolve(json!("4")), Ok((vec![0, 2, 4, 6], false)), "an explicit count overrides the quota");
    assert_eq!(resolve(json!(9)), Ok((vec![0, 2, 4, 6], true)));
    assert_eq!(resolve(json!("2,")), Ok((vec![2], false)));
    assert_eq!(resolve(json!("6,0,0")), Ok((vec![0, 6], false)));
    assert!(resolve(json!("0-3")).is_err(), "1 and 3 are not available");
    for value in [json!("0,x"), json!("3-1"), json!("0"), json!(-1), json!("0-99999999"), json!(true)] {
        assert!(Cores::parse(&value).is_err(), "{value}");
    }
}

#[test]
fn networks_contain_their_addresses() {
    let allow = |text: &str| networks::forwarded_allow_ips(&json!(text)).expect("valid");
    assert!(allow("*").contains([8, 8, 8, 8].into()));
    assert!(allow("10.0.0.0/8").contains("::ffff:10.9.9.9".parse().expect("an address")));
    assert!(allow("0.0.0.0/0").contains([8, 8, 8, 8].into()));
    assert!(!allow("0.0.0.0/0").contains("::1".parse().expect("an address")));
    assert!(allow("fd00::/8").contains("fd12::1".parse().expect("an address")));
    assert!(allow("192.0.2.7").contains([192, 0, 2, 7].into()));
    assert!(!allow("192.0.2.7").contains([192, 0, 2, 8].into()));
    assert!(allow("10.1.2.3/8").contains([10, 9, 9, 9].into()), "host bits are ignored");
    assert!(allow("::ffff:10.0.0.0/104").contains([10, 9, 9, 9].into()));
    assert!(!allow("::ffff:10.0.0.0/104").contains([11, 0, 0, 1].into()));
    assert!(allow("::/0").contains("fd12::1".parse().expect("an address")));
    for text in
        ["10.0.0.0/33", "name", "10.0.0.0/x", "10.0.0.0/", "10.0.0/8", "::1/129", "10.0.0.0/255.0.0.0"]
    {
        assert!(networks::forwarded_allow_ips(&json!(text)).is_err(), "{text}");
    }
}

#[test]
fn issues_name_the_line_of_the_file() {
    let case = Case::text(
        "{\n\"environment_key_pairs\": [\n {\"server_side_key\": \"ser.a\",\n  \"client_side_key\": 1},\n {}],\n\
         \"api_poll_frequency\": 0,\n\"server\": {\n\"port\": -1}}",
    );
    let file = case.path.display().to_string();
    let error = case.read().expect_err("an invalid configuration");
    let sources: Vec<(&str, String)> = error
        .issues
        .iter()
        .map(|issue| (issue.setting.as_str(), issue.source.as_ref().expect("the file").to_string()))
        .collect();
    let at = |line: usize| format!("{file}:{line}");
    assert_eq!(
        sources,
        [
            ("environment_key_pairs[0].client_side_key", at(4)),
            ("environment_key_pairs[1].client_side_key", at(5)),
            ("environment_key_pairs[1].server_side_key", at(5)),
            ("api_poll_frequency_seconds", at(6)),
            ("server.port", at(8)),
        ]
    );
    let text = error.to_string();
    assert!(
        text.contains(&format!("server.port: expected a port from 0 to 65535, got -1 ({file}:8)")),
        "{text}"
    );
}

#[test]
fn restart_is_required_for_changed_settings_of_the_table() {
    let before = Case::new(&with("server", json!({"port": 1}))).config();
    let mut now = before.clone();
    assert_eq!(restart_required(&before, &now), [""; 0]);
    now.server.port = 2;
    now.allow_origins.clear();
    now.admin = Some(Admin { host: [127, 0, 0, 1].into(), port: 3, allowed_hosts: Vec::new() });
    assert_eq!(restart_required(&before, &now), ["admin.host", "admin.port", "server.port"]);
}

#[test]
fn documented_restarts_are_those_of_the_table() {
    let page = include_str!("../../../docs/configuration.md");
    let (_, section) = page.split_once("## What needs a restart").expect("a section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let documented: Vec<&str> =
        section.lines().filter_map(|line| line.strip_prefix("- `")?.strip_suffix('`')).collect();
    let fixed = SETTINGS.iter().filter(|setting| setting.needs_restart.is_some()).map(|setting| setting.path);
    assert_eq!(documented, fixed.collect::<Vec<_>>());
}

#[test]
fn every_setting_is_read() {
    let source = concat!(include_str!("../build.rs"), include_str!("../kept_traits.rs"));
    for setting in SETTINGS {
        let is_certificate = setting.path.ends_with(".cert") || setting.path.ends_with(".key");
        assert!(is_certificate || source.contains(&format!("\"{}\"", setting.path)), "{}", setting.path);
    }
    let mut paths: Vec<_> = SETTINGS.iter().map(|setting| setting.path).collect();
    paths.dedup();
    assert_eq!(paths.len(), SETTINGS.len());
}

/// Environment variables.
mod gateways;
mod schema;
mod variables;
