//! Runs a subcommand and maps its result to an exit code: 0 success, 1 failure, 64 invalid command line
//! or configuration, 66 a document on disk does not exist, 69 the demo's port is in use.
use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use edge_proxy::cli::{Command, EXIT_NO_INPUT, EXIT_USAGE};
use edge_proxy::commands::{check, completions, explain, health, man, render_config};
use edge_proxy::config::ConfigError;
use edge_proxy::serve::{MissingDocumentsError, PortTaken, UnusableSettings};
use edge_proxy::terminal::escape_lines;
use edge_proxy::{cli, serve};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXIT_FAILED: u8 = 1;
/// `EX_UNAVAILABLE` of sysexits.h.
const EXIT_UNAVAILABLE: u8 = 69;

fn main() -> ExitCode {
    let command = match cli::parse() {
        Ok(command) => command,
        Err(code) => return ExitCode::from(code),
    };
    let result = match command {
        Command::Serve(args) => serve::serve(args.inputs()),
        Command::Demo(args) => serve::demo(args.inputs()),
        Command::RenderConfig(args) => render_config::run(args),
        Command::Check(args) => check::run(args),
        Command::Explain(args) => explain::run(&args),
        Command::Health(args) => health::run(args),
        Command::Completions(args) => completions::run(&args, cli::command()),
        Command::Man(args) => man::run(&args, cli::command()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<ConfigError>() || error.is::<UnusableSettings>() => fail(&error, EXIT_USAGE),
        Err(error) if error.is::<PortTaken>() => fail(&error, EXIT_UNAVAILABLE),
        Err(error) if error.is::<MissingDocumentsError>() => fail(&error, EXIT_NO_INPUT),
        Err(error) => fail(&error, EXIT_FAILED),
    }
}

fn fail(error: &dyn Display, code: u8) -> ExitCode {
    // A closed stderr must not turn the exit code into that of a panic.
    let _ = writeln!(std::io::stderr(), "edge-proxy: {}", escape_lines(&error.to_string()));
    ExitCode::from(code)
}
