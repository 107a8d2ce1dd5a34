//! `edge-proxy check`: will it work with this configuration? One line for each thing looked at.
//!
//! In: a configuration that was read without a mistake. Out: lines that say `ok`, `warn` or
//! `FAIL` with what to do, and whether anything failed. Invariant: nothing is bound, kept or
//! changed; upstream is asked only with `--online`; no line holds a whole key.
use std::fmt::{self, Display};
use std::io::Write;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::{Duration, Instant};

use http::Uri;
use rustix::fs::{Access, AtFlags};

use crate::config::{Config, ConfigWarning, EnvironmentConfig, Level, Secret, reachable};
use crate::limits::{DISCOVERY_WARNINGS_MAX, PROBE_TIMEOUT};
use crate::supervisor::probe;
use crate::supervisor::probe::{Probe, ProbedDocument};
use crate::terminal::escape;
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
pub fn run(config: &Config, notices: &[ConfigWarning], is_online: bool, out: impl Write) -> usize {
    let mut report = Report { out, failures: 0 };
    report.line(Verdict::Ok, &"configuration", &read_from(config));
    for notice in notices {
        let fields: Vec<String> =
            notice.fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let verdict = if notice.level >= Level::Warning { Verdict::Warn } else { Verdict::Ok };
        report.line(verdict, &notice.event, &fields.join(" "));
    }
    report.files(config);
    report.port(config);
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
            report.reach(probe, "api_url", &config.api_url);
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
        let _ = writeln!(self.out, "{word}  {}", escape(&format!("{what}: {found}")));
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
            let without = "; without it a restart while upstream is down has nothing to serve";
            match directory.ancestors().find(|place| place.exists()) {
                // Of a relative path the last ancestor is empty: the working directory.
                Some(place) if place == directory => {
                    self.directory("cache_dir", directory, is_writable(directory), without);
                }
                place => self.new_directory(directory, place.unwrap_or(Path::new(".")), without),
            }
        }
    }

    /// A directory that the start makes, in one that exists.
    fn new_directory(&mut self, directory: &Path, place: &Path, without: &str) {
        let (directory, shown) = (directory.display(), place.display());
        match is_writable(place) {
            Ok(()) => {
                self.line(
                    Verdict::Ok,
                    &"cache_dir",
                    &format!("{directory} is made at the start, in {shown}"),
                );
            }
            Err(error) => {
                let found = format!("{directory} cannot be made: {shown}: {error}{without}");
                self.line(Verdict::Fail, &"cache_dir", &found);
            }
        }
    }

    /// Whether another process has the port.
    fn port(&mut self, config: &Config) {
        let address = SocketAddr::new(config.server.host, config.server.port);
        let is_asked = config.server.tcp && address.port() != 0 && !config.server.take_over;
        if is_asked && TcpStream::connect_timeout(&reachable(address), PROBE_TIMEOUT).is_ok() {
            let found = format!(
                "port_shared: a process listens on {address} already; one more gets a part of its connections. \
                 Stop it first, or start with --take-over to replace it"
            );
            self.line(Verdict::Warn, &"server.port", &found);
        }
    }

    /// Name, address and a connection: what a key cannot be blamed for. Through an outgoing proxy, those
    /// of the proxy.
    fn reach(&mut self, probe: &Probe, setting: &str, url: &str) {
        let uri: Uri = url.parse().unwrap_or_default();
        let proxy = probe.proxy_for(&uri);
        let (uri, through) = match &proxy {
            Some((address, name)) => (address, format!("through {name}: ")),
            None => (&uri, String::new()),
        };
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
        let addresses: Vec<_> = match (host, port).to_socket_addrs() {
            Ok(addresses) => addresses.collect(),
            Err(error) => {
                let found = format!(
                    "{through}{host} does not resolve ({error}): check the name and DNS, or set HTTPS_PROXY"
                );
                return self.line(Verdict::Warn, &setting, &found);
            }
        };
        let began = Instant::now();
        let connected = addresses.iter().map(|address| TcpStream::connect_timeout(address, CONNECT_PATIENCE));
        match connected.into_iter().find_map(Result::ok) {
            Some(stream) => {
                let peer = stream.peer_addr().map_or_else(|_| host.to_owned(), |peer| peer.to_string());
                let ms = began.elapsed().as_millis();
                self.line(Verdict::Ok, &setting, &format!("{through}{host} is {peer}, connected in {ms} ms"));
            }
            None => {
                let cause = match proxy {
                    Some(_) => "it is down, or a firewall is before it",
                    None => "a firewall, or HTTPS_PROXY is needed",
                };
                let found = format!("{through}no connection to {host} port {port}: {cause}");
                self.line(Verdict::Warn, &setting, &found);
            }
        }
    }

    fn discovery(&mut self, config: &Config, probe: &Probe) {
        if config.proxy_key.is_none() {
            return;
        }
        let found = match probe.discover(config) {
            Ok(found) => found,
            Err(error) => return self.line(Verdict::Fail, &"proxy_key", &error),
        };
        match found.usable.len() {
            0 => {
                let found = "the key is valid, but it gives access to no environment: add some in the organisation's settings";
                self.line(Verdict::Warn, &"proxy_key", &found);
            }
            count => {
                let found = format!("discovers {}", counted(count, "environment"));
                self.line(Verdict::Ok, &"proxy_key", &found);
            }
        }
        for pair in found.rejected.iter().take(DISCOVERY_WARNINGS_MAX) {
            self.line(Verdict::Warn, &"proxy_key", &format!("rejected: {pair}"));
        }
    }

    fn environments(&mut self, config: &Config, probe: &Probe) {
        for environment in &config.environments {
            let name = EnvironmentName(environment);
            self.placeholders(&name, environment);
            if environment.embedded_document.is_some() {
                continue;
            }
            let found = match &environment.document_path {
                Some(path) => probe::file(path, config.api_document_bytes_max),
                None => self.polled(&name, environment, probe),
            };
            self.document(&name, environment, found);
        }
    }

    /// Asks with each key: the first good document counts, as while a key is rotated.
    fn polled(
        &mut self,
        name: &dyn Display,
        environment: &EnvironmentConfig,
        probe: &Probe,
    ) -> Result<ProbedDocument, String> {
        let mut refused = Vec::new();
        let mut found = None;
        for key in environment.server_side_keys() {
            match probe.document(key) {
                Ok(document) => found = found.or(Some(document)),
                Err(error) => refused.push(error),
            }
        }
        let Some(found) = found else {
            return Err(refused.pop().unwrap_or_else(|| "no server_side_key to ask with".to_owned()));
        };
        for error in refused {
            self.line(Verdict::Warn, name, &format!("one of its server-side keys does not work: {error}"));
        }
        Ok(found)
    }

    /// Keys that an example has where those of an environment should be.
    fn placeholders(&mut self, name: &dyn Display, environment: &EnvironmentConfig) {
        let mut server = environment.server_side_keys().map(Secret::expose);
        let is_placeholder = |key: &str| key == "environment_key" || key.starts_with("your_");
        if server.any(|key| is_placeholder(key.trim_start_matches("ser.")))
            || is_placeholder(&environment.client_side_key)
        {
            let found = "the keys are those of the example: replace them with keys of your environment \
                         (Flagsmith's dashboard: Environment Settings, SDK Keys)";
            self.line(Verdict::Warn, name, &found);
        }
    }

    fn documents(&mut self, config: &Config) {
        for environment in &config.environments {
            let name = EnvironmentName(environment);
            self.placeholders(&name, environment);
            match &environment.document_path {
                Some(path) => {
                    self.document(&name, environment, probe::file(path, config.api_document_bytes_max))
                }
                None => self.line(Verdict::Ok, &name, &"keys have the right form; --online asks upstream"),
            }
        }
    }

    fn document(
        &mut self,
        name: &dyn Display,
        configured: &EnvironmentConfig,
        found: Result<ProbedDocument, String>,
    ) {
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
        self.reach(probe, "realtime.url", &config.realtime.url);
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

/// Whether this process may make files there; nothing is written.
fn is_writable(directory: &Path) -> std::io::Result<()> {
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    if !std::fs::metadata(directory)?.is_dir() {
        return Err(std::io::ErrorKind::NotADirectory.into());
    }
    let rights = Access::WRITE_OK | Access::EXEC_OK;
    rustix::fs::accessat(rustix::fs::CWD, directory, rights, AtFlags::EACCESS)?;
    Ok(())
}
