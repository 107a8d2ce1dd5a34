//! The command line: what was typed, nothing more.
//!
//! In: arguments. Out: a [`Command`] with the [`Inputs`] it reads its configuration from.
//! Invariant: values are passed on as typed; `config` judges them together with the file and the
//! environment, so that all mistakes are told in one run. Nothing is opened or started here.
use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use serde_json::Value;

use crate::config::settings::Inputs;
use crate::{demo, terminal};

/// Version and commit, as `--version` prints them.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("EDGE_PROXY_GIT_SHA"), ")");

/// Names of the executable that stand for a subcommand: those of the Python proxy's entry points.
const NAMES: &[(&str, &str)] =
    &[("edge-proxy-serve", "serve"), ("edge-proxy-render-config", "render-config")];

/// The exit code for a wrong command line or configuration (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;

/// The exit code for a document on disk that does not exist at start (`EX_NOINPUT` of sysexits.h).
pub const EXIT_NO_INPUT: u8 = 66;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve flags (the default without a subcommand)
    #[command(alias = "edge-proxy-serve")]
    Serve(ServeArgs),
    /// Serve an environment that is part of the program: no account, no network, no configuration
    Demo(DemoArgs),
    /// Print the default configuration, and write it to the configuration file if there is none
    #[command(alias = "edge-proxy-render-config")]
    RenderConfig(RenderConfigArgs),
    /// Tell whether it will work: the configuration, its files and, if asked, upstream
    Check(CheckArgs),
    /// Tell why each flag has its value for one identity: every segment, every condition
    Explain(ExplainArgs),
    /// Ask the proxy that runs with this configuration on this machine how it is; exit code 0 if well
    Health(HealthArgs),
}

/// Settings given here win over environment variables, and those over the file.
#[derive(Debug, Default, Args)]
pub struct ServeArgs {
    /// The configuration file [default: $CONFIG_PATH, or config.json]
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Serve this environment document from disk; read again when it changes; may be repeated
    #[arg(long, value_name = "FILE")]
    document: Vec<PathBuf>,
    /// How often upstream is asked for changes, such as 10s or 500ms or plain seconds
    /// [default: 10s]
    #[arg(long, value_name = "TIME")]
    poll_interval: Option<String>,
    /// Share the port with the process that serves it now, which is to be stopped: no warning
    #[arg(long)]
    take_over: bool,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Default, Args)]
pub struct DemoArgs {
    /// Serve the demo from this environment document instead; read again when it changes
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Default, Args)]
struct CommonArgs {
    /// The address to listen on [default: 0.0.0.0; demo: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    host: Option<String>,
    /// The port to listen on [default: 8000]
    #[arg(long, value_name = "PORT")]
    port: Option<String>,
    /// The port of the status page and of /metrics, on 127.0.0.1 [default: none; demo: 8001]
    #[arg(long, value_name = "PORT")]
    admin_port: Option<String>,
    /// How many cores to use, or which: 4, or 0,2-5 [default: all that the process may use, by
    /// its affinity and its cgroup's quota]
    #[arg(long, value_name = "N|LIST")]
    cores: Option<String>,
    /// critical, error, warning, info or debug [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// generic (for people) or json (for programs) [default: generic]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

#[derive(Debug, Default, Args)]
pub struct RenderConfigArgs {
    /// The file to write if it does not exist [default: $CONFIG_PATH, or config.json]
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
}

#[derive(Debug, Default, Args)]
pub struct CheckArgs {
    /// Ask upstream too: name, connection, key, document, event stream of each environment
    #[arg(long)]
    pub online: bool,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Default, Args)]
pub struct ExplainArgs {
    /// The environment document to look into, instead of one of the configuration
    #[arg(long, value_name = "FILE", conflicts_with_all = ["config", "environment"])]
    pub document: Option<PathBuf>,
    /// The configuration file [default: $CONFIG_PATH, or config.json]
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// The client-side key of the environment (or the server-side one); not needed if there is but one
    #[arg(long, value_name = "KEY")]
    pub environment: Option<String>,
    /// Who asks; without it, the flags as `/flags/` answers them
    #[arg(long, value_name = "IDENTIFIER")]
    pub identifier: Option<String>,
    /// A trait; the value counts as JSON if it is a number, true, false, null or a quoted text, else
    /// as text; may be repeated
    #[arg(long = "trait", value_name = "KEY=VALUE", requires = "identifier")]
    pub traits: Vec<String>,
    /// Only this feature, and the segments that override it
    #[arg(long, value_name = "NAME")]
    pub feature: Option<String>,
    /// Print JSON, for programs
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Default, Args)]
pub struct HealthArgs {
    /// Ask whether its environments are there and fresh, not only whether it answers
    #[arg(long)]
    pub ready: bool,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Parser)]
#[command(name = "edge-proxy", version = VERSION, propagate_version = true, about)]
#[command(max_term_width = 100, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

/// The words of the command line, with the subcommand that the name of the executable stands for.
fn words(mut words: Vec<OsString>) -> Vec<OsString> {
    let name = words.first().and_then(|program| Path::new(program).file_name()).unwrap_or_default();
    let named = NAMES.iter().find(|(known, _)| name == *known);
    if let Some((_, command)) = named
        && words.get(1).is_none_or(|word| word != command)
    {
        words.insert(1, command.into());
    }
    words
}

/// Reads the command line.
///
/// # Errors
/// The exit code, after help, version or the mistake was printed.
pub fn parse() -> Result<Command, u8> {
    match Cli::try_parse_from(words(std::env::args_os().collect())) {
        Ok(cli) => Ok(cli.command.unwrap_or(Command::Serve(cli.serve))),
        Err(error) => {
            print(&error);
            match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Err(0),
                _ => Err(EXIT_USAGE),
            }
        }
    }
}

/// Prints help, the version or a mistake. clap repeats arguments as they are, so one with control characters
/// costs the message its colours.
fn print(error: &clap::Error) {
    let has_unsafe = std::env::args_os().any(|arg| arg.to_string_lossy().chars().any(terminal::is_unsafe));
    // A terminal that is gone must not turn the exit code into that of a panic.
    let _ = match has_unsafe {
        true => write!(std::io::stderr(), "{}", terminal::escape_lines(&error.render().to_string())),
        false => error.print(),
    };
}

impl ServeArgs {
    /// Where the configuration is to be read from.
    pub fn inputs(self) -> Inputs {
        let mut inputs = Inputs { config_path: self.config, ..Inputs::from_process() };
        if !self.document.is_empty() {
            let paths = self.document.iter().map(|path| Value::from(path.to_string_lossy()));
            inputs.flags.push(("documents", "--document", paths.collect()));
        }
        if let Some(interval) = self.poll_interval {
            inputs.flags.push(("api_poll_frequency_seconds", "--poll-interval", interval.into()));
        }
        if self.take_over {
            inputs.flags.push(("server.take_over", "--take-over", true.into()));
        }
        self.common.add_to(&mut inputs);
        inputs
    }
}

impl DemoArgs {
    /// The demo reads neither file nor environment: it shall look the same everywhere.
    pub fn inputs(self) -> Inputs {
        let mut inputs = Inputs { without_file: true, ..Inputs::default() };
        inputs.environments.push(demo::environment(self.document));
        inputs.flags.push(("server.host", "demo", "127.0.0.1".into()));
        // Beside another port there is no telling which one is free for the status page.
        if self.common.port.is_none() {
            inputs.flags.push(("admin.port", "demo", 8001.into()));
        }
        self.common.add_to(&mut inputs);
        inputs
    }
}

impl CommonArgs {
    fn add_to(self, inputs: &mut Inputs) {
        let flags = [
            ("server.host", "--host", self.host),
            ("server.port", "--port", self.port),
            ("admin.port", "--admin-port", self.admin_port),
            ("cores", "--cores", self.cores),
            ("logging.log_level", "--log-level", self.log_level),
            ("logging.log_format", "--log-format", self.log_format),
        ];
        let given = flags.into_iter().filter_map(|(path, flag, text)| Some((path, flag, text?.into())));
        inputs.flags.extend(given);
    }
}

impl CheckArgs {
    /// Where the configuration is to be read from.
    pub fn inputs(self) -> Inputs {
        self.serve.inputs()
    }
}

impl ExplainArgs {
    /// Where the environment is configured.
    pub fn inputs(&self) -> Inputs {
        Inputs { config_path: self.config.clone(), ..Inputs::from_process() }
    }
}

impl HealthArgs {
    /// Where the configuration of the running proxy is to be read from.
    pub fn inputs(self) -> Inputs {
        Inputs { may_serve_nothing: true, ..self.serve.inputs() }
    }
}

impl RenderConfigArgs {
    /// The file that `serve` would read.
    pub fn path(self) -> PathBuf {
        Inputs { config_path: self.config, ..Inputs::from_process() }.config_file().0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_executable_stands_for_a_subcommand() {
        for (typed, expected) in [
            ("edge-proxy --port 1", "edge-proxy --port 1"),
            ("/usr/bin/edge-proxy-serve --port 1", "/usr/bin/edge-proxy-serve serve --port 1"),
            ("edge-proxy-serve serve", "edge-proxy-serve serve"),
            ("./edge-proxy-render-config", "./edge-proxy-render-config render-config"),
            ("edge-proxy-server", "edge-proxy-server"),
        ] {
            let words = words(typed.split(' ').map(OsString::from).collect());
            assert_eq!(words, expected.split(' ').map(OsString::from).collect::<Vec<_>>(), "{typed}");
        }
    }
}
