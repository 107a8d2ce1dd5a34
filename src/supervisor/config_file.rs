//! Reads the configuration, and checks the files that it names.
use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use crate::config::{Config, ConfigError, ConfigWarning, EnvironmentConfig, SettingError};
use crate::files::FileVersion;
use crate::upstream::Upstream;

/// Reads the configuration from the same file, variables and arguments as at start. `Err`: one line per
/// problem.
pub type ReadConfig = Box<dyn FnMut() -> Result<(Config, Vec<ConfigWarning>), ConfigError> + Send>;

/// A valid configuration, with a client for its upstream.
#[derive(Debug)]
pub struct LoadedConfig {
    pub config: Config,
    pub warnings: Vec<ConfigWarning>,
    pub upstream: Arc<Upstream>,
}

/// Why a configuration is not used.
#[derive(Debug)]
pub enum ReloadError {
    Config(ConfigError),
    Upstream(Vec<SettingError>),
    MissingDocuments(Vec<MissingDocument>),
}

impl ReloadError {
    /// One line per problem.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Config(error) => error.issues.iter().map(ToString::to_string).collect(),
            Self::Upstream(errors) => errors.iter().map(ToString::to_string).collect(),
            Self::MissingDocuments(missing) => missing.iter().map(ToString::to_string).collect(),
        }
    }
}

/// A document on disk that does not exist.
#[derive(Debug)]
pub struct MissingDocument {
    path: PathBuf,
    error: std::io::Error,
}

impl fmt::Display for MissingDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, error) = (self.path.display(), &self.error);
        write!(f, "{path}: {error}: check the path (--document, documents or document_path)")
    }
}

/// Reads the configuration while serving.
pub struct ConfigReader {
    read: ReadConfig,
    files: Vec<PathBuf>,
}

impl ConfigReader {
    pub fn new(config: &Config, read: ReadConfig) -> Self {
        Self { read, files: config.files().cloned().collect() }
    }

    /// The versions of the configuration file and of the files with secrets. `None` if one is missing, or was
    /// written so recently that it may change again.
    pub fn file_versions(&self) -> Option<Vec<FileVersion>> {
        let now = SystemTime::now();
        self.files.iter().map(|path| FileVersion::of_settled(path, now)).collect()
    }

    /// Reads the configuration and makes a client for its upstream. Documents of `current` may be missing on
    /// disk.
    ///
    /// # Errors
    /// The configuration is invalid, or names a document that does not exist.
    pub fn read(&mut self, current: &Config) -> Result<LoadedConfig, ReloadError> {
        let (config, warnings) = (self.read)().map_err(ReloadError::Config)?;
        let upstream = Arc::new(Upstream::new(&config).map_err(ReloadError::Upstream)?);
        let missing = missing_documents(&config, &current.environments);
        if !missing.is_empty() {
            return Err(ReloadError::MissingDocuments(missing));
        }
        Ok(LoadedConfig { config, warnings, upstream })
    }
}

/// The configured documents that do not exist on disk, except those of `known`: they existed
/// once, and are still served.
pub fn missing_documents(config: &Config, known: &[EnvironmentConfig]) -> Vec<MissingDocument> {
    let is_known = |path: &PathBuf| known.iter().any(|known| known.document_path.as_ref() == Some(path));
    let paths = config.environments.iter().filter_map(|environment| environment.document_path.as_ref());
    let missing = paths.filter(|path| !is_known(path)).filter_map(|path| {
        let error = std::fs::metadata(path).err()?;
        let is_missing = matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
        is_missing.then(|| MissingDocument { path: path.clone(), error })
    });
    missing.collect()
}
