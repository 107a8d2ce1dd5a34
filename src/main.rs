//! Sets up, starts, and says with its exit code how it went: 0 ended as asked, 1 could not start
//! or go on, 64 a wrong command line or configuration, 66 a document on disk that does not exist, 69 the
//! demo's port is in use.
//!
//! Order matters: the configuration is read before anything else, the sockets are bound before
//! any thread runs, and only then is anything logged to stdout; errors before that go to stderr.
use std::fmt::Display;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use edge_proxy::cli::{CheckArgs, Command, EXIT_NO_INPUT, EXIT_USAGE, HealthArgs};
use edge_proxy::commands::health;
use edge_proxy::commands::health::Question;
use edge_proxy::config::ConfigError;
use edge_proxy::serve::{FilesError, MissingDocumentsError, PortTaken};
use edge_proxy::terminal::escape_lines;
use edge_proxy::{cli, config, serve};

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
    let ended = match command {
        Command::Serve(args) => serve::serve(args.inputs()),
        Command::Demo(args) => serve::demo(args.inputs()),
        Command::RenderConfig(args) => return render_config(&args.path()),
        Command::Check(args) => check(args),
        Command::Explain(args) => edge_proxy::commands::explain::run(&args),
        Command::Health(args) => health(args),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<ConfigError>() || error.is::<FilesError>() => complain(&error, EXIT_USAGE),
        Err(error) if error.is::<PortTaken>() => complain(&error, EXIT_UNAVAILABLE),
        Err(error) if error.is::<MissingDocumentsError>() => complain(&error, EXIT_NO_INPUT),
        Err(error) => complain(&error, EXIT_FAILED),
    }
}

/// All lines on stdout; any that failed is a failure of the whole.
fn check(args: CheckArgs) -> serve::Ended {
    let is_online = args.online;
    let (config, notices) = config::load(&args.inputs())?;
    match edge_proxy::commands::check::run(&config, &notices, is_online, std::io::stdout()) {
        0 => Ok(()),
        1 => Err("1 thing would not work".into()),
        count => Err(format!("{count} things would not work").into()),
    }
}

/// Prints the body of the answer; an answer that is not 200 is a failure.
fn health(args: HealthArgs) -> serve::Ended {
    let question = if args.ready { Question::Readiness } else { Question::Liveness };
    let (config, _) = config::load(&args.inputs())?;
    let (body, is_well) = health::ask(&config, question)?;
    if is_well {
        // The exit code is the answer; the body is for people.
        let shown = if body.is_empty() { "alive" } else { &body };
        let _ = writeln!(std::io::stdout(), "{}", escape_lines(shown));
        return Ok(());
    }
    Err(format!("not well: {body}").into())
}

/// As the Python proxy's `edge-proxy-render-config`: a file that is there is left alone.
fn render_config(path: &Path) -> ExitCode {
    if path.exists() {
        return complain(&format!("{} exists and is left as it is", path.display()), 0);
    }
    // If nobody reads what is printed, the file is still worth writing.
    let _ = writeln!(std::io::stdout(), "{}", config::DEFAULT_JSON.trim_end());
    match std::fs::write(path, config::DEFAULT_JSON) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&format!("cannot write {}: {error}", path.display()), EXIT_FAILED),
    }
}

fn complain(error: &dyn Display, code: u8) -> ExitCode {
    // A closed stderr must not turn the exit code into that of a panic.
    let _ = writeln!(std::io::stderr(), "edge-proxy: {}", escape_lines(&error.to_string()));
    ExitCode::from(code)
}
