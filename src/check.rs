//! `edge-proxy check`: will it work with this configuration? One line for each thing looked at.
//!
//! In: a configuration that was read without a mistake. Out: lines that say `ok`, `warn` or
//! `FAIL` with what to do, and whether anything failed. Invariant: nothing is bound, kept or
//! changed; upstream is asked only with `--online`; no line holds a whole key.
use std::fmt::{self, Display};
use std::io::Write;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::{Duration, Instant};

use http::Uri;

use crate::config::{Config, EnvironmentConfig, Level, Notice, Secret};
use crate::supervisor::probe::{self, Found, Probe};
use crate::tls::Certificates;

const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// How one thing turned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// The lines, written as they come, since a question may take seconds.
struct Report<W> {
    out: W,
    failures: usize,
}

/// Looks at everything. The number of failures.
pub fn run(config: &Config, notices: &[Notice], is_online: bool, out: impl Write) -> usize {
    let mut report = Report { out, failures: 0 };
    report.line(Verdict::Ok, &"configuration", &read_from(config));
    for notice in notices {
        let fields: Vec<String> =
            notice.fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let verdict = if notice.level >= Level::Warning { Verdict::Warn } else { Verdict::Ok };
        report.line(verdict, &notice.event, &fields.join(" "));
    }
    report.files(config);
    let probe = match Probe::new(config) {
        Ok(probe) => Some(probe),
        Err(mistakes) => {
            mistakes.iter().for_each(|mistake| report.line(Verdict::Fail, &"upstream", mistake));
            None
        }
    };
    let probe = probe.filter(|_| is_online);
    if let Some(probe) = &probe {
        if config.proxy_key.is_some() || config.environments.iter().any(is_polled) {
            report.reach("api_url", &config.api_url);
        }
        report.discovery(config, probe);
        report.environments(config, probe);
        report.realtime(config, probe);
    } else {
        report.documents(config);
    }
    report.failures
}

fn read_from(config: &Config) -> String {
    let place =
        config.path.as_ref().map_or("environment and flags".to_owned(), |path| path.display().to_string());
    format!(
        "{place}: {}, {} on CPUs {:?}",
        counted(config.environments.len(), "environment"),
        counted(config.cores.len(), "reactor"),
        config.cores
    )
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn is_polled(environment: &EnvironmentConfig) -> bool {
    environment.document_path.is_none() && environment.embedded_document.is_none()
}

impl<W: Write> Report<W> {
    fn line(&mut self, verdict: Verdict, what: &dyn Display, found: &dyn Display) {
        let word = match verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        self.failures += usize::from(verdict == Verdict::Fail);
        // Whoever does not read the lines still gets the exit code.
        let _ = writeln!(self.out, "{word}  {what}: {found}");
    }

    /// A directory that must be writable; `without` says what is lost else.
    fn directory(&mut self, setting: &str, directory: &Path, tried: std::io::Result<()>, without: &str) {
        let directory = directory.display();
        match tried {
            Ok(()) => self.line(Verdict::Ok, &setting, &format!("{directory} is writable")),
            Err(error) => self.line(Verdict::Fail, &setting, &format!("{directory}: {error}{without}")),
        }
    }

    /// What must be readable or writable on this machine.
    fn files(&mut self, config: &Config) {
        if let Some(tls) = &config.server.tls {
            match Certificates::load(tls) {
                Ok(_) => self.line(Verdict::Ok, &"server.tls", &"certificate and key fit together"),
                Err(error) => self.line(Verdict::Fail, &"server.tls", &error),
            }
        }
        let parent = config.server.unix_socket.as_deref().and_then(Path::parent);
        if let Some(parent) = parent.filter(|parent| !parent.as_os_str().is_empty()) {
            self.directory("server.unix_socket", parent, is_writable(parent), "");
        }
        if let Some(directory) = &config.cache_dir {
            let tried = std::fs::create_dir_all(directory).and_then(|()| is_writable(directory));
            let without = "; without it a restart while upstream is down has nothing to serve";
            self.directory("cache_dir", directory, tried, without);
        }
    }

    /// Name, address and a connection: what a key cannot be blamed for.
    fn reach(&mut self, setting: &str, url: &str) {
        let uri: Uri = url.parse().unwrap_or_default();
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
        let addresses: Vec<_> = match (host, port).to_socket_addrs() {
            Ok(addresses) => addresses.collect(),
            Err(error) => {
                let found = format!(
                    "{host} does not resolve ({error}); is the name right, and DNS reachable? Behind an outgoing proxy this is no harm"
                );
                return self.line(Verdict::Warn, &setting, &found);
            }
        };
        let began = Instant::now();
        let connected = addresses.iter().map(|address| TcpStream::connect_timeout(address, CONNECT_PATIENCE));
        match connected.into_iter().find_map(Result::ok) {
            Some(stream) => {
                let peer = stream.peer_addr().map_or_else(|_| host.to_owned(), |peer| peer.to_string());
                let found = format!("{host} is {peer}, connected in {} ms", began.elapsed().as_millis());
                self.line(Verdict::Ok, &setting, &found);
            }
            None => {
                let found =
                    format!("no connection to {host} port {port}: a firewall, or HTTPS_PROXY is needed");
                self.line(Verdict::Warn, &setting, &found);
            }
        }
    }

    fn discovery(&mut self, config: &Config, probe: &Probe) {
        if config.proxy_key.is_none() {
            return;
        }
        match probe.discover() {
            Ok(0) => {
                let found = "the key is good, but it opens no environment: give it some in the organisation's settings";
                self.line(Verdict::Warn, &"proxy_key", &found);
            }
            Ok(count) => {
                self.line(Verdict::Ok, &"proxy_key", &format!("discovers {}", counted(count, "environment")))
            }
            Err(error) => self.line(Verdict::Fail, &"proxy_key", &error),
        }
    }

    fn environments(&mut self, config: &Config, probe: &Probe) {
        for environment in &config.environments {
            let name = EnvironmentName(environment);
            let found = match (
                &environment.document_path,
                environment.embedded_document,
                &environment.server_side_key,
            ) {
                (Some(path), _, _) => probe::file(path, config.api_document_bytes_max),
                (None, Some(_), _) => continue,
                (None, None, Some(key)) => probe.document(key),
                (None, None, None) => Err("no server_side_key to ask with".to_owned()),
            };
            self.document(&name, environment, found);
        }
    }

    fn documents(&mut self, config: &Config) {
        for environment in &config.environments {
            let name = EnvironmentName(environment);
            match &environment.document_path {
                Some(path) => {
                    self.document(&name, environment, probe::file(path, config.api_document_bytes_max))
                }
                None => self.line(Verdict::Ok, &name, &"keys have the right form; --online asks upstream"),
            }
        }
    }

    fn document(&mut self, name: &dyn Display, configured: &EnvironmentConfig, found: Result<Found, String>) {
        let found = match found {
            Ok(found) => found,
            Err(error) => return self.line(Verdict::Fail, name, &error),
        };
        let sizes = found.environment.sizes();
        let text = format!(
            "\"{}\", {} bytes, {} features, {} segments, {} identity overrides",
            sizes.name, found.bytes, sizes.features, sizes.segments, sizes.identity_overrides
        );
        self.line(Verdict::Ok, name, &text);
        let own = found.environment.client_side_key();
        if !configured.client_side_key.is_empty() && own != configured.client_side_key {
            let text = format!(
                "the document is of the environment with client-side key {}: do both keys belong together?",
                Secret::new(own)
            );
            self.line(Verdict::Warn, name, &text);
        }
        for warning in &found.warnings {
            self.line(Verdict::Warn, name, &format!("{}: {}", warning.path, warning.message));
        }
        if found.environment.hashes_unlike_core() {
            let text = "percentages will differ from core's: use_identity_composite_key_for_hashing is false, so core hashes \
                 identities by ids that no document holds; set it to true in the environment's settings";
            self.line(Verdict::Warn, name, &text);
        }
    }

    fn realtime(&mut self, config: &Config, probe: &Probe) {
        if !config.realtime.enabled {
            return;
        }
        self.reach("realtime.url", &config.realtime.url);
        for environment in config.environments.iter().filter(|environment| is_polled(environment)) {
            match probe.stream(&environment.client_side_key) {
                Ok(()) => self.line(Verdict::Ok, &EnvironmentName(environment), &"its event stream opens"),
                Err(error) => {
                    let found =
                        format!("its event stream does not open, edits arrive by polling only: {error}");
                    self.line(Verdict::Fail, &EnvironmentName(environment), &found);
                }
            }
        }
    }
}

/// How people find the environment again: by the beginning of its key, or by its file.
struct EnvironmentName<'a>(&'a EnvironmentConfig);

impl Display for EnvironmentName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.document_path {
            Some(path) if self.0.client_side_key.is_empty() => write!(f, "document {}", path.display()),
            _ => write!(f, "environment {}", Secret::new(self.0.client_side_key.as_str())),
        }
    }
}

/// Tries with a file of its own, which is removed at once. What has its name already stays.
fn is_writable(directory: &Path) -> std::io::Result<()> {
    let path = directory.join(format!(".edge-proxy-check-{}", std::process::id()));
    std::fs::File::create_new(&path)?;
    std::fs::remove_file(&path)
}
