//! [`SettingError`]: a setting that was parsed but cannot be used.
use std::fmt;

/// Why a setting cannot be used, such as a file that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingError {
    /// The setting, such as `server.tls.cert`, or the environment variable.
    setting: String,
    /// The value or the file, and what is wrong with it. Without secrets.
    problem: String,
}

impl SettingError {
    pub fn new(setting: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { setting: setting.into(), problem: problem.into() }
    }
}

impl fmt::Display for SettingError {
    /// `server.tls.cert: /etc/proxy/cert.pem: not a regular file`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.problem)
    }
}

impl std::error::Error for SettingError {}
