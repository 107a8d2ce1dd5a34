//! `edge-proxy completions`: prints the completion script of a shell, with all commands and flags.
use std::error::Error;
use std::io::Write;

use clap::{Args, Command};
use clap_complete::Shell;

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell, such as bash, zsh or fish
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Prints the script to stdout.
///
/// # Errors
/// The script cannot be written.
pub fn run(args: &CompletionsArgs, mut command: Command) -> Result<(), Box<dyn Error>> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "edge-proxy", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(())
}
