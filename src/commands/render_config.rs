//! `edge-proxy render-config`: prints the default configuration and writes it to the configuration file
//! unless that exists, as the Python proxy's `edge-proxy-render-config` does. `--all` and `--schema` only
//! print.
use std::error::Error;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::config;
use crate::config::{DEFAULT_JSON, Inputs};
use crate::terminal::escape;

#[derive(Debug, Default, Args)]
pub struct RenderConfigArgs {
    /// File to write unless it exists [default: config.json] [env: CONFIG_PATH]
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Print every setting with its default, and write no file
    #[arg(long, conflicts_with = "config")]
    all: bool,
    /// Print the JSON Schema of the configuration file, and write no file
    #[arg(long, conflicts_with_all = ["config", "all"])]
    schema: bool,
}

/// Prints JSON as `default.json` is formatted.
fn print(value: &Value) -> Result<(), Box<dyn Error>> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))?;
    text.push(b'\n');
    match std::io::stdout().write_all(&text) {
        // Such as `| head`.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// Writes the file that `serve` would read.
///
/// # Errors
/// The file cannot be written.
pub fn run(args: RenderConfigArgs) -> Result<(), Box<dyn Error>> {
    if args.schema {
        return print(&config::schema());
    }
    if args.all {
        let default: Value = serde_json::from_str(DEFAULT_JSON)?;
        return print(&config::all_settings(default["environment_key_pairs"].clone()));
    }
    let inputs = Inputs { config_path: args.config, ..Inputs::from_process() };
    let (path, _) = inputs.config_file();
    let shown = path.display();
    if path.exists() {
        let text = format!("edge-proxy: {shown} already exists and was not changed");
        // A closed stderr must not turn the exit code into that of a panic.
        let _ = writeln!(std::io::stderr(), "{}", escape(&text));
        return Ok(());
    }
    // A closed stdout does not keep the file from being written.
    let _ = writeln!(std::io::stdout(), "{}", DEFAULT_JSON.trim_end());
    std::fs::write(&path, DEFAULT_JSON).map_err(|error| format!("failed to write {shown}: {error}"))?;
    Ok(())
}
