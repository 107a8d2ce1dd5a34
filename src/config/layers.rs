//! The layers of a configuration: flags override environment variables, which override the file.
use std::path::PathBuf;

use serde_json::Value;

use crate::config::file;
use crate::config::issue::{ConfigError, ConfigWarning, SettingSource};
use crate::config::raw::RawConfig;
use crate::config::types::EnvironmentConfig;
use crate::config::variables;

/// Everything a configuration is read from, except the content of the file.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// `--config`. `None`: `CONFIG_PATH`, or `config.json` if that exists.
    pub config_path: Option<PathBuf>,
    /// Read no file.
    pub without_file: bool,
    /// Settings set by flags: path, flag, value.
    pub flags: Vec<(&'static str, &'static str, Value)>,
    /// Environment variables.
    pub variables: Vec<(String, String)>,
    /// Accept a configuration without an environment, for commands that serve nothing.
    pub may_serve_nothing: bool,
    /// Built-in environments.
    pub environments: Vec<EnvironmentConfig>,
}

impl Inputs {
    /// The environment variables of the process. Those that are not UTF-8 set no setting.
    pub fn from_process() -> Self {
        let variables =
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        Self { variables: variables.collect(), ..Self::default() }
    }

    /// The file to read, and whether it was named explicitly, so that it must exist.
    pub fn config_file(&self) -> (PathBuf, bool) {
        let named = self.config_path.clone().or_else(|| {
            let is_set = |(name, path): &&(String, String)| name == "CONFIG_PATH" && !path.is_empty();
            let variable = self.variables.iter().find(is_set);
            variable.map(|(_, path)| PathBuf::from(path))
        });
        let is_named = named.is_some();
        (named.unwrap_or_else(|| PathBuf::from("config.json")), is_named)
    }
}

/// Reads all layers, the weakest first.
///
/// # Errors
/// The file cannot be read or is not a JSON object.
pub fn read(inputs: &Inputs) -> Result<RawConfig, ConfigError> {
    let mut raw = RawConfig::default();
    let (path, is_named) = inputs.config_file();
    if !inputs.without_file
        && let Some(file) = file::read(&path, is_named)?
    {
        let source = SettingSource::File { path, line: None };
        raw.set_lines(file.lines);
        for path in &file.repeated {
            let warning = ConfigWarning::repeated_setting(path, &raw.located(path, &source));
            raw.warnings.push(warning);
        }
        raw.add_object("", file.object, &source);
    }
    variables::add(&mut raw, &inputs.variables);
    for (path, flag, value) in &inputs.flags {
        raw.add(path, value.clone(), SettingSource::Flag(flag));
    }
    Ok(raw)
}
