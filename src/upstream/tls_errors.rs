//! Words for a TLS handshake with upstream that failed.
//!
//! In: the error of rustls, or of the socket it is wrapped in. Out: what is wrong and what to
//! do, in one phrase. Invariant: whatever comes, there is something to do in it; what has no
//! words here is told as rustls has it.
use rustls::{AlertDescription, CertificateError, Error};

/// The words for an error of a socket that rustls was on.
pub fn describe_io(error: &std::io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(inner) => describe(inner),
        None => format!("TLS failed: {error}; see api_ca_file"),
    }
}

/// The words for an error of rustls.
pub fn describe(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(reason) => {
            format!("TLS failed: its certificate is not accepted: {}", certificate(reason))
        }
        Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateUnknown
            | AlertDescription::HandshakeFailure,
        ) => format!(
            "TLS failed: upstream ended it ({error}): does it demand a client certificate? See api_client_certificate"
        ),
        Error::InvalidMessage(_) => {
            format!(
                "TLS failed: no TLS is spoken there ({error}): is it http:// and not https://, or another port?"
            )
        }
        _ => format!("TLS failed: {error}; see api_ca_file"),
    }
}

fn certificate(reason: &CertificateError) -> String {
    match reason {
        CertificateError::UnknownIssuer => {
            "it is self-signed, or of an authority that is not known here: give the authority's certificate (PEM) as api_ca_file".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("it is of another name ({reason}): use a name of the certificate in api_url")
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("it has expired, or the clock of this machine is wrong ({reason}): renew it")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("it is not valid yet, or the clock of this machine is wrong ({reason})")
        }
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "it is an authority's own, as `openssl req -x509` makes it: let that authority sign one for the server, \
             or make it with `-addext basicConstraints=critical,CA:FALSE`, and give it as api_ca_file"
                .to_owned()
        }
        _ => format!("{reason}; see api_ca_file"),
    }
}
