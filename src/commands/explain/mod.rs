//! `edge-proxy explain`: from the command line to a printed explanation.
//!
//! In: the arguments. Out: text or JSON on stdout. The document is a file, or that of an environment
//! that is configured or discovered: read from its file, or fetched from upstream once. Where
//! upstream does not give it, it is the last good one of `cache_dir`, which is what a proxy would
//! serve, and stderr says so. Invariant: nothing is served, kept or changed; a server-side key is
//! never printed.
pub mod text;

use std::error::Error;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::SystemTime;

use serde_json::Value as Json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cli::ExplainArgs;
use crate::config::{Config, EnvironmentConfig};
use crate::engine::evaluate::{Identity, Trait, TraitValue};
use crate::files::Links;
use crate::snapshot::Environment;
use crate::supervisor::discovery::{KEPT_AS, KnownKeys, check_pairs};
use crate::terminal::escape_lines;
use crate::upstream::{Answered, DiscoveredEnvironment, Upstream, parse_discovered};
use crate::{config, files, limits, storage};

/// What was typed for a trait, split and read.
struct Typed<'a> {
    key: &'a str,
    text: &'a str,
    json: Option<Json>,
}

/// Prints the explanation.
///
/// # Errors
/// A wrong configuration, a document that cannot be had or used, a trait without `=`.
pub fn run(args: &ExplainArgs) -> Result<(), Box<dyn Error>> {
    let traits: Vec<Typed<'_>> = args.traits.iter().map(|text| typed(text)).collect::<Result<_, _>>()?;
    let document = match &args.document {
        Some(path) => read(path)?,
        None => {
            let (config, _) = config::load(&args.inputs())?;
            configured(&config, args.environment.as_deref())?
        }
    };
    let (environment, _) = Environment::compile(&document)
        .map_err(|error| format!("the document cannot be used: {}: {}", error.path, error.message))?;
    if let Some(name) = args.feature.as_deref().filter(|name| environment.program().feature(name).is_none()) {
        return Err(format!("--feature {name:?}: the environment has no feature of that name").into());
    }
    let traits: Vec<Trait<'_>> = traits.iter().map(Typed::as_trait).collect();
    let identity = args.identifier.as_deref().map(|identifier| Identity { identifier, traits: &traits });
    let found = crate::engine::trace::explain(
        environment.program(),
        &environment.document().plain,
        identity.as_ref(),
        args.feature.as_deref(),
    )
    .map_err(|error| format!("{}: {}", error.path, error.message))?;
    let mut out = std::io::stdout();
    // A reader that went away has seen what it wanted.
    let _ = if args.json {
        writeln!(out, "{}", escape_lines(&serde_json::to_string_pretty(&found)?))
    } else {
        write!(out, "{found}")
    };
    Ok(())
}

fn typed(text: &str) -> Result<Typed<'_>, String> {
    let (key, text) = text
        .split_once('=')
        .filter(|(key, _)| !key.is_empty())
        .ok_or_else(|| format!("--trait {text:?}: expected KEY=VALUE, such as plan=pro"))?;
    let json = serde_json::from_str(text).ok().filter(|value: &Json| !value.is_array() && !value.is_object());
    Ok(Typed { key, text, json })
}

impl Typed<'_> {
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

/// The document of the environment that is meant.
fn configured(config: &Config, key: Option<&str>) -> Result<Vec<u8>, String> {
    let upstream = Upstream::new(config).map_err(|mistakes| mistakes.join("\n"))?;
    let mut environments = config.environments.clone();
    if config.proxy_key.is_some() {
        environments.extend(discovered(config, &upstream)?);
    }
    document(config, &upstream, chosen(&environments, key)?)
}

fn chosen<'e>(
    environments: &'e [EnvironmentConfig],
    key: Option<&str>,
) -> Result<&'e EnvironmentConfig, String> {
    let known = |between: &str| {
        let keys: Vec<&str> = environments.iter().map(|one| one.client_side_key.as_str()).collect();
        keys.join(between)
    };
    match (key, environments) {
        (None, [only]) => Ok(only),
        (None, []) => {
            Err("no environment is configured: name a --document, or a --config that has one".to_owned())
        }
        (None, _) => {
            Err(format!("there are several environments, name one: --environment {}", known(" or ")))
        }
        (Some(key), environments) => environments.iter().find(|one| is_named(one, key)).ok_or_else(|| {
            let shown = if key.starts_with("ser.") { "ser...." } else { key };
            format!("--environment {shown:?}: there is no such environment, but {}", known(", "))
        }),
    }
}

fn document(
    config: &Config,
    upstream: &Upstream,
    environment: &EnvironmentConfig,
) -> Result<Vec<u8>, String> {
    if let Some(path) = &environment.document_path {
        return files::read(path, Links::Follow, config.api_document_bytes_max as u64)
            .map_err(|error| format!("cannot read {}: {error}", path.display()));
    }
    let mut failure = "the environment has no server-side key".to_owned();
    for key in environment.server_side_keys() {
        match upstream.document(key.expose(), None, None) {
            Ok(Answered::New(fetched)) => return Ok(fetched.document),
            Ok(Answered::Same(_)) => failure = "upstream has no document".to_owned(),
            Err(error) => failure = error.message,
        }
    }
    last_good(config, &environment.client_side_key, &failure)
}

/// By either of its keys: who asks for support has often but the server-side one at hand.
fn is_named(environment: &EnvironmentConfig, key: &str) -> bool {
    environment.client_side_key == key || environment.server_side_keys().any(|own| own.expose() == key)
}

/// The environments that upstream tells of, each with a key that is good now.
fn discovered(config: &Config, upstream: &Upstream) -> Result<Vec<EnvironmentConfig>, String> {
    let found = upstream.discover().map(|(found, _)| found).or_else(|error| {
        parse_discovered(&last_good(config, KEPT_AS, &error.message)?).map_err(|error| error.message)
    })?;
    let now = SystemTime::now();
    let checked = check_pairs(found, &KnownKeys::configured(&config.environments), now);
    let environment = |found: DiscoveredEnvironment| {
        let good = found.server_side_keys.into_iter().find(|key| key.is_good_at(now))?;
        Some(EnvironmentConfig {
            client_side_key: found.client_side_key,
            server_side_key: Some(good.key),
            ..EnvironmentConfig::default()
        })
    };
    Ok(checked.usable.into_iter().filter_map(environment).collect())
}

/// What `cache_dir` has under this name, because of `failure`; else the failure.
fn last_good(config: &Config, name: &str, failure: &str) -> Result<Vec<u8>, String> {
    let kept = match &config.cache_dir {
        Some(folder) => storage::load(folder, name).map_err(|damaged| format!("{failure}\n{damaged}"))?,
        None => None,
    };
    let kept = kept.ok_or_else(|| failure.to_owned())?;
    let at = OffsetDateTime::from(kept.saved_at).format(&Rfc3339).unwrap_or_default();
    let failure = escape_lines(failure);
    eprintln!("edge-proxy: {failure}\nedge-proxy: explained from what cache_dir has since {at}");
    Ok(kept.document)
}

/// Reads a document that the command line names. It may be a pipe, such as `<(curl ...)` of a shell.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    let fail = |error: &dyn std::fmt::Display| format!("cannot read {}: {error}", path.display());
    let bytes_max = limits::DOCUMENT_BYTES_MAX;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| fail(&error))?;
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(|error| fail(&error))?;
    if bytes.len() > bytes_max { Err(fail(&format!("larger than {bytes_max} bytes"))) } else { Ok(bytes) }
}
