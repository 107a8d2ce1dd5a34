//! `edge-proxy man DIRECTORY`: writes `edge-proxy.8` and a page for each command, which packages install.
//!
//! clap's own generator writes what `--help` says; the sections that a command line does not have (files,
//! exit codes, signals) are in `man_sections.roff`.
use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_mangen::Man;

use crate::version;

const SECTIONS: &str = include_str!("man_sections.roff");

/// Administration commands and daemons (man-pages(7)).
const SECTION: &str = "8";

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Directory to write to, which must exist
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

/// Writes the pages.
///
/// # Errors
/// A page cannot be written.
pub fn run(args: &ManArgs, command: Command) -> Result<(), Box<dyn Error>> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let visible = command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set());
    for subcommand in visible {
        write(&args.directory, subcommand.clone())?;
    }
    write(&args.directory, command)
}

fn write(directory: &Path, command: Command) -> Result<(), Box<dyn Error>> {
    // Such as `edge-proxy-serve`.
    let name = command.get_display_name().unwrap_or(command.get_name());
    let path = directory.join(format!("{name}.{SECTION}"));
    let page = page(command)?;
    fs::write(&path, page).map_err(|error| format!("failed to write {}: {error}", path.display()))?;
    Ok(())
}

fn page(command: Command) -> io::Result<Vec<u8>> {
    let has_subcommands = command.get_subcommands().any(|subcommand| !subcommand.is_hide_set());
    // The date of the commit, so that two builds of it are equal.
    let date = if version::COMMIT_DATE == "unknown" { "" } else { version::COMMIT_DATE };
    let source = format!("edge-proxy {}", version::VERSION);
    let man = Man::new(command).section(SECTION).manual("System administration").source(source).date(date);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if has_subcommands {
        man.render_subcommands_section(&mut page)?;
    }
    page.extend_from_slice(SECTIONS.as_bytes());
    Ok(page)
}
