//! The TLS settings of the main listener, from PEM files.
//!
//! TLS 1.2 and 1.3, ALPN `h2` (`server.http2`) and `http/1.1`. Connections keep the settings with which they
//! were accepted. Sessions resume by tickets, whose keys stay the same when the certificate changes. Files
//! are read on the control plane only.
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use crate::config::{SettingError, TlsConfig};
use crate::files::{FileVersion, Links};
use crate::{files, limits};

/// The certificate files of the TLS listener, and the versions last read.
#[derive(Debug)]
pub struct Certificates {
    files: TlsConfig,
    http2: bool,
    seen: Vec<Option<FileVersion>>,
    provider: Arc<CryptoProvider>,
    tickets: Arc<dyn ProducesTickets>,
}

impl Certificates {
    /// Reads the files for the first time. `http2`: clients may choose it.
    ///
    /// # Errors
    /// A file is missing or invalid.
    pub fn load(files: &TlsConfig, http2: bool) -> Result<(Self, Arc<ServerConfig>), SettingError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tickets = rustls::crypto::ring::Ticketer::new().map_err(|error| {
            SettingError::new("server.tls", format!("failed to create ticket keys: {error}"))
        })?;
        let mut certificates = Self { files: files.clone(), http2, seen: Vec::new(), provider, tickets };
        let settings = certificates.reload()?;
        Ok((certificates, settings))
    }

    /// Reads the files again, whether or not they changed. The reloaded configuration may have other paths.
    ///
    /// # Errors
    /// As [`load`](Self::load). The caller keeps the current settings.
    pub fn reload_from(&mut self, files: &TlsConfig) -> Result<Arc<ServerConfig>, SettingError> {
        self.files = files.clone();
        self.reload()
    }

    /// Reads the files again if one of them changed; `None` if none did. Call this every few seconds. An
    /// invalid change is reported once.
    pub fn reload_if_changed(&mut self) -> Option<Result<Arc<ServerConfig>, SettingError>> {
        (self.versions() != self.seen).then(|| self.reload())
    }

    fn reload(&mut self) -> Result<Arc<ServerConfig>, SettingError> {
        // Read the versions first: a change of a file after that is detected the next time.
        self.seen = self.versions();
        self.settings().map(Arc::new)
    }

    fn versions(&self) -> Vec<Option<FileVersion>> {
        self.paths().map(|path| FileVersion::of(path)).collect()
    }

    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        let certificate = &self.files.certificate;
        [&certificate.cert, &certificate.key].into_iter().chain(&self.files.client_ca)
    }

    fn settings(&self) -> Result<ServerConfig, SettingError> {
        let chain = read_certificates("server.tls.cert", &self.files.certificate.cert)?;
        let key_path = &self.files.certificate.key;
        let wrong_key = |error: &dyn std::fmt::Display| {
            let problem = format!("{}: {error}; expected a PEM private key", key_path.display());
            SettingError::new("server.tls.key", problem)
        };
        let pem = read(key_path).map_err(|error| wrong_key(&error))?;
        let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| wrong_key(&error))?;
        let builder = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| SettingError::new("server.tls", error.to_string()))?;
        let builder = match &self.files.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => builder.with_client_cert_verifier(self.client_verifier(path)?),
        };
        let mut settings = builder.with_single_cert(chain, key).map_err(|error| {
            let cert_path = self.files.certificate.cert.display();
            let problem =
                format!("{cert_path} and {}: {error}; they must belong together", key_path.display());
            SettingError::new("server.tls", problem)
        })?;
        let protocols: &[&[u8]] = if self.http2 { &[b"h2", b"http/1.1"] } else { &[b"http/1.1"] };
        settings.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        settings.ticketer = self.tickets.clone();
        // Tickets contain the session, so reactors do not share a session cache.
        settings.session_storage = Arc::new(NoServerSessionStorage {});
        settings.send_tls13_tickets = 1;
        Ok(settings)
    }

    fn client_verifier(
        &self,
        path: &Path,
    ) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, SettingError> {
        let wrong = |error: &dyn std::fmt::Display| {
            SettingError::new("server.tls.client_ca", format!("{}: {error}", path.display()))
        };
        let mut roots = RootCertStore::empty();
        for certificate in read_certificates("server.tls.client_ca", path)? {
            roots.add(certificate).map_err(|error| wrong(&error))?;
        }
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| wrong(&error))
    }
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    files::read(path, Links::Follow, limits::PEM_BYTES_MAX)
}

/// Reads all certificates of a PEM file. It must contain at least one.
fn read_certificates(setting: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, SettingError> {
    let wrong = |error: &dyn std::fmt::Display| {
        SettingError::new(setting, format!("{}: {error}; expected PEM certificates", path.display()))
    };
    let pem = read(path).map_err(|error| wrong(&error))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.map_err(|error| wrong(&error))?;
    if certificates.is_empty() { Err(wrong(&"contains no certificate")) } else { Ok(certificates) }
}
