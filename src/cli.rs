//! The command line: parses arguments into a [`Command`].
use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use crate::commands::arguments::{DemoArgs, ServeArgs};
use crate::commands::check::CheckArgs;
use crate::commands::completions::CompletionsArgs;
use crate::commands::explain::ExplainArgs;
use crate::commands::health::HealthArgs;
use crate::commands::man::ManArgs;
use crate::commands::render_config::RenderConfigArgs;
use crate::terminal;
use crate::version;

/// Names of the executable that select a subcommand: the entry points of the Python proxy.
const EXECUTABLE_NAMES: &[(&str, &str)] =
    &[("edge-proxy-serve", "serve"), ("edge-proxy-render-config", "render-config")];

/// The exit code for an invalid command line or configuration (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;

/// The exit code for a document on disk that does not exist at start (`EX_NOINPUT` of sysexits.h).
pub const EXIT_NO_INPUT: u8 = 66;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve flags (the default without a subcommand)
    #[command(alias = "edge-proxy-serve")]
    Serve(ServeArgs),
    /// Serve a built-in environment: needs no account, network or configuration
    Demo(DemoArgs),
    /// Print the default configuration, and write it to the configuration file unless that exists
    #[command(alias = "edge-proxy-render-config")]
    RenderConfig(RenderConfigArgs),
    /// Check the configuration, the files it names and, with --online, upstream
    Check(CheckArgs),
    /// Explain why each flag has its value for an identity: every segment, rule and condition
    Explain(ExplainArgs),
    /// Query the health of the local proxy that has this configuration; exit with 0 if healthy
    Health(HealthArgs),
    /// Print the completion script of a shell
    Completions(CompletionsArgs),
    /// Write the man pages of all commands to a directory, for packages
    #[command(hide = true)]
    Man(ManArgs),
}

const AFTER_HELP: &str = "\
Flags override environment variables, which override the configuration file. Each setting has a variable: \
EDGE_PROXY_ and its path, such as EDGE_PROXY_SERVER_PORT for server.port. `edge-proxy render-config --all` \
prints every setting with its default.";

#[derive(Debug, Parser)]
#[command(name = "edge-proxy", version = version::LONG, propagate_version = true, about)]
#[command(max_term_width = 100, args_conflicts_with_subcommands = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

/// The command line, for completions and man pages.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Inserts the subcommand that the name of the executable selects.
fn with_subcommand(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let name = arguments.first().and_then(|program| Path::new(program).file_name()).unwrap_or_default();
    let selected = EXECUTABLE_NAMES.iter().find(|(executable, _)| name == *executable);
    if let Some((_, command)) = selected
        && arguments.get(1).is_none_or(|argument| argument != command)
    {
        arguments.insert(1, command.into());
    }
    arguments
}

/// Parses the arguments of the process.
///
/// # Errors
/// The exit code, after help, the version or an error was printed.
pub fn parse() -> Result<Command, u8> {
    match Cli::try_parse_from(with_subcommand(std::env::args_os().collect())) {
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

/// Prints help, the version or an error. clap prints arguments unescaped: if one has control characters
/// the message is escaped as a whole and loses its colours.
fn print(error: &clap::Error) {
    let has_unsafe = std::env::args_os().any(|arg| arg.to_string_lossy().chars().any(terminal::is_unsafe));
    // A closed terminal must not turn the exit code into that of a panic.
    let _ = match has_unsafe {
        true => write!(std::io::stderr(), "{}", terminal::escape_lines(&error.render().to_string())),
        false => error.print(),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executable_name_selects_subcommand() {
        for (typed, expected) in [
            ("edge-proxy --port 1", "edge-proxy --port 1"),
            ("/usr/bin/edge-proxy-serve --port 1", "/usr/bin/edge-proxy-serve serve --port 1"),
            ("edge-proxy-serve serve", "edge-proxy-serve serve"),
            ("./edge-proxy-render-config", "./edge-proxy-render-config render-config"),
            ("edge-proxy-server", "edge-proxy-server"),
        ] {
            let arguments = with_subcommand(typed.split(' ').map(OsString::from).collect());
            assert_eq!(arguments, expected.split(' ').map(OsString::from).collect::<Vec<_>>(), "{typed}");
        }
    }
}
