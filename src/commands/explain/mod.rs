//! `edge-proxy explain`: prints why each flag has its value for an identity, as text or JSON.
//!
//! The document is a file, or the document of a configured or discovered environment: its file, or one
//! response of upstream. If upstream fails it is the last good document of `cache_dir`, which a proxy
//! would serve, and stderr says so. Server-side keys are never printed.
pub mod error;
pub mod text;

use std::error::Error;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Args;
use serde_json::Value as Json;

use crate::commands::explain::error::{ExplainError, FetchFailure, SelectionError};
use crate::config::{Config, EnvironmentConfig, Inputs};
use crate::engine::evaluate::{Identity, Trait, TraitValue};
use crate::files::Links;
use crate::snapshot::Environment;
use crate::supervisor::discovery::{KnownKeys, STORED_AS, check_pairs};
use crate::terminal::escape_lines;
use crate::upstream::{
    DeltaOutcome, DiscoveredEnvironment, DocumentResponse, KnownDocument, Upstream, parse_discovered,
};
use crate::{config, files, limits, storage, timestamp};

#[derive(Debug, Default, Args)]
pub struct ExplainArgs {
    /// Environment document to evaluate, instead of that of a configured environment
    #[arg(long, value_name = "FILE", conflicts_with_all = ["config", "environment"])]
    document: Option<PathBuf>,
    /// Configuration file [default: $CONFIG_PATH, or config.json]
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Client-side or server-side key of the environment; optional if there is only one environment
    #[arg(long, value_name = "KEY")]
    environment: Option<String>,
    /// Identifier of the identity; without it, the flags of the environment as in `/flags/`
    #[arg(long, value_name = "IDENTIFIER")]
    identifier: Option<String>,
    /// Trait of the identity; a number, true, false, null or a quoted string is read as JSON, anything
    /// else as a string; may be repeated
    #[arg(long = "trait", value_name = "KEY=VALUE", requires = "identifier")]
    traits: Vec<String>,
    /// Explain only this feature and the segments that override it
    #[arg(long, value_name = "NAME")]
    feature: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A parsed `--trait`.
struct TraitArg<'a> {
    key: &'a str,
    text: &'a str,
    json: Option<Json>,
}

/// Prints the explanation.
///
/// # Errors
/// An invalid configuration, trait or document, or a document that cannot be read or fetched.
pub fn run(args: &ExplainArgs) -> Result<(), Box<dyn Error>> {
    let traits: Vec<TraitArg<'_>> =
        args.traits.iter().map(|text| parse_trait(text)).collect::<Result<_, _>>()?;
    let document = match &args.document {
        Some(path) => read(path)?,
        None => {
            let inputs = Inputs { config_path: args.config.clone(), ..Inputs::from_process() };
            let (config, _) = config::load(&inputs)?;
            configured(&config, args.environment.as_deref())?
        }
    };
    let (environment, _) = Environment::compile(&document).map_err(ExplainError::Document)?;
    if let Some(name) = args.feature.as_ref().filter(|name| environment.program().feature(name).is_none()) {
        return Err(ExplainError::Feature(name.clone()).into());
    }
    let traits: Vec<Trait<'_>> = traits.iter().map(TraitArg::as_trait).collect();
    let identity = args.identifier.as_deref().map(|identifier| Identity { identifier, traits: &traits });
    let found = crate::engine::trace::explain(
        environment.program(),
        &environment.document().plain,
        identity.as_ref(),
        args.feature.as_deref(),
    )
    .map_err(ExplainError::Document)?;
    let mut out = io::stdout();
    // A reader that closes the pipe early, such as `head`, does not fail the command.
    let _ = if args.json {
        writeln!(out, "{}", escape_lines(&serde_json::to_string_pretty(&found)?))
    } else {
        write!(out, "{found}")
    };
    Ok(())
}

fn parse_trait(text: &str) -> Result<TraitArg<'_>, ExplainError> {
    let (key, text) = text
        .split_once('=')
        .filter(|(key, _)| !key.is_empty())
        .ok_or_else(|| ExplainError::Trait(text.to_owned()))?;
    let json = serde_json::from_str(text).ok().filter(|value: &Json| !value.is_array() && !value.is_object());
    Ok(TraitArg { key, text, json })
}

impl TraitArg<'_> {
    fn as_trait(&self) -> Trait<'_> {
        let is_integer = self.text.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit());
        let value = match &self.json {
            None | Some(Json::Array(_) | Json::Object(_)) => TraitValue::Text(self.text),
            Some(Json::Null) => TraitValue::Null,
            Some(Json::Bool(bool)) => TraitValue::Bool(*bool),
            Some(Json::String(text)) => TraitValue::Text(text),
            Some(Json::Number(number)) => match number.as_i64() {
                Some(number) => TraitValue::Int(number),
                None if is_integer => TraitValue::BigInt(self.text),
                None => number.as_f64().map_or(TraitValue::Text(self.text), TraitValue::Float),
            },
        };
        Trait { key: self.key, value }
    }
}

/// The document of a configured or discovered environment.
fn configured(config: &Config, key: Option<&str>) -> Result<Vec<u8>, ExplainError> {
    let upstream = Upstream::new(config).map_err(ExplainError::Settings)?;
    let mut environments = config.environments.clone();
    if config.proxy_key.is_some() {
        environments.extend(discovered(config, &upstream)?);
    }
    document(config, &upstream, select(&environments, key)?)
}

fn select<'e>(
    environments: &'e [EnvironmentConfig],
    key: Option<&str>,
) -> Result<&'e EnvironmentConfig, SelectionError> {
    let keys = || environments.iter().map(|one| one.client_side_key.clone()).collect();
    match (key, environments) {
        (None, [only]) => Ok(only),
        (None, []) => Err(SelectionError::None),
        (None, _) => Err(SelectionError::Several { keys: keys() }),
        (Some(key), environments) => environments
            .iter()
            .find(|one| is_named(one, key))
            .ok_or_else(|| SelectionError::Unknown { named: key.to_owned(), keys: keys() }),
    }
}

fn document(
    config: &Config,
    upstream: &Upstream,
    environment: &EnvironmentConfig,
) -> Result<Vec<u8>, ExplainError> {
    if let Some(path) = &environment.document_path {
        return files::read(path, Links::Follow, config.api_document_bytes_max as u64)
            .map_err(|error| ExplainError::File { path: path.clone(), error });
    }
    let mut failure = FetchFailure::NoKey;
    for key in environment.server_side_keys() {
        match upstream.document(key.expose(), KnownDocument::default(), &mut DeltaOutcome::None) {
            Ok(DocumentResponse::New(fetched)) => return Ok(fetched.document),
            Ok(DocumentResponse::Same(_)) => failure = FetchFailure::NoDocument,
            Err(error) => failure = FetchFailure::Poll(error),
        }
    }
    last_good(config, &environment.client_side_key, failure)
}

/// By any of its keys, client-side or server-side.
fn is_named(environment: &EnvironmentConfig, key: &str) -> bool {
    environment.client_side_key == key || environment.server_side_keys().any(|own| own.expose() == key)
}

/// The environments that upstream lists, each with a server-side key that is valid now.
fn discovered(config: &Config, upstream: &Upstream) -> Result<Vec<EnvironmentConfig>, ExplainError> {
    let found = upstream.discover().map(|(found, _)| found).or_else(|error| {
        parse_discovered(&last_good(config, STORED_AS, FetchFailure::Poll(error))?)
            .map_err(|error| ExplainError::Fetch(FetchFailure::Poll(error)))
    })?;
    let now = SystemTime::now();
    let checked = check_pairs(found, &KnownKeys::configured(&config.environments), now);
    let environment = |found: DiscoveredEnvironment| {
        let valid = found.server_side_keys.into_iter().find(|key| key.is_valid_at(now))?;
        Some(EnvironmentConfig {
            client_side_key: found.client_side_key,
            server_side_key: Some(valid.key),
            ..EnvironmentConfig::default()
        })
    };
    Ok(checked.usable.into_iter().filter_map(environment).collect())
}

/// The file of this name in `cache_dir`, as a fallback for `failure`; else the failure.
fn last_good(config: &Config, name: &str, failure: FetchFailure) -> Result<Vec<u8>, ExplainError> {
    let stored = match config.cache_dir.as_ref().map(|folder| storage::load(folder, name)) {
        Some(Ok(Some(stored))) => stored,
        Some(Err(error)) => return Err(ExplainError::Fallback(failure, error)),
        Some(Ok(None)) | None => return Err(ExplainError::Fetch(failure)),
    };
    let at = timestamp::rfc3339(stored.saved_at);
    let failure = failure.to_string();
    let failure = escape_lines(&failure);
    eprintln!("edge-proxy: {failure}\nedge-proxy: using the document that cache_dir has from {at}");
    Ok(stored.document)
}

/// Reads the file of `--document`. It may be a pipe, such as `<(curl ...)` of a shell.
fn read(path: &Path) -> Result<Vec<u8>, ExplainError> {
    let bytes_max = limits::DOCUMENT_BYTES_MAX;
    let read = || {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path)?;
        file.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > bytes_max {
            let error = format!("larger than {bytes_max} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, error));
        }
        Ok(bytes)
    };
    read().map_err(|error| ExplainError::File { path: path.to_owned(), error })
}
