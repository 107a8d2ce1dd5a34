use std::path::PathBuf;

use serde_json::json;

use super::super::*;
use crate::config::settings::SETTINGS;
use crate::config::tests::{Case, pair, with};

/// A valid file.
fn served() -> Case {
    Case::new(&with("api_url", json!("http://x/api/v1/")))
}

#[test]
fn every_setting_has_a_variable_with_the_prefix() {
    for setting in SETTINGS {
        let own = format!("EDGE_PROXY_{}", setting.path.replace('.', "_").to_uppercase());
        let first = setting.all_variables().next();
        assert_eq!(first.as_deref(), Some(own.as_str()));
        // Only free-form settings accept an object.
        let read = served().variable(&own, r#"{"x": 1}"#).read();
        let is_read = match &read {
            Err(error) => {
                error.issues.iter().any(|issue| issue.source == Some(SettingSource::Variable(own.clone())))
            }
            Ok((_, warnings)) => {
                ["endpoint_caches", "logging.override", "server.reload"].contains(&setting.path)
                    && warnings.iter().all(|warning| warning.event == "setting_without_effect")
            }
        };
        assert!(is_read, "{own}: {read:?}");
    }
    let config = served().variable("EDGE_PROXY_SERVER", r#"{"port": 5}"#).config();
    assert_eq!(config.server.port, 5, "groups too");
}

#[test]
fn prefixed_name_overrides_aliases() {
    let port = |variables: &[(&str, &str)]| {
        variables.iter().fold(served(), |case, (name, value)| case.variable(name, value)).config().server.port
    };
    for (variables, expected) in [
        (&[("SERVER_PORT", "1"), ("EDGE_PROXY_SERVER_PORT", "2")][..], 2),
        (&[("SERVER_PORT", "1"), ("EDGE_PROXY_SERVER", r#"{"port": 2}"#)], 2),
        (&[("SERVER", r#"{"port": 1}"#), ("SERVER_PORT", "2")], 2),
        (&[("EDGE_PROXY_SERVER", r#"{"port": 1}"#), ("EDGE_PROXY_SERVER_PORT", "2")], 2),
        (&[("SERVER_PORT", "web"), ("SERVER", r#"{"port": 2}"#)], 2),
        (&[("edge_proxy_server__port", "2")], 2),
    ] {
        assert_eq!(port(variables), expected, "{variables:?}");
    }
}

/// Variables of another program must not prevent the start.
#[test]
fn ignores_aliases_with_invalid_values() {
    let default = served().config().with_path(None);
    for (name, value, event) in [
        ("DOCUMENTS", "/home/x", "variable_ignored"),
        ("DOCUMENTS", "[/home/x", "variable_ignored"),
        ("CORES", "0.5", "variable_ignored"),
        ("CORES", "64-70", "variable_ignored"),
        ("ADMIN_PORT", "tcp://10.0.0.1:80", "service_link_variable_ignored"),
        ("EDGE_PROXY_ADMIN_PORT", "tcp://10.0.0.1:80", "service_link_variable_ignored"),
        ("ADMIN_PORT", "http", "variable_ignored"),
        ("ADMIN_PORT", "8000", "variable_ignored"),
        ("ADMIN", "alice", "variable_ignored"),
        ("ANALYTICS", "true", "variable_ignored"),
        ("REALTIME_URL", "wss://x", "variable_ignored"),
        ("REALTIME", r#"{"url": "wss://x"}"#, "variable_ignored"),
        ("PROXY_KEY", "two words", "variable_ignored"),
        ("SERVER_HOST", "web-1", "variable_ignored"),
        ("SERVER_TCP", "false", "variable_ignored"),
        ("SERVER_TLS_CERT", "/etc/x.pem", "variable_ignored"),
        ("SERVER_TLS_CLIENT_CA", "/etc/x.pem", "variable_ignored"),
        ("API_CLIENT_CERTIFICATE_KEY", "/etc/x.pem", "variable_ignored"),
        ("LOGGING_LOG_LEVEL", "loud", "variable_ignored"),
        ("API_CA_FILE", "/does-not-exist/ca.pem", "variable_ignored"),
        ("SSE_MAX_STREAM_SECONDS", "-1", "variable_ignored"),
    ] {
        let (config, warnings) = served().variable(name, value).read().expect(name);
        assert_eq!(config.with_path(None), default, "{name}={value}");
        let found: Vec<_> = warnings.iter().map(|warning| warning.event).collect();
        assert_eq!(found, [event], "{name}={value}");
        assert_eq!(warnings[0].fields[0].1, name);
        assert!(!format!("{warnings:?}").contains("two words"), "a value of another program may be a secret");
    }
    // With the prefix, or under a name that the Python proxy reads, it is an error.
    for (name, value) in [
        ("EDGE_PROXY_DOCUMENTS", "/home/x"),
        ("EDGE_PROXY_CORES", "0.5"),
        ("EDGE_PROXY_ADMIN_PORT", "8000"),
        ("EDGE_PROXY_ADMIN", "alice"),
        ("EDGE_PROXY_SERVER_TCP", "false"),
        ("EDGE_PROXY_SERVER_TLS_CERT", "/etc/x.pem"),
        ("ALLOW_ORIGINS", "a b"),
        ("API_POLL_FREQUENCY", "often"),
        ("API_POLL_FREQUENCY_SECONDS", "often"),
        ("API_POLL_TIMEOUT", ""),
        ("API_POLL_TIMEOUT_SECONDS", "0"),
        ("API_URL", ""),
        ("ENVIRONMENT_KEY_PAIRS", "ser.x"),
        ("FORWARDED_ALLOW_IPS", "lb.internal"),
        ("HEALTH_CHECK", "30"),
        ("LOGGING", "debug"),
        ("SERVER", "[8000]"),
        ("WEB_CONCURRENCY", "many"),
    ] {
        assert!(served().variable(name, value).read().is_err(), "{name}={value}");
    }
}

#[test]
fn ignored_alias_leaves_the_weaker_layer() {
    let file = with("cores", json!(2));
    assert_eq!(Case::new(&file).variable("CORES", "0.5").config().cores, [0, 1]);
    let both = Case::new(&file).variable("CORES", "0.5").variable("WEB_CONCURRENCY", "3");
    assert_eq!(both.config().cores, [0, 1, 2]);
}

#[test]
fn empty_variables_are_unset() {
    let default = served().config().with_path(None);
    for name in [
        "SSL_CERT_FILE",
        "CACHE_DIR",
        "EDGE_PROXY_CACHE_DIR",
        "PROXY_KEY",
        "ADMIN_PORT",
        "ADMIN",
        "DOCUMENTS",
        "EDGE_PROXY_API_URL",
        "EDGE_PROXY_SERVER",
        "EDGE_PROXY_DRIVER",
        "CORES",
        "SERVER_UNIX_SOCKET",
        "CONFIG_PATH",
    ] {
        let (config, warnings) = served().variable(name, "").read().expect(name);
        assert_eq!((config.with_path(None), warnings), (default.clone(), vec![]), "{name}");
    }
}

#[test]
fn suggests_settings_for_variables_of_other_platforms() {
    for (name, instead) in [
        ("FLAGSMITH_API_URL", "API_URL"),
        ("ENVIRONMENT_API_KEYS", "ENVIRONMENT_KEY_PAIRS"),
        ("PORT", "EDGE_PROXY_SERVER_PORT"),
        ("LOG_LEVEL", "EDGE_PROXY_LOGGING_LOG_LEVEL"),
    ] {
        let (_, warnings) = Case::new(&json!({"environment_key_pairs": [pair()]}))
            .variable(name, "x")
            .read()
            .map_or_else(|error| ((), error.warnings), |(_, warnings)| ((), warnings));
        // The file sets the pairs, so their old name needs no hint.
        let hints: Vec<_> = warnings.iter().map(ConfigWarning::sentence).collect();
        if name == "ENVIRONMENT_API_KEYS" {
            assert_eq!(hints, [""; 0]);
            let error = Case::text("{}").variable(name, "x").read().expect_err("nothing to serve");
            assert!(
                error
                    .to_string()
                    .contains(&format!("{name}: this proxy does not read {name}: set {instead}"))
            );
        } else {
            assert_eq!(hints, [format!("{name}: this proxy does not read {name}: set {instead}")]);
        }
    }
    let (_, warnings) = served().variable("PORT", "80").variable("SERVER_PORT", "81").read().expect("valid");
    assert_eq!(warnings.iter().map(|n| n.event).collect::<Vec<_>>(), ["unprefixed_variable_used"]);
    // A misspelled name with the prefix, and what Kubernetes sets for a service `edge-proxy`.
    for (name, count) in [
        ("EDGE_PROXY_SEVER_PORT", 1),
        ("EDGE_PROXY_NONSENSE", 1),
        ("EDGE_PROXY_SERVICE_HOST", 0),
        ("EDGE_PROXY_SERVICE_PORT", 0),
        ("EDGE_PROXY_SERVICE_PORT_HTTP", 0),
        ("EDGE_PROXY_PORT", 0),
        ("EDGE_PROXY_PORT_8000_TCP_ADDR", 0),
        ("EDGE_PROXY_GIT_SHA", 0),
    ] {
        let (_, warnings) = served().variable(name, "x").read().expect("valid");
        assert_eq!(warnings.len(), count, "{name}: {warnings:?}");
    }
}

impl Config {
    /// For comparison: each case has its own file.
    fn with_path(self, path: Option<PathBuf>) -> Self {
        Self { path, ..self }
    }
}

#[test]
fn no_color_disables_colour() {
    let colour = |value: &str| {
        let case = served().variable("EDGE_PROXY_LOGGING_COLOURS", "true").variable("NO_COLOR", value);
        case.config().logging.colour
    };
    assert!(colour(""), "an empty value is unset");
    assert!(!colour("1"));
    assert!(!colour("0"), "any other value");
}
