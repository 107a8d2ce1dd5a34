//! [`ExplainError`]: why `edge-proxy explain` has no result.
use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::config::SettingError;
use crate::engine::document::error::CompileError;
use crate::storage::StorageError;
use crate::upstream::PollError;

#[derive(Debug)]
pub enum ExplainError {
    /// Settings of upstream that were parsed but cannot be used.
    Settings(Vec<SettingError>),
    /// The argument of `--trait`.
    Trait(String),
    /// The argument of `--feature`.
    Feature(String),
    Environment(SelectionError),
    File {
        path: PathBuf,
        error: io::Error,
    },
    Fetch(FetchFailure),
    /// The fetch failed, and so did its fallback.
    Fallback(FetchFailure, StorageError),
    Document(CompileError),
}

/// Why `--environment`, or its absence, does not select one environment. Keys are in the order of the
/// configuration.
#[derive(Debug)]
pub enum SelectionError {
    None,
    Several { keys: Vec<String> },
    Unknown { named: String, keys: Vec<String> },
}

/// Why upstream returned no document, or no list of environments.
#[derive(Debug)]
pub enum FetchFailure {
    NoKey,
    NoDocument,
    Poll(PollError),
}

impl fmt::Display for ExplainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settings(errors) => {
                let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
                f.write_str(&lines.join("\n"))
            }
            Self::Trait(argument) => {
                write!(f, "--trait {argument:?}: expected KEY=VALUE, such as plan=pro")
            }
            Self::Feature(name) => write!(f, "--feature {name:?}: unknown feature"),
            Self::Environment(error) => error.fmt(f),
            Self::File { path, error } => write!(f, "cannot read {}: {error}", path.display()),
            Self::Fetch(failure) => failure.fmt(f),
            Self::Fallback(failure, error) => write!(f, "{failure}\n{error}"),
            Self::Document(error) => write!(f, "invalid document: {}: {}", error.path, error.message),
        }
    }
}

impl std::error::Error for ExplainError {}

impl fmt::Display for SelectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("no environment is configured: use --document FILE, or --config PATH"),
            Self::Several { keys } => {
                write!(f, "several environments are configured: use --environment {}", keys.join(" or "))
            }
            Self::Unknown { named, keys } => {
                let shown = if named.starts_with("ser.") { "ser...." } else { named };
                let keys = keys.join(", ");
                write!(f, "--environment {shown:?}: unknown environment, expected one of {keys}")
            }
        }
    }
}

impl fmt::Display for FetchFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKey => f.write_str("the environment has no server-side key"),
            Self::NoDocument => f.write_str("upstream has no document"),
            Self::Poll(error) => error.fmt(f),
        }
    }
}

impl From<SelectionError> for ExplainError {
    fn from(error: SelectionError) -> Self {
        Self::Environment(error)
    }
}
