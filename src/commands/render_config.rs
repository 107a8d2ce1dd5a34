//! `edge-proxy render-config`: prints the default configuration and writes it to the configuration file
//! unless that exists, as the Python proxy's `edge-proxy-render-config` does.
use std::error::Error;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use crate::config::DEFAULT_JSON;
use crate::config::Inputs;
use crate::terminal::escape;

#[derive(Debug, Default, Args)]
pub struct RenderConfigArgs {
    /// File to write unless it exists [default: $CONFIG_PATH, or config.json]
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
}

/// Writes the file that `serve` would read.
///
/// # Errors
/// The file cannot be written.
pub fn run(args: RenderConfigArgs) -> Result<(), Box<dyn Error>> {
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
