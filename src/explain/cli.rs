//! `edge-proxy explain`: from the command line to a printed explanation.
//!
//! In: the arguments. Out: text or JSON on stdout. The document is a file, or that of a configured
//! environment: read from its file, or fetched from upstream once. Invariant: nothing is served,
//! kept or changed; a key is never printed.
use std::error::Error;
use std::io::Write as _;
use std::path::Path;

use serde_json::Value as Json;

use crate::cli::ExplainArgs;
use crate::config::{self, Config, EnvironmentConfig};
use crate::evaluate::{Identity, Trait, TraitValue};
use crate::snapshot::Environment;
use crate::supervisor::poll::Upstream;

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
            let (config, _) = config::read(&args.inputs())?;
            fetch(&config, chosen(&config, args.environment.as_deref())?)?
        }
    };
    let (environment, _) = Environment::compile(&document)
        .map_err(|error| format!("the document cannot be used: {}: {}", error.path, error.message))?;
    if let Some(name) = args.feature.as_deref().filter(|name| environment.program().feature(name).is_none()) {
        return Err(format!("--feature {name:?}: the environment has no feature of that name").into());
    }
    let traits: Vec<Trait<'_>> = traits.iter().map(Typed::as_trait).collect();
    let identity = args.identifier.as_deref().map(|identifier| Identity { identifier, traits: &traits });
    let found = super::explain(&environment, identity.as_ref(), args.feature.as_deref())
        .map_err(|error| format!("{}: {}", error.path, error.message))?;
    let mut out = std::io::stdout();
    // A reader that went away has seen what it wanted.
    let _ = if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&found)?)
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

/// The environment that is meant.
fn chosen<'c>(config: &'c Config, key: Option<&str>) -> Result<&'c EnvironmentConfig, String> {
    let known = || config.environments.iter().map(|environment| environment.client_side_key.as_str());
    match (key, config.environments.as_slice()) {
        (None, [only]) => Ok(only),
        (None, []) => {
            Err("no environment is configured: name a --document, or a --config that has one".to_owned())
        }
        (None, _) => Err(format!(
            "several environments are configured, name one: --environment {}",
            known().collect::<Vec<_>>().join(" or ")
        )),
        (Some(key), environments) => {
            environments.iter().find(|environment| environment.client_side_key == key).ok_or_else(|| {
                format!(
                    "--environment {key:?} is not configured; there is {}",
                    known().collect::<Vec<_>>().join(", ")
                )
            })
        }
    }
}

fn fetch(config: &Config, environment: &EnvironmentConfig) -> Result<Vec<u8>, String> {
    if let Some(path) = &environment.document_path {
        return read(path);
    }
    let upstream = Upstream::new(config).map_err(|mistakes| mistakes.join("\n"))?;
    let key = environment.server_side_key.as_ref().ok_or("the environment has no server-side key")?;
    let fetched = upstream.document(key.expose(), None, None).map_err(|error| error.message)?;
    fetched.map(|fetched| fetched.document).ok_or_else(|| "upstream has no document".to_owned())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}
