//! A TLS listener in front of the scriptable upstream, and certificate authorities.
//!
//! The certificate can be changed while the listener runs. Every test generates its certificates.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

/// A certificate authority of a test.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key, as PEM.
pub struct Issued {
    pub certificate: String,
    pub key: String,
    der: (CertificateDer<'static>, Vec<u8>),
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority of a test");
        let key = KeyPair::generate().expect("randomness");
        Self(CertifiedIssuer::self_signed(params, key).expect("self-signed"))
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a name or an address.
    pub fn issue(&self, name: &str) -> Issued {
        let params = CertificateParams::new(vec![name.to_string()]).expect("a name");
        let key = KeyPair::generate().expect("randomness");
        let certificate = params.signed_by(&key, &self.0).expect("signed");
        Issued {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            der: (certificate.der().clone(), key.serialize_der()),
        }
    }
}

/// The listener. Its thread ends with the test process.
pub struct TlsFront {
    address: SocketAddr,
    config: Arc<Mutex<Arc<ServerConfig>>>,
}

impl TlsFront {
    /// Forwards to `behind`. Clients must present a certificate of `clients`, if given.
    pub fn start(behind: SocketAddr, issued: &Issued, clients: Option<&Authority>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let config = Arc::new(Mutex::new(server(issued, clients)));
        let current = Arc::clone(&config);
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let config = Arc::clone(&current.lock().expect("not poisoned"));
                thread::spawn(move || pass(socket, config, behind));
            }
        });
        Self { address, config }
    }

    /// Uses another certificate for new connections.
    pub fn show(&self, issued: &Issued) {
        *self.config.lock().expect("not poisoned") = server(issued, None);
    }

    pub fn api_url(&self) -> String {
        format!("https://{}/api/v1/", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

fn server(issued: &Issued, clients: Option<&Authority>) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().expect("ring has them");
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.0.der().clone()).expect("a certificate");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
        }
    };
    let (certificate, key) = issued.der.clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
    Arc::new(builder.with_single_cert(vec![certificate], key).expect("a pair"))
}

/// Forwards one request and its response at a time, without pipelining.
fn pass(socket: TcpStream, config: Arc<ServerConfig>, behind: SocketAddr) -> Option<()> {
    let mut outer = StreamOwned::new(ServerConnection::new(config).ok()?, socket);
    let mut inner = TcpStream::connect(behind).ok()?;
    let mut request = Vec::new();
    let mut piece = [0; 16 * 1024];
    loop {
        let count = outer.read(&mut piece).ok()?;
        if count == 0 {
            return None;
        }
        request.extend_from_slice(&piece[..count]);
        if !request.windows(4).any(|end| end == b"\r\n\r\n") {
            continue;
        }
        let close = b"\r\nConnection: close\r\n\r\n";
        let head = request.windows(4).position(|end| end == b"\r\n\r\n")?;
        inner.write_all(&[&request[..head], close, &request[head + 4..]].concat()).ok()?;
        // Request bodies are short and arrive with the head; responses have a Content-Length.
        let mut answer = Vec::new();
        loop {
            let count = inner.read(&mut piece).ok()?;
            answer.extend_from_slice(&piece[..count]);
            if count == 0 || is_whole(&answer) {
                break;
            }
        }
        outer.write_all(&answer).ok()?;
        outer.conn.send_close_notify();
        let _ = outer.flush();
        return Some(());
    }
}

fn is_whole(answer: &[u8]) -> bool {
    let Some(head) = answer.windows(4).position(|end| end == b"\r\n\r\n") else { return false };
    let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
    length.is_none_or(|length| answer.len() >= head + 4 + length.trim().parse::<usize>().unwrap_or(0))
}
