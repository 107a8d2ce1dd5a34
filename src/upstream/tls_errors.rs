//! Messages for failed TLS handshakes with upstream. Each names what to do.
use rustls::{AlertDescription, CertificateError, Error};

/// Describes an I/O error that wraps an error of rustls.
pub fn describe_io(error: &std::io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(inner) => describe(inner),
        None => format!("TLS failed: {error}; see api_ca_file"),
    }
}

/// Describes an error of rustls.
pub fn describe(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(reason) => {
            format!("TLS failed: the server's certificate was rejected: {}", certificate(reason))
        }
        Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateUnknown
            | AlertDescription::HandshakeFailure,
        ) => format!(
            "TLS failed: the server closed the handshake ({error}): does it require a client certificate? See api_client_certificate"
        ),
        Error::InvalidMessage(_) => {
            format!(
                "TLS failed: the server does not speak TLS ({error}): use http:// instead of https://, or another port"
            )
        }
        _ => format!("TLS failed: {error}; see api_ca_file"),
    }
}

fn certificate(reason: &CertificateError) -> String {
    match reason {
        CertificateError::UnknownIssuer => {
            "it is self-signed, or its certificate authority is unknown: set api_ca_file to the authority's certificate (PEM)".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("it is for another host name ({reason}): use a name of the certificate in api_url")
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("it has expired, or the clock of this machine is wrong ({reason})")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("it is not valid yet, or the clock of this machine is wrong ({reason})")
        }
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "it is the certificate of an authority, as `openssl req -x509` creates it: issue a server certificate from \
             it, or create it with `-addext basicConstraints=critical,CA:FALSE`, and set api_ca_file to it"
                .to_owned()
        }
        _ => format!("{reason}; see api_ca_file"),
    }
}
