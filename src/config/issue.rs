//! Errors and warnings of a configuration.
use std::fmt;
use std::path::{Path, PathBuf};

use crate::config::secret::Secret;
use crate::config::types::Level;
use crate::terminal::escape;

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingSource {
    /// A command line flag such as `--port`.
    Flag(&'static str),
    /// An environment variable, as it is spelled in the environment.
    Variable(String),
    /// An environment variable without the prefix that the Python proxy does not read, so that it may
    /// belong to another program: an invalid value is ignored with a warning. `prefixed` is the setting's
    /// own variable.
    Alias { name: String, prefixed: String },
    /// The configuration file, and the line of the value.
    File { path: PathBuf, line: Option<usize> },
}

impl fmt::Display for SettingSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => f.write_str(name),
            Self::Variable(name) | Self::Alias { name, .. } => write!(f, "environment variable {name}"),
            Self::File { path, line: None } => write!(f, "{}", path.display()),
            Self::File { path, line: Some(line) } => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// One problem of one setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigIssue {
    /// Such as `environment_key_pairs[1].server_side_key`, or `config file` for the file as a whole.
    pub setting: String,
    /// As written, with secrets truncated. `None`: not set.
    pub value: Option<String>,
    /// Completes the sentence "expected ...".
    pub expected: String,
    /// `None`: no source sets it, or `value` is the path of the file as a whole.
    pub source: Option<SettingSource>,
}

impl ConfigIssue {
    pub fn new(
        setting: impl Into<String>,
        value: Option<String>,
        source: &SettingSource,
        expected: impl Into<String>,
    ) -> Self {
        Self { setting: setting.into(), value, expected: expected.into(), source: Some(source.clone()) }
    }

    /// An issue of the file as a whole.
    pub fn file(path: &Path, expected: String) -> Self {
        let value = Some(path.display().to_string());
        Self { setting: "config file".to_owned(), value, expected, source: None }
    }
}

impl fmt::Display for ConfigIssue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Escaped, so that a line feed in a name or a value cannot imitate a further issue.
        let (setting, expected) = (escape(&self.setting), escape(&self.expected));
        let source = self.source.as_ref().map(|source| format!(" ({source})")).unwrap_or_default();
        let source = escape(&source);
        match &self.value {
            Some(file) if self.source.is_none() => {
                write!(f, "{setting} {}: expected {expected}", escape(file))
            }
            Some(value) => write!(f, "{setting}: expected {expected}, got {}{source}", escape(value)),
            None => write!(f, "{setting}: not set, expected {expected}{source}"),
        }
    }
}

/// Every issue of a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigError {
    pub issues: Vec<ConfigIssue>,
    /// Warnings beside them. An unknown name may be a misspelled setting that an issue reports as not set.
    pub warnings: Vec<ConfigWarning>,
}

impl From<ConfigIssue> for ConfigError {
    fn from(issue: ConfigIssue) -> Self {
        Self { issues: vec![issue], warnings: Vec::new() }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors = match self.issues.len() {
            1 => "1 error".to_owned(),
            count => format!("{count} errors"),
        };
        write!(f, "invalid configuration, {errors}:")?;
        self.issues.iter().try_for_each(|issue| write!(f, "\n  {issue}"))?;
        let unknown = self.warnings.iter().filter(|warning| warning.is_unknown_name());
        unknown.clone().take(1).try_for_each(|_| f.write_str("\nunknown names:"))?;
        unknown.into_iter().try_for_each(|warning| write!(f, "\n  {}", escape(&warning.sentence())))
    }
}

impl std::error::Error for ConfigError {}

const ALIAS_USED: &str = "unprefixed_variable_used";
const OTEL_IGNORED: &str = "otel_variable_ignored";
const UNKNOWN_SETTING: &str = "unknown_setting_ignored";
const UNKNOWN_VARIABLE: &str = "unknown_variable_ignored";

/// A log event about a configuration that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigWarning {
    /// `Info` for a note, such as [`alias_used`](Self::alias_used).
    pub level: Level,
    pub event: &'static str,
    pub fields: Vec<(&'static str, String)>,
}

impl ConfigWarning {
    pub fn new(level: Level, event: &'static str, fields: &[(&'static str, &dyn fmt::Display)]) -> Self {
        let fields = fields.iter().map(|(name, value)| (*name, value.to_string())).collect();
        Self { level, event, fields }
    }

    pub fn unknown_setting(path: String, source: &SettingSource, hint: Option<String>) -> Self {
        let mut warning =
            Self::new(Level::Warning, UNKNOWN_SETTING, &[("setting", &path), ("origin", source)]);
        warning.fields.extend(hint.map(|hint| ("hint", hint)));
        warning
    }

    pub fn unknown_variable(name: &str, hint: &str) -> Self {
        Self::new(Level::Warning, UNKNOWN_VARIABLE, &[("variable", &name), ("hint", &hint)])
    }

    /// An [`Alias`](SettingSource::Alias) with an invalid value, which is not shown: it may be a secret of
    /// another program.
    pub fn ignored_variable(name: &str, expected: &str, prefixed: &str) -> Self {
        let hint = format!("it may belong to another program; set {prefixed} to configure this one");
        let fields: [(&str, &dyn fmt::Display); 3] =
            [("variable", &name), ("expected", &expected), ("hint", &hint)];
        Self::new(Level::Warning, "variable_ignored", &fields)
    }

    /// An [`Alias`](SettingSource::Alias) whose value is used.
    pub fn alias_used(name: &str, prefixed: &str) -> Self {
        Self::new(Level::Info, ALIAS_USED, &[("variable", &name), ("prefixed", &prefixed)])
    }

    /// A variable of OpenTelemetry whose value is not used. It is not shown: it may be a secret.
    pub fn otel_variable(name: &str, expected: &str) -> Self {
        Self::new(Level::Warning, OTEL_IGNORED, &[("variable", &name), ("expected", &expected)])
    }

    /// Whether it is logged at start only, not at each reload.
    pub fn is_of_start(&self) -> bool {
        self.event == ALIAS_USED || self.event == OTEL_IGNORED
    }

    pub fn repeated_setting(path: &str, source: &SettingSource) -> Self {
        let hint = "the last value is used; remove the others";
        let fields: [(&str, &dyn fmt::Display); 3] =
            [("setting", &path), ("origin", source), ("hint", &hint)];
        Self::new(Level::Warning, "setting_repeated", &fields)
    }

    /// A pair whose client-side key an earlier pair has.
    pub fn repeated_pair(path: &str, key: &str, hint: &str) -> Self {
        let key = Secret::new(key);
        let fields: [(&str, &dyn fmt::Display); 3] =
            [("setting", &path), ("client_side_key", &key), ("hint", &hint)];
        Self::new(Level::Warning, "client_side_key_repeated", &fields)
    }

    pub fn without_effect(level: Level, setting: &str, reason: &str) -> Self {
        Self::new(level, "setting_without_effect", &[("setting", &setting), ("reason", &reason)])
    }

    pub fn service_link(variable: &str) -> Self {
        let hint = "Kubernetes sets it for the service of that name; enableServiceLinks: false prevents it";
        let fields: [(&str, &dyn fmt::Display); 2] = [("variable", &variable), ("hint", &hint)];
        Self::new(Level::Warning, "service_link_variable_ignored", &fields)
    }

    fn is_unknown_name(&self) -> bool {
        self.event == UNKNOWN_SETTING || self.event == UNKNOWN_VARIABLE
    }

    /// `name (source): hint`
    pub fn sentence(&self) -> String {
        let field = |name: &str| self.fields.iter().find(|(own, _)| *own == name).map(|(_, text)| text);
        let name = field("setting").or(field("variable")).map_or("", String::as_str);
        let source = field("origin").map(|source| format!(" ({source})")).unwrap_or_default();
        let hint = field("hint").map_or("unknown setting", String::as_str);
        format!("{name}{source}: {hint}")
    }
}
