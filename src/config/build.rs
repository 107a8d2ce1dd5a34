//! Builds a [`Config`] from the layers: parses each setting, with its default beside it, and validates
//! settings against each other. An issue does not end the build, so that one run reports all.
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value;

use crate::config::cores::{Available, Cores};
use crate::config::issue::{ConfigError, ConfigIssue, ConfigWarning, SettingSource};
use crate::config::layers;
use crate::config::layers::Inputs;
use crate::config::networks::{AddressLists, ForwardedAllowIps, Networks};
use crate::config::raw::{RawConfig, printable};
use crate::config::secret::Secret;
use crate::config::settings::{SSL_CERT_FILE, is_secret};
use crate::config::types::{
    Admin, Analytics, Certificate, Config, EnvironmentConfig, EventsConfig, EventsFsync, HealthCheck, Level,
    LogFormat, Logging, Realtime, Require, Server, Sse, TlsConfig,
};
use crate::config::{headers, networks, otel_variables, pairs, parse};
use crate::limits;

/// Reads the configuration.
///
/// # Errors
/// Every issue in it.
pub fn load(inputs: &Inputs) -> Result<(Config, Vec<ConfigWarning>), ConfigError> {
    load_for(inputs, &Available::of_process())
}

/// As [`load`], for a machine with these CPUs.
pub fn load_for(inputs: &Inputs, available: &Available) -> Result<(Config, Vec<ConfigWarning>), ConfigError> {
    let mut builder = ConfigBuilder { raw: layers::read(inputs)? };
    let (path, is_named) = inputs.config_file();
    let path = (!inputs.without_file && (is_named || path.exists())).then_some(path);
    let config = builder.config(path, inputs, available);
    builder.accept_python_settings();
    builder.raw.note_aliases();
    let RawConfig { issues, warnings, secret_files, .. } = builder.raw;
    let config = Config { secret_files, ..config };
    if issues.is_empty() { Ok((config, warnings)) } else { Err(ConfigError { issues, warnings }) }
}

pub struct ConfigBuilder {
    pub(super) raw: RawConfig,
}

impl ConfigBuilder {
    /// The value of a setting, or its default if it is not set or invalid.
    pub(super) fn read<T>(
        &mut self,
        path: &str,
        parse: impl Fn(&Value) -> Result<T, parse::Expected>,
        default: T,
    ) -> T {
        while let Some((value, _)) = self.raw.value(path) {
            match parse(value) {
                Ok(parsed) => return parsed,
                Err(expected) if self.reject(path, expected) => {}
                Err(_) => return default,
            }
        }
        default
    }

    /// Rejects the value of a setting. Returns true if an alias set it: that value is removed with a
    /// warning, and the caller reads the setting again.
    pub(super) fn reject(&mut self, path: &str, expected: &str) -> bool {
        let is_dropped = self.raw.drop_alias(path, expected);
        if !is_dropped {
            self.add_issue(path, expected);
        }
        is_dropped
    }

    fn add_issue(&mut self, path: &str, expected: &str) {
        let set = self.raw.value(path);
        let issue = ConfigIssue {
            setting: path.to_owned(),
            value: set.map(|(value, _)| printable(value, is_secret(path))),
            expected: expected.to_owned(),
            source: set.map(|(_, source)| source.clone()),
        };
        self.raw.issues.push(issue);
    }

    fn warn(&mut self, event: &'static str, fields: &[(&'static str, &dyn Display)]) {
        self.raw.warnings.push(ConfigWarning::new(Level::Warning, event, fields));
    }

    fn config(&mut self, path: Option<PathBuf>, inputs: &Inputs, available: &Available) -> Config {
        let proxy_key = self.read("proxy_key", parse::optional_key, None);
        let environments =
            self.environments(inputs.environments.clone(), proxy_key.is_some() || inputs.may_serve_nothing);
        let api_url = self.read("api_url", parse::url, "https://edge.api.flagsmith.com/api/v1".to_owned());
        let mut config = Config {
            path,
            secret_files: Vec::new(),
            environments,
            api_headers: headers::read("api_headers", &mut self.raw, &api_url),
            api_url: format!("{}/", api_url.trim_end_matches('/')),
            api_poll_frequency: self.read("api_poll_frequency_seconds", parse::interval, seconds(10)),
            api_poll_timeout: self.read("api_poll_timeout_seconds", parse::interval, seconds(5)),
            api_full_refresh: self.read("api_full_refresh_seconds", parse::optional_interval, None),
            api_document_bytes_max: self.read(
                "api_document_bytes_max",
                parse::count,
                limits::DOCUMENT_BYTES_MAX,
            ),
            api_ca_file: self.api_ca_file(),
            api_client_certificate: self.certificate("api_client_certificate"),
            cache_dir: self.read("cache_dir", parse::optional_path, None),
            realtime: self.realtime(),
            proxy_key,
            discovery_empty_grace: self.read("discovery_empty_grace_seconds", parse::duration, seconds(60)),
            document_deltas: self.read("document_deltas", parse::boolean, true),
            usage_flush_interval: self.read("usage_flush_interval_seconds", parse::interval, seconds(60)),
            analytics: Analytics {
                enabled: self.read("analytics.enabled", parse::boolean, true),
                flush_interval: self.read("analytics.flush_interval_seconds", parse::interval, seconds(10)),
            },
            events: self.events(),
            traits: self.traits(),
            sse: Sse { max_stream: self.read("sse.max_stream_seconds", parse::duration, Duration::ZERO) },
            server: self.server(),
            allow_origins: self.allow_origins(),
            health_check: self.health_check(),
            logging: self.logging(inputs),
            admin: self.admin(),
            telemetry: otel_variables::read(&inputs.variables, &mut self.raw.warnings),
            cores: self.cores(available),
        };
        while has_port_conflict(&config) && self.reject("admin.port", "a port other than server.port") {
            config.admin = self.admin();
        }
        config
    }

    /// `SSL_CERT_FILE` is often set for a whole machine. As in httpx, it is ignored unless the file exists.
    fn api_ca_file(&mut self) -> Option<PathBuf> {
        let path = self.read("api_ca_file", parse::optional_path, None)?;
        if path.is_file() {
            return Some(path);
        }
        if self.raw.drop_alias("api_ca_file", "the path of a file that exists") {
            return self.api_ca_file();
        }
        let (_, source) = self.raw.value("api_ca_file")?;
        if !matches!(source, SettingSource::Variable(name) if name.eq_ignore_ascii_case(SSL_CERT_FILE)) {
            return Some(path);
        }
        let reason = format!("{} is not a file", path.display());
        self.raw.warnings.push(ConfigWarning::without_effect(Level::Warning, SSL_CERT_FILE, &reason));
        None
    }

    fn allow_origins(&mut self) -> Vec<String> {
        let origins = self.read("allow_origins", parse::origins, vec!["*".to_owned()]);
        for origin in origins.iter().filter(|origin| !parse::is_origin(origin)) {
            let hint = "browsers send only scheme, host and port, such as https://www.example.com";
            self.warn("origin_matches_no_browser", &[("origin", origin), ("hint", &hint)]);
        }
        origins
    }

    fn server(&mut self) -> Server {
        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        Server {
            host: self.read("server.host", parse::address, [0, 0, 0, 0].into()),
            port: self.read("server.port", parse::port, 8000),
            take_over: self.read("server.take_over", parse::boolean, false),
            tcp: self.tcp(),
            unix_socket: self.read("server.unix_socket", parse::optional_path, None),
            unix_socket_mode: self.read("server.unix_socket_mode", parse::optional_mode, None),
            tls: self.tls(),
            timeout_keep_alive: self.read("server.timeout_keep_alive", parse::interval, seconds(90)),
            timeout_head: self.read("server.timeout_head", parse::interval, limits::HEAD_TIMEOUT),
            timeout_body: self.read("server.timeout_body", parse::interval, limits::BODY_TIMEOUT),
            timeout_write: self.read("server.timeout_write", parse::interval, limits::WRITE_TIMEOUT),
            head_bytes_max: self.read("server.head_bytes_max", parse::head_bytes, limits::HEAD_BYTES_MAX),
            connections_max: self.read("server.connections_max", parse::count, limits::CONNECTIONS_MAX),
            requests_max: self.read("server.requests_max", parse::optional_count, None),
            http2: self.read("server.http2", parse::boolean, true),
            spread: self.read("server.spread", parse::boolean, false),
            http2_streams_max: self.read(
                "server.http2_streams_max",
                parse::http2_streams,
                limits::HTTP2_STREAMS_MAX,
            ),
            proxy_headers: self.read("server.proxy_headers", parse::boolean, false),
            forwarded_allow_ips: self.read(
                "server.forwarded_allow_ips",
                networks::forwarded_allow_ips,
                ForwardedAllowIps::Networks(Networks::new(loopback.map(IpNet::from))),
            ),
            address_lists: AddressLists::new(
                self.read("server.allow_list", networks::address_list, Networks::default()),
                self.read("server.deny_list", networks::address_list, Networks::default()),
            ),
            base_path: self.read("server.base_path", parse::optional_base_path, None),
            driver: self.read("server.driver", parse::driver, None),
            spin: self.read("server.spin_microseconds", parse::spin_microseconds, Duration::ZERO),
            shutdown_delay: self.read("server.shutdown_delay_seconds", parse::duration, Duration::ZERO),
            shutdown_grace: self.read("server.shutdown_grace_seconds", parse::duration, seconds(10)),
        }
    }

    fn tcp(&mut self) -> bool {
        let tcp = self.read("server.tcp", parse::boolean, true);
        let has_path = self.raw.value("server.unix_socket").is_some_and(|(value, _)| !value.is_null());
        let expected = "true, because server.unix_socket is not set";
        if !tcp && !has_path && self.reject("server.tcp", expected) {
            return self.tcp();
        }
        tcp
    }

    fn tls(&mut self) -> Option<TlsConfig> {
        let client_ca = self.read("server.tls.client_ca", parse::optional_path, None);
        let certificate = self.certificate("server.tls");
        let expected = "set together with server.tls.cert";
        if certificate.is_none()
            && client_ca.is_some()
            && !self.raw.drop_alias("server.tls.client_ca", expected)
        {
            self.add_issue(
                "server.tls.cert",
                "the path of a certificate, because server.tls.client_ca is set",
            );
        }
        Some(TlsConfig { certificate: certificate?, client_ca })
    }

    /// `cert` and `key` of a group: both or neither.
    fn certificate(&mut self, group: &str) -> Option<Certificate> {
        let (cert_path, key_path) = (format!("{group}.cert"), format!("{group}.key"));
        let cert = self.read(&cert_path, parse::optional_path, None);
        let key = self.read(&key_path, parse::optional_path, None);
        let (given, missing, expected) = match (cert, key) {
            (Some(cert), Some(key)) => return Some(Certificate { cert, key }),
            (None, None) => return None,
            (Some(_), None) => (&cert_path, &key_path, "the path of the private key (PEM)"),
            (None, Some(_)) => (&key_path, &cert_path, "the path of the certificate (PEM)"),
        };
        if !self.raw.drop_alias(given, &format!("set together with {missing}")) {
            self.add_issue(missing, expected);
        }
        None
    }

    fn realtime(&mut self) -> Realtime {
        let url = self.read("realtime.url", parse::url, "https://realtime.flagsmith.com".to_owned());
        Realtime {
            enabled: self.read("realtime.enabled", parse::boolean, false),
            url: format!("{}/", url.trim_end_matches('/')),
        }
    }

    fn events(&mut self) -> EventsConfig {
        let url = self.read("events.url", parse::url, "https://events.api.flagsmith.com".to_owned());
        EventsConfig {
            enabled: self.events_enabled(),
            url: format!("{}/", url.trim_end_matches('/')),
            flush_interval: self.read("events.flush_interval_seconds", parse::interval, seconds(10)),
            fsync: self.read("events.fsync", parse::fsync, EventsFsync::Group),
            spool_bytes_max: self.read(
                "events.spool_bytes_max",
                parse::spool_bytes,
                limits::EVENTS_SPOOL_BYTES_MAX,
            ),
        }
    }

    fn events_enabled(&mut self) -> bool {
        let enabled = self.read("events.enabled", parse::boolean, false);
        let has_folder = self.raw.value("cache_dir").is_some_and(|(value, _)| !value.is_null());
        let expected =
            "false, because cache_dir is not set: events are stored there until they are forwarded";
        if enabled && !has_folder && self.reject("events.enabled", expected) {
            return self.events_enabled();
        }
        enabled
    }

    fn health_check(&mut self) -> HealthCheck {
        HealthCheck {
            environment_update_grace_period: self.read(
                "health_check.environment_update_grace_period_seconds",
                parse::optional_duration,
                Some(seconds(30)),
            ),
            ready_from_cache: self.read("health_check.ready_from_cache", parse::boolean, true),
            require: self.read("health_check.require", parse::require, Require::All),
        }
    }

    fn logging(&mut self, inputs: &Inputs) -> Logging {
        let optional =
            |value: &Value| if value.is_null() { Ok(None) } else { parse::boolean(value).map(Some) };
        let colour = self.read("logging.colours", optional, None);
        let access_log_file = self.read("logging.access_log_file", parse::optional_path, None);
        let enabled = self.read("logging.enable_access_log", parse::boolean, access_log_file.is_some());
        if access_log_file.is_some() && !enabled {
            let reason = "logging.enable_access_log is false";
            let (level, setting) = (Level::Warning, "logging.access_log_file");
            self.raw.warnings.push(ConfigWarning::without_effect(level, setting, reason));
        }
        Logging {
            log_level: self.read("logging.log_level", parse::log_level, Level::Info),
            log_format: self.read("logging.log_format", parse::log_format, LogFormat::Generic),
            log_event_field_name: self.read(
                "logging.log_event_field_name",
                parse::text,
                "message".to_owned(),
            ),
            // https://no-color.org
            colour: !inputs.variables.iter().any(|(name, value)| name == "NO_COLOR" && !value.is_empty())
                && colour.unwrap_or_else(|| std::io::IsTerminal::is_terminal(&std::io::stdout())),
            enable_access_log: enabled,
            access_log_file: access_log_file.filter(|_| enabled),
        }
    }

    fn admin(&mut self) -> Option<Admin> {
        let host = self.read("admin.host", parse::address, [127, 0, 0, 1].into());
        let allowed_hosts = self.read("admin.allowed_hosts", parse::hosts, Vec::new());
        let port = self.read("admin.port", parse::optional_port, None)?;
        Some(Admin { host, port, allowed_hosts })
    }

    fn cores(&mut self, available: &Available) -> Vec<usize> {
        match self.read("cores", Cores::parse, Cores::Available).resolve(available) {
            Ok((cpus, false)) => cpus,
            Ok((cpus, true)) => {
                let hint = "the CPU affinity of the process allows no more (taskset, CPUAffinity=, cpuset)";
                self.warn("fewer_cpus_than_requested", &[("reactors", &cpus.len()), ("hint", &hint)]);
                cpus
            }
            Err(error) if self.reject("cores", &error.to_string()) => self.cores(available),
            Err(_) => available.cpus.clone(),
        }
    }

    fn environments(
        &mut self,
        built_in: Vec<EnvironmentConfig>,
        may_be_none: bool,
    ) -> Vec<EnvironmentConfig> {
        let mut environments = built_in;
        let pairs = self.raw.value("environment_key_pairs").map(|(v, source)| (v.clone(), source.clone()));
        if let Some((value, source)) = pairs {
            match value.as_array() {
                Some(pairs) => {
                    for (index, pair) in pairs.iter().enumerate() {
                        let path = format!("environment_key_pairs[{index}]");
                        environments.extend(pairs::read(&path, pair, &source, &mut self.raw));
                    }
                }
                None => self.add_issue("environment_key_pairs", "a list of key pairs"),
            }
        }
        for document_path in self.read("documents", parse::documents, Vec::new()) {
            environments.push(EnvironmentConfig { document_path: Some(document_path), ..Default::default() });
        }
        if environments.is_empty() && !may_be_none && self.raw.issues.is_empty() {
            self.add_issue(
                "environment_key_pairs",
                "at least one pair of server_side_key and client_side_key (or --document FILE); \
                 `edge-proxy render-config` writes an example",
            );
        }
        self.warn_of_repeated_server_keys(&environments);
        self.join_pairs(environments)
    }

    /// Two pairs with one server-side key are accepted, as by the Python proxy, but serve one environment.
    fn warn_of_repeated_server_keys(&mut self, environments: &[EnvironmentConfig]) {
        for (index, environment) in environments.iter().enumerate() {
            let Some(key) = &environment.server_side_key else { continue };
            let is_same = |earlier: &EnvironmentConfig| {
                earlier.server_side_key.as_ref() == Some(key)
                    && earlier.client_side_key != environment.client_side_key
            };
            if environments[..index].iter().any(is_same) {
                let path = format!("environment_key_pairs[{index}].server_side_key");
                let hint = "an earlier pair has the same key: both serve the environment of that key";
                let fields: [(&str, &dyn Display); 3] =
                    [("setting", &path), ("server_side_key", key), ("hint", &hint)];
                self.warn("server_side_key_repeated", &fields);
            }
        }
    }

    /// Joins pairs with the same client-side key: the Python proxy accepts them, and a server-side key is
    /// rotated by them without an interruption.
    fn join_pairs(&mut self, environments: Vec<EnvironmentConfig>) -> Vec<EnvironmentConfig> {
        let mut joined: Vec<EnvironmentConfig> = Vec::with_capacity(environments.len());
        for (index, environment) in environments.into_iter().enumerate() {
            let key = environment.client_side_key.as_str();
            let earlier = joined.iter_mut().find(|earlier| !key.is_empty() && earlier.client_side_key == key);
            let Some(earlier) = earlier else {
                joined.push(environment);
                continue;
            };
            let path = format!("environment_key_pairs[{index}]");
            if earlier.document_path != environment.document_path {
                let source = self.raw.value("environment_key_pairs").map(|(_, source)| source.clone());
                let document = environment.document_path.map(|path| path.display().to_string());
                self.raw.issues.push(ConfigIssue {
                    setting: format!("{path}.document_path"),
                    value: Some(document.unwrap_or_else(|| "null".to_owned())),
                    expected: format!(
                        "the same as in the earlier pair with client_side_key {}",
                        Secret::new(key)
                    ),
                    source: source.map(|source| self.raw.located(&path, &source)),
                });
                continue;
            }
            let is_known = |key: &Secret| earlier.server_side_keys().any(|known| known == key);
            let further: Vec<Secret> =
                environment.server_side_key.iter().filter(|key| !is_known(key)).cloned().collect();
            let hint = if further.is_empty() {
                "the pair repeats an earlier one: remove it"
            } else {
                "both server-side keys are used: remove the pair with the old key after the rotation"
            };
            self.raw.warnings.push(ConfigWarning::repeated_pair(&path, key, hint));
            earlier.further_server_side_keys.extend(further);
        }
        joined
    }

    /// Settings of the Python proxy without a counterpart are accepted with a warning.
    fn accept_python_settings(&mut self) {
        let is_on = |caches: &Value| {
            ["flags", "identities"].iter().any(|name| caches[name]["use_cache"].as_bool() == Some(true))
        };
        let reasons = [
            (
                "endpoint_caches",
                Level::Info,
                "responses are rendered when the document changes, so there is no cache to configure",
            ),
            (
                "logging.override",
                Level::Warning,
                "not supported: set logging.log_level, logging.log_format and \
                 logging.enable_access_log, and redirect stdout",
            ),
            ("server.reload", Level::Warning, "a development option of the Python proxy"),
        ];
        for (path, level, reason) in reasons {
            let Some((value, _)) = self.raw.value(path) else { continue };
            let is_used = match value {
                Value::Object(_) if path == "endpoint_caches" => is_on(value),
                Value::Object(object) => !object.is_empty(),
                Value::Null | Value::Bool(false) => false,
                _ => true,
            };
            if is_used {
                self.raw.warnings.push(ConfigWarning::without_effect(level, path, reason));
            }
        }
    }
}

/// Both listeners set SO_REUSEPORT, so the kernel would accept the conflict and send some clients to the
/// status page.
fn has_port_conflict(config: &Config) -> bool {
    let (server, Some(admin)) = (&config.server, &config.admin) else { return false };
    let is_same_host =
        server.host == admin.host || server.host.is_unspecified() || admin.host.is_unspecified();
    server.tcp && admin.port == server.port && admin.port != 0 && is_same_host
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
