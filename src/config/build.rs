//! The door between what is written and what is meant.
//!
//! In: [`Inputs`]. Out: a [`Config`] and the notices to log, or every mistake. Invariant: each
//! setting of `source::SETTINGS` is read exactly here, by its path, with its default beside it;
//! a mistake never stops the reading, so that one run reports all.
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::config::cores::Available;
use crate::config::settings::{Inputs, RawConfig, SettingSource, is_secret, shown};
use crate::config::variables::SSL_CERT_FILE;
use crate::config::{
    Admin, Analytics, Certificate, Config, ConfigError, ConfigIssue, ConfigWarning, Cores, EnvironmentConfig,
    ForwardedAllowIps, HealthCheck, Level, LogFormat, Logging, Network, Realtime, Require, Secret, Server,
    Sse, TlsConfig, pairs, parse,
};
use crate::limits;

/// Reads the configuration, complete or not at all.
///
/// # Errors
/// Every mistake in it.
pub fn load(inputs: &Inputs) -> Result<(Config, Vec<ConfigWarning>), ConfigError> {
    read_on(inputs, &Available::of_process())
}

/// As [`read`], on a machine that is told.
pub fn read_on(inputs: &Inputs, available: &Available) -> Result<(Config, Vec<ConfigWarning>), ConfigError> {
    let mut reader = ConfigBuilder { written: RawConfig::read(inputs)? };
    let (path, is_named) = inputs.config_file();
    let path = (!inputs.without_file && (is_named || path.exists())).then_some(path);
    let config = reader.config(path, inputs, available);
    reader.accept_python_settings();
    reader.written.notice_aliases();
    if reader.written.mistakes.is_empty() {
        Ok((config, reader.written.notices))
    } else {
        Err(ConfigError { mistakes: reader.written.mistakes, notices: reader.written.notices })
    }
}

struct ConfigBuilder {
    written: RawConfig,
}

impl ConfigBuilder {
    /// The setting's value, or its default if nobody gave it or it is a mistake.
    fn read<T>(&mut self, path: &str, parse: impl Fn(&Value) -> Result<T, parse::Expected>, default: T) -> T {
        while let Some((value, origin)) = self.written.value(path) {
            match parse(value) {
                Ok(meant) => return meant,
                Err(expected) => {
                    let mistake = ConfigIssue::new(path, shown(value, is_secret(path)), origin, expected);
                    if !self.written.drop_alias(path, expected) {
                        self.written.mistakes.push(mistake);
                        return default;
                    }
                }
            }
        }
        default
    }

    /// Refuses the value of a setting that does not fit the other settings. True if it was the value
    /// of an alias: it is dropped then, and the setting is to be read again.
    fn refuse(&mut self, path: &str, expected: &str) -> bool {
        let is_dropped = self.written.drop_alias(path, expected);
        if !is_dropped {
            self.mistake(path, expected);
        }
        is_dropped
    }

    fn mistake(&mut self, path: &str, expected: &str) {
        let (value, origin) = match self.written.value(path) {
            Some((value, origin)) => (shown(value, is_secret(path)), origin.to_string()),
            None => (String::new(), "not set".to_owned()),
        };
        self.written.mistakes.push(ConfigIssue {
            path: path.to_owned(),
            value,
            origin,
            expected: expected.to_owned(),
        });
    }

    fn config(&mut self, path: Option<PathBuf>, inputs: &Inputs, available: &Available) -> Config {
        let proxy_key = self.read("proxy_key", optional_key, None);
        let environments =
            self.environments(inputs.environments.clone(), proxy_key.is_some() || inputs.may_serve_nothing);
        let api_url = self.read("api_url", parse::url, "https://edge.api.flagsmith.com/api/v1".to_owned());
        let mut config = Config {
            path,
            environments,
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
            usage_flush_interval: self.read("usage_flush_interval_seconds", parse::interval, seconds(60)),
            analytics: Analytics {
                enabled: self.read("analytics.enabled", parse::boolean, true),
                flush_interval: self.read("analytics.flush_interval_seconds", parse::interval, seconds(10)),
            },
            sse: Sse { max_stream: self.read("sse.max_stream_seconds", parse::duration, Duration::ZERO) },
            server: self.server(),
            allow_origins: self.allow_origins(),
            health_check: self.health_check(),
            logging: self.logging(inputs),
            admin: self.admin(),
            cores: self.cores(available),
        };
        while self.has_one_port_for_both(&config)
            && self.refuse("admin.port", "another port than server.port")
        {
            config.admin = self.admin();
        }
        config
    }

    /// Both listeners share a port with others (SO_REUSEPORT), so the kernel would not refuse it,
    /// and callers would meet the status page.
    fn has_one_port_for_both(&self, config: &Config) -> bool {
        let (server, Some(admin)) = (&config.server, &config.admin) else { return false };
        let is_one_host =
            server.host == admin.host || server.host.is_unspecified() || admin.host.is_unspecified();
        server.tcp && admin.port == server.port && admin.port != 0 && is_one_host
    }

    /// `SSL_CERT_FILE` is often set for a whole machine; as in httpx it counts only if the file exists.
    fn api_ca_file(&mut self) -> Option<PathBuf> {
        let path = self.read("api_ca_file", parse::optional_path, None)?;
        if path.is_file() {
            return Some(path);
        }
        if self.written.drop_alias("api_ca_file", "the path of a file that exists") {
            return self.api_ca_file();
        }
        let (_, origin) = self.written.value("api_ca_file")?;
        if !matches!(origin, SettingSource::Variable(name) if name.eq_ignore_ascii_case(SSL_CERT_FILE)) {
            return Some(path);
        }
        let (setting, reason) = (SSL_CERT_FILE, format!("{} is not a file", path.display()));
        let fields: [(&str, &dyn std::fmt::Display); 2] = [("setting", &setting), ("reason", &reason)];
        self.written.notices.push(ConfigWarning::new(Level::Warning, "setting_without_effect", &fields));
        None
    }

    fn allow_origins(&mut self) -> Vec<String> {
        let origins = self.read("allow_origins", parse::origins, vec!["*".to_owned()]);
        for origin in origins.iter().filter(|origin| !parse::is_origin(origin)) {
            let hint = "a browser sends scheme, host and port alone, such as https://www.example.com";
            let fields: [(&str, &dyn std::fmt::Display); 2] = [("origin", origin), ("hint", &hint)];
            self.written.notices.push(ConfigWarning::new(
                Level::Warning,
                "origin_matches_no_browser",
                &fields,
            ));
        }
        origins
    }

    fn server(&mut self) -> Server {
        let loopback = [[127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()];
        let network = |address: std::net::IpAddr| Network {
            address,
            prefix_bits: if address.is_ipv4() { 32 } else { 128 },
        };
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
            proxy_headers: self.read("server.proxy_headers", parse::boolean, false),
            forwarded_allow_ips: self.read(
                "server.forwarded_allow_ips",
                parse::forwarded_allow_ips,
                ForwardedAllowIps::Networks(loopback.map(network).to_vec()),
            ),
            driver: self.read("server.driver", parse::driver, None),
            shutdown_delay: self.read("server.shutdown_delay_seconds", parse::duration, Duration::ZERO),
            shutdown_grace: self.read("server.shutdown_grace_seconds", parse::duration, seconds(10)),
        }
    }

    fn tcp(&mut self) -> bool {
        let tcp = self.read("server.tcp", parse::boolean, true);
        let has_path = self.written.value("server.unix_socket").is_some_and(|(value, _)| !value.is_null());
        let expected = "true, because server.unix_socket is not set";
        if !tcp && !has_path && self.refuse("server.tcp", expected) {
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
            && !self.written.drop_alias("server.tls.client_ca", expected)
        {
            self.mistake("server.tls.cert", "a certificate, because server.tls.client_ca is set");
        }
        Some(TlsConfig { certificate: certificate?, client_ca })
    }

    /// A pair of `cert` and `key` in a group: both or none.
    fn certificate(&mut self, group: &str) -> Option<Certificate> {
        let (cert_path, key_path) = (format!("{group}.cert"), format!("{group}.key"));
        let cert = self.read(&cert_path, parse::optional_path, None);
        let key = self.read(&key_path, parse::optional_path, None);
        let (given, missing, expected) = match (cert, key) {
            (Some(cert), Some(key)) => return Some(Certificate { cert, key }),
            (None, None) => return None,
            (Some(_), None) => (&cert_path, &key_path, "the path of the certificate's key (PEM)"),
            (None, Some(_)) => (&key_path, &cert_path, "the path of the key's certificate (PEM)"),
        };
        if !self.written.drop_alias(given, &format!("set together with {missing}")) {
            self.mistake(missing, expected);
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
            enable_access_log: self.read("logging.enable_access_log", parse::boolean, false),
        }
    }

    fn admin(&mut self) -> Option<Admin> {
        let host = self.read("admin.host", parse::address, [127, 0, 0, 1].into());
        let allowed_hosts = self.read("admin.allowed_hosts", parse::hosts, Vec::new());
        let port = self.read("admin.port", parse::optional_port, None)?;
        Some(Admin { host, port, allowed_hosts })
    }

    fn cores(&mut self, available: &Available) -> Vec<usize> {
        let asked = self.read("cores", Cores::parse, Cores::Available);
        match asked.resolve(available) {
            Ok((cpus, false)) => cpus,
            Ok((cpus, true)) => {
                let hint =
                    "the process may use no more CPUs: affinity (taskset, CPUAffinity=, cpuset) sets them";
                let fields: [(&str, &dyn std::fmt::Display); 2] =
                    [("reactors", &cpus.len()), ("hint", &hint)];
                self.written.notices.push(ConfigWarning::new(
                    Level::Warning,
                    "fewer_cpus_than_asked_for",
                    &fields,
                ));
                cpus
            }
            Err(expected) if self.refuse("cores", &expected) => self.cores(available),
            Err(_) => available.cpus.clone(),
        }
    }

    fn environments(&mut self, brought: Vec<EnvironmentConfig>, may_be_none: bool) -> Vec<EnvironmentConfig> {
        let mut environments = brought;
        let pairs =
            self.written.value("environment_key_pairs").map(|(v, origin)| (v.clone(), origin.clone()));
        if let Some((value, origin)) = pairs {
            match value.as_array() {
                Some(pairs) => {
                    for (index, pair) in pairs.iter().enumerate() {
                        let path = format!("environment_key_pairs[{index}]");
                        environments.extend(pairs::read(&path, pair, &origin, &mut self.written));
                    }
                }
                None => self.mistake("environment_key_pairs", "a list of key pairs"),
            }
        }
        for document_path in self.read("documents", documents, Vec::new()) {
            environments.push(EnvironmentConfig { document_path: Some(document_path), ..Default::default() });
        }
        if environments.is_empty() && !may_be_none && self.written.mistakes.is_empty() {
            self.mistake(
                "environment_key_pairs",
                "at least one pair of server_side_key and client_side_key (or --document FILE); \
                 `edge-proxy render-config` writes an example",
            );
        }
        self.tell_repeated_server_keys(&environments);
        self.without_repetitions(environments)
    }

    /// The Python proxy takes it, and it works, but both pairs serve one environment.
    fn tell_repeated_server_keys(&mut self, environments: &[EnvironmentConfig]) {
        for (index, environment) in environments.iter().enumerate() {
            let Some(key) = &environment.server_side_key else { continue };
            let is_same = |earlier: &EnvironmentConfig| {
                earlier.server_side_key.as_ref() == Some(key)
                    && earlier.client_side_key != environment.client_side_key
            };
            if environments[..index].iter().any(is_same) {
                let path = format!("environment_key_pairs[{index}].server_side_key");
                let hint = "the same as of an earlier pair: both serve the environment of that key";
                let fields: [(&str, &dyn std::fmt::Display); 3] =
                    [("setting", &path), ("server_side_key", key), ("hint", &hint)];
                self.written.notices.push(ConfigWarning::new(
                    Level::Warning,
                    "server_side_key_repeated",
                    &fields,
                ));
            }
        }
    }

    /// Joins pairs that have one client-side key: the Python proxy takes them, and they are how a
    /// server-side key is rotated without a gap.
    fn without_repetitions(&mut self, environments: Vec<EnvironmentConfig>) -> Vec<EnvironmentConfig> {
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
                let origin =
                    self.written.value("environment_key_pairs").map(|(_, origin)| origin.to_string());
                self.written.mistakes.push(ConfigIssue {
                    path: format!("{path}.document_path"),
                    value: format!(
                        "another than that of an earlier pair with client_side_key {}",
                        Secret::new(key)
                    ),
                    origin: origin.unwrap_or_default(),
                    expected: "one source for each client-side key".to_owned(),
                });
                continue;
            }
            let is_known = |key: &Secret| earlier.server_side_keys().any(|known| known == key);
            let further: Vec<Secret> =
                environment.server_side_key.iter().filter(|key| !is_known(key)).cloned().collect();
            let hint = if further.is_empty() {
                "the pair is a repetition of an earlier one: remove it"
            } else {
                "both server-side keys are used: remove the pair with the old one after the rotation"
            };
            self.written.notices.push(ConfigWarning::repeated_pair(&path, key, hint));
            earlier.further_server_side_keys.extend(further);
        }
        joined
    }

    /// Settings of the Python proxy that need no counterpart: taken, with a line saying why.
    fn accept_python_settings(&mut self) {
        let is_on = |caches: &Value| {
            ["flags", "identities"].iter().any(|name| caches[name]["use_cache"].as_bool() == Some(true))
        };
        let why = [
            (
                "endpoint_caches",
                Level::Info,
                "answers are made ready when the document changes, so that there is nothing to cache",
            ),
            (
                "logging.override",
                Level::Warning,
                "not supported: set logging.log_level, logging.log_format and \
                 logging.enable_access_log, and send stdout where it should go",
            ),
            (
                "server.reload",
                Level::Warning,
                "a developer's switch of the Python proxy, without effect here",
            ),
        ];
        for (path, level, reason) in why {
            let Some((value, _)) = self.written.value(path) else { continue };
            let is_used = match value {
                Value::Object(_) if path == "endpoint_caches" => is_on(value),
                Value::Object(object) => !object.is_empty(),
                Value::Null | Value::Bool(false) => false,
                _ => true,
            };
            if is_used {
                let fields: [(&str, &dyn std::fmt::Display); 2] = [("setting", &path), ("reason", &reason)];
                self.written.notices.push(ConfigWarning::new(level, "setting_without_effect", &fields));
            }
        }
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn optional_key(value: &Value) -> Result<Option<Secret>, parse::Expected> {
    match value {
        Value::Null => Ok(None),
        _ => parse::key(value.as_str().unwrap_or("")).map(|key| Some(Secret::new(key))),
    }
}

fn documents(value: &Value) -> Result<Vec<PathBuf>, parse::Expected> {
    const EXPECTED: parse::Expected = "a list of paths of environment documents";
    let paths = value.as_array().ok_or(EXPECTED)?.iter().map(parse::optional_path);
    paths.map(|path| path.ok().flatten().ok_or(EXPECTED)).collect()
}
