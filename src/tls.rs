//! Certificates and keys, from PEM files to settings that reactors use.
//!
//! In: the paths of the configuration. Out: a `rustls::ServerConfig`, or what is wrong with
//! which file. Invariant: read only by the control plane; a new pair replaces the old one only
//! when all of it is good; connections keep the settings they began with. TLS 1.2 and 1.3, ALPN
//! `http/1.1`; sessions resume by tickets, whose keys outlive a change of certificate.
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use crate::config::TlsConfig;
use crate::files::Links;
use crate::{files, limits};

/// What a listener with TLS was told: the files, as they were when last read.
#[derive(Debug)]
pub struct Certificates {
    files: TlsConfig,
    seen: Vec<Option<CertificateVersion>>,
    provider: Arc<CryptoProvider>,
    tickets: Arc<dyn ProducesTickets>,
}

/// Enough of a file to see that it changed, even if it was put there by a rename.
#[derive(Debug, PartialEq, Eq)]
struct CertificateVersion {
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

impl Certificates {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// One line that names the file and what is wrong with it.
    pub fn load(files: &TlsConfig) -> Result<(Self, Arc<ServerConfig>), String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tickets = rustls::crypto::ring::Ticketer::new()
            .map_err(|error| format!("server.tls: no ticket keys: {error}"))?;
        let mut certificates = Self { files: files.clone(), seen: Vec::new(), provider, tickets };
        let settings = certificates.reload()?;
        Ok((certificates, settings))
    }

    /// Reads the files again, whether or not they changed (SIGHUP). Other paths may be given by
    /// the configuration that was read again.
    ///
    /// # Errors
    /// As [`load`](Self::load); the settings in use stay good.
    pub fn reload_from(&mut self, files: &TlsConfig) -> Result<Arc<ServerConfig>, String> {
        self.files = files.clone();
        self.reload()
    }

    /// Reads the files again if one of them changed; `None` if none did. To be called every few
    /// seconds; a change that is refused is reported once.
    pub fn reload_if_changed(&mut self) -> Option<Result<Arc<ServerConfig>, String>> {
        (self.stamps() != self.seen).then(|| self.reload())
    }

    fn reload(&mut self) -> Result<Arc<ServerConfig>, String> {
        // Before the files: a change in between is then seen the next time.
        self.seen = self.stamps();
        self.settings().map(Arc::new)
    }

    fn stamps(&self) -> Vec<Option<CertificateVersion>> {
        let stamp = |path: &Path| std::fs::metadata(path).ok().map(CertificateVersion::new);
        self.paths().map(|path| stamp(path)).collect()
    }

    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        let certificate = &self.files.certificate;
        [&certificate.cert, &certificate.key].into_iter().chain(&self.files.client_ca)
    }

    fn settings(&self) -> Result<ServerConfig, String> {
        let chain = read_certificates("server.tls.cert", &self.files.certificate.cert)?;
        let key_path = &self.files.certificate.key;
        let wrong_key = |error: &dyn std::fmt::Display| {
            format!("server.tls.key: {}: {error}; expected a PEM private key", key_path.display())
        };
        let pem = read(key_path).map_err(|error| wrong_key(&error))?;
        let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| wrong_key(&error))?;
        let builder = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("server.tls: {error}"))?;
        let builder = match &self.files.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => builder.with_client_cert_verifier(self.client_verifier(path)?),
        };
        let mut settings = builder.with_single_cert(chain, key).map_err(|error| {
            let cert_path = self.files.certificate.cert.display();
            format!("server.tls: {cert_path} and {}: {error}; they must belong together", key_path.display())
        })?;
        settings.alpn_protocols = vec![b"http/1.1".to_vec()];
        settings.ticketer = self.tickets.clone();
        // Tickets carry the session, so that reactors need not share a store of them.
        settings.session_storage = Arc::new(NoServerSessionStorage {});
        settings.send_tls13_tickets = 1;
        Ok(settings)
    }

    fn client_verifier(
        &self,
        path: &Path,
    ) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, String> {
        let wrong =
            |error: &dyn std::fmt::Display| format!("server.tls.client_ca: {}: {error}", path.display());
        let mut roots = RootCertStore::empty();
        for certificate in read_certificates("server.tls.client_ca", path)? {
            roots.add(certificate).map_err(|error| wrong(&error))?;
        }
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| wrong(&error))
    }
}

impl CertificateVersion {
    fn new(metadata: Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self { modified: metadata.modified().ok(), bytes: metadata.len(), inode: metadata.ino() }
    }
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    files::read(path, Links::Follow, limits::PEM_BYTES_MAX)
}

/// All certificates of a PEM file, at least one.
fn read_certificates(setting: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong = |error: &dyn std::fmt::Display| {
        format!("{setting}: {}: {error}; expected PEM certificates", path.display())
    };
    let pem = read(path).map_err(|error| wrong(&error))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.map_err(|error| wrong(&error))?;
    if certificates.is_empty() { Err(wrong(&"no certificate in it")) } else { Ok(certificates) }
}
