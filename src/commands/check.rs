//! `edge-proxy check`: checks the configuration, the files it names and, with `--online`, upstream. Prints
//! one line for each check: `ok`, `warn` or `FAIL`.
//!
//! It binds no port, writes no file, and sends requests only with `--online`. Keys are truncated.
use std::error::Error;
use std::fmt::{self, Display};
use std::io::Write;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use http::Uri;
use rustix::fs::{Access, AtFlags};

use crate::commands::arguments::ServeArgs;
use crate::config;
use crate::config::{Config, ConfigWarning, EnvironmentConfig, Level, Secret, TraitsStore, reachable};
use crate::limits::{DISCOVERY_WARNINGS_MAX, PROBE_TIMEOUT};
use crate::supervisor::probe;
use crate::supervisor::probe::{Probe, ProbeError, ProbedDocument};
use crate::terminal::escape;
use crate::tls::Certificates;
use crate::traits::{self, TraitFileState};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Default, Args)]
pub struct CheckArgs {
    /// Check upstream too: DNS, connection, key, document and event stream of each environment
    #[arg(long)]
    online: bool,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// Writes each line when its check is done: one may take seconds.
struct Report<W> {
    out: W,
    failures: usize,
}

/// Runs all checks.
///
/// # Errors
/// An invalid configuration, or the number of checks that failed.
pub fn run(args: CheckArgs) -> Result<(), Box<dyn Error>> {
    let is_online = args.online;
    let (config, warnings) = config::load(&args.serve.inputs())?;
    match check(&config, &warnings, is_online, std::io::stdout()) {
        0 => Ok(()),
        failures => Err(format!("{} failed", counted(failures, "check")).into()),
    }
}

/// Returns the number of failures.
fn check(config: &Config, warnings: &[ConfigWarning], is_online: bool, out: impl Write) -> usize {
    let mut report = Report { out, failures: 0 };
    report.line(Verdict::Ok, &"configuration", &summary(config));
    for warning in warnings {
        let fields: Vec<String> =
            warning.fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let verdict = if warning.level >= Level::Warning { Verdict::Warn } else { Verdict::Ok };
        report.line(verdict, &warning.event, &fields.join(" "));
    }
    report.files(config);
    report.traits(config);
    report.port(config);
    let probe = match Probe::new(config) {
        Ok(probe) => Some(probe),
        Err(errors) => {
            errors.iter().for_each(|error| report.line(Verdict::Fail, &"upstream", error));
            None
        }
    };
    let probe = probe.filter(|_| is_online);
    if let Some(probe) = &probe {
        if config.proxy_key.is_some() || config.environments.iter().any(EnvironmentConfig::is_polled) {
            report.connection(probe, "api_url", &config.api_url);
        }
        report.discovery(config, probe);
        report.environments(config, probe);
        report.realtime(config, probe);
        report.events(config, probe);
    } else {
        report.documents(config);
    }
    report.failures
}

fn summary(config: &Config) -> String {
    let source =
        config.path.as_ref().map_or("environment and flags".to_owned(), |path| path.display().to_string());
    format!(
        "{source}: {}, {} on CPUs {:?}",
        counted(config.environments.len(), "environment"),
        counted(config.cores.len(), "reactor"),
        config.cores
    )
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

impl<W: Write> Report<W> {
    fn line(&mut self, verdict: Verdict, what: &dyn Display, found: &dyn Display) {
        let word = match verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        self.failures += usize::from(verdict == Verdict::Fail);
        // With a closed stdout the exit code is still right.
        let _ = writeln!(self.out, "{word}  {}", escape(&format!("{what}: {found}")));
    }

    /// A directory that must be writable; `consequence` is appended to the error.
    fn directory(&mut self, setting: &str, directory: &Path, consequence: &str) {
        let shown = directory.display();
        match check_writable(directory) {
            Ok(()) => self.line(Verdict::Ok, &setting, &format!("{shown} is writable")),
            Err(error) => self.line(Verdict::Fail, &setting, &format!("{shown}: {error}{consequence}")),
        }
    }

    /// Certificates and directories of this machine.
    fn files(&mut self, config: &Config) {
        if let Some(tls) = &config.server.tls {
            match Certificates::load(tls, config.server.http2) {
                Ok(_) => self.line(Verdict::Ok, &"server.tls", &"the key matches the certificate"),
                Err(error) => self.line(Verdict::Fail, &"server.tls", &error),
            }
        }
        let parent = config.server.unix_socket.as_deref().and_then(Path::parent);
        if let Some(parent) = parent.filter(|parent| !parent.as_os_str().is_empty()) {
            self.directory("server.unix_socket", parent, "");
        }
        let parent = config.logging.access_log_file.as_deref().and_then(Path::parent);
        if let Some(parent) = parent.filter(|parent| !parent.as_os_str().is_empty()) {
            self.directory("logging.access_log_file", parent, "");
        }
        if let Some(directory) = &config.cache_dir {
            let consequence = "; without it, a restart while upstream is down has no document to serve";
            match directory.ancestors().find(|ancestor| ancestor.exists()) {
                Some(ancestor) if ancestor == directory => {
                    self.directory("cache_dir", directory, consequence);
                }
                // The last ancestor of a relative path is empty: the working directory.
                ancestor => self.new_directory(directory, ancestor.unwrap_or(Path::new(".")), consequence),
            }
        }
    }

    /// The directory of kept traits, or the one that it is made in.
    fn traits(&mut self, config: &Config) {
        if config.traits.store == TraitsStore::Redis {
            match traits::check_redis(config) {
                Ok(found) => self.line(Verdict::Ok, &"traits.redis_url", &found),
                Err(error) => self.line(Verdict::Fail, &"traits.redis_url", &error),
            }
        }
        let Some(folder) = config.traits_folder() else { return };
        let existing = folder.ancestors().find(|ancestor| ancestor.exists());
        let existing = existing.filter(|ancestor| !ancestor.as_os_str().is_empty());
        let consequence = "; without it, traits are lost with the process";
        self.directory("traits.path", existing.unwrap_or(Path::new(".")), consequence);
        match traits::check_file(&folder) {
            Ok(TraitFileState::Missing) => {}
            Ok(TraitFileState::InUse) => {
                self.line(Verdict::Ok, &"traits.path", &"a running process has the file of kept traits open");
            }
            Ok(TraitFileState::Intact(count)) => {
                let found = format!("the file of kept traits is intact, with {count} identities");
                self.line(Verdict::Ok, &"traits.path", &found);
            }
            Err(error) => self.line(Verdict::Fail, &"traits.path", &error),
        }
    }

    /// A directory that `serve` creates below `ancestor`, which exists.
    fn new_directory(&mut self, directory: &Path, ancestor: &Path, consequence: &str) {
        let (directory, shown) = (directory.display(), ancestor.display());
        match check_writable(ancestor) {
            Ok(()) => {
                let found = format!("{directory} will be created in {shown}");
                self.line(Verdict::Ok, &"cache_dir", &found);
            }
            Err(error) => {
                let found = format!("{directory} cannot be created: {shown}: {error}{consequence}");
                self.line(Verdict::Fail, &"cache_dir", &found);
            }
        }
    }

    /// Warns if another process listens on the port.
    fn port(&mut self, config: &Config) {
        let address = SocketAddr::new(config.server.host, config.server.port);
        let is_exclusive = config.server.tcp && address.port() != 0 && !config.server.take_over;
        if is_exclusive && TcpStream::connect_timeout(&reachable(address), PROBE_TIMEOUT).is_ok() {
            let found = format!(
                "port_shared: another process listens on {address}; both would receive a part of the \
                 connections. Stop it first, or start with --take-over to replace it"
            );
            self.line(Verdict::Warn, &"server.port", &found);
        }
    }

    /// Resolves the host and connects to it, or to the outbound proxy if there is one.
    fn connection(&mut self, probe: &Probe, setting: &str, url: &str) {
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
                    "{through}failed to resolve {host} ({error}): check the name and DNS, or set HTTPS_PROXY"
                );
                return self.line(Verdict::Warn, &setting, &found);
            }
        };
        let start = Instant::now();
        let connected = addresses.iter().map(|address| TcpStream::connect_timeout(address, CONNECT_TIMEOUT));
        match connected.into_iter().find_map(Result::ok) {
            Some(stream) => {
                let peer = stream.peer_addr().map_or_else(|_| host.to_owned(), |peer| peer.to_string());
                let ms = start.elapsed().as_millis();
                self.line(Verdict::Ok, &setting, &format!("{through}{host} is {peer}, connected in {ms} ms"));
            }
            None => {
                let advice = match proxy {
                    Some(_) => "check that it is running and that no firewall blocks it",
                    None => "check firewalls, or set HTTPS_PROXY",
                };
                let found = format!("{through}failed to connect to {host} port {port}: {advice}");
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
                let found = "the key is valid but has access to no environment: add environments in the organisation's settings";
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

    /// Fetches the document with each key. One key suffices, as during a key rotation.
    fn polled(
        &mut self,
        name: &dyn Display,
        environment: &EnvironmentConfig,
        probe: &Probe,
    ) -> Result<ProbedDocument, ProbeError> {
        let mut errors = Vec::new();
        let mut found = None;
        for key in environment.server_side_keys() {
            match probe.document(key) {
                Ok(document) => found = found.or(Some(document)),
                Err(error) => errors.push(error),
            }
        }
        let Some(found) = found else {
            return Err(errors.pop().unwrap_or(ProbeError::NoKey));
        };
        for error in errors {
            self.line(Verdict::Warn, name, &format!("one of its server-side keys failed: {error}"));
        }
        Ok(found)
    }

    /// Warns of keys that were copied from an example.
    fn placeholders(&mut self, name: &dyn Display, environment: &EnvironmentConfig) {
        let mut server = environment.server_side_keys().map(Secret::expose);
        let is_placeholder = |key: &str| key == "environment_key" || key.starts_with("your_");
        if server.any(|key| is_placeholder(key.trim_start_matches("ser.")))
            || is_placeholder(&environment.client_side_key)
        {
            let found = "the keys are those of an example: replace them with the keys of your environment \
                         (Flagsmith dashboard: Environment Settings, SDK Keys)";
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
                None => self.line(Verdict::Ok, &name, &"the keys are well-formed; use --online to try them"),
            }
        }
    }

    fn document(
        &mut self,
        name: &dyn Display,
        configured: &EnvironmentConfig,
        found: Result<ProbedDocument, ProbeError>,
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
                "the document has client-side key {}: check that both keys are of the same environment",
                Secret::new(own)
            );
            self.line(Verdict::Warn, name, &text);
        }
        for warning in &found.warnings {
            self.line(Verdict::Warn, name, &format!("{}: {}", warning.path, warning.message));
        }
        if found.environment.hashes_unlike_core() {
            let text = "percentage splits differ from those of core: use_identity_composite_key_for_hashing is false, so \
                 core hashes identity ids that documents do not contain; set it to true in the environment's \
                 settings";
            self.line(Verdict::Warn, name, &text);
        }
    }

    fn realtime(&mut self, config: &Config, probe: &Probe) {
        if !config.realtime.enabled {
            return;
        }
        self.connection(probe, "realtime.url", &config.realtime.url);
        for environment in config.environments.iter().filter(|environment| environment.is_polled()) {
            match probe.stream(&environment.client_side_key) {
                Ok(()) => self.line(Verdict::Ok, &EnvironmentName(environment), &"event stream opened"),
                Err(error) => {
                    let found =
                        format!("failed to open the event stream, updates come only from polling: {error}");
                    self.line(Verdict::Fail, &EnvironmentName(environment), &found);
                }
            }
        }
    }

    /// Tries where experiment events are forwarded to, without sending one.
    fn events(&mut self, config: &Config, probe: &Probe) {
        if !config.events.enabled {
            return;
        }
        self.connection(probe, "events.url", &config.events.url);
        for environment in config.environments.iter().filter(|environment| environment.is_polled()) {
            match probe.events(&environment.client_side_key) {
                Ok(()) => self.line(Verdict::Ok, &EnvironmentName(environment), &"events are accepted"),
                Err(error) => {
                    let found = format!("experiment events cannot be forwarded: {error}");
                    self.line(Verdict::Fail, &EnvironmentName(environment), &found);
                }
            }
        }
    }
}

/// Names the environment by the start of its key, or by its file.
struct EnvironmentName<'a>(&'a EnvironmentConfig);

impl Display for EnvironmentName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.document_path {
            Some(path) if self.0.client_side_key.is_empty() => write!(f, "document {}", path.display()),
            _ => write!(f, "environment {}", Secret::new(self.0.client_side_key.as_str())),
        }
    }
}

/// Checks by `faccessat`, without creating a file, that this process may create files in the directory.
fn check_writable(directory: &Path) -> std::io::Result<()> {
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    if !std::fs::metadata(directory)?.is_dir() {
        return Err(std::io::ErrorKind::NotADirectory.into());
    }
    let rights = Access::WRITE_OK | Access::EXEC_OK;
    rustix::fs::accessat(rustix::fs::CWD, directory, rights, AtFlags::EACCESS)?;
    Ok(())
}
