//! How connections to upstream are made: certificates and outgoing proxies.
//!
//! In: settings and the usual variables of the environment. Out: ureq's settings, or every mistake as a
//! line. Invariant: certificates are always verified; there is no switch to turn that off.
use std::path::Path;

use ureq::Proxy;
use ureq::tls::{ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use crate::config::{Certificate, Config};
use crate::files::{self, Links};
use crate::limits;

/// # Errors
/// One line per file that cannot be used.
pub fn tls(config: &Config) -> Result<TlsConfig, Vec<String>> {
    let mut mistakes = Vec::new();
    let mut tls = TlsConfig::builder();
    if let Some(path) = &config.api_ca_file {
        match certificates("api_ca_file", path) {
            Ok(certificates) => tls = tls.root_certs(RootCerts::new_with_certs(&certificates)),
            Err(mistake) => mistakes.push(mistake),
        }
    }
    if let Some(Certificate { cert, key }) = &config.api_client_certificate {
        match (
            certificates("api_client_certificate.cert", cert),
            private_key("api_client_certificate.key", key),
        ) {
            (Ok(chain), Ok(key)) => tls = tls.client_cert(Some(ClientCert::new_with_certs(&chain, key))),
            (chain, key) => mistakes.extend(chain.err().into_iter().chain(key.err())),
        }
    }
    if mistakes.is_empty() { Ok(tls.build()) } else { Err(mistakes) }
}

/// The outgoing proxy for addresses of `scheme`, as curl and Python's httpx read it: `HTTPS_PROXY` or
/// `HTTP_PROXY`, else `ALL_PROXY`, in either case; `NO_PROXY` lists the hosts reached directly.
///
/// # Errors
/// The variable is no address of a proxy we can use.
pub fn proxy(scheme: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Proxy>, String> {
    let read = |name: &str| {
        let value = variable(name).or_else(|| variable(&name.to_ascii_lowercase()));
        value.filter(|value| !value.is_empty())
    };
    let names = [format!("{}_PROXY", scheme.to_ascii_uppercase()), "ALL_PROXY".to_string()];
    let Some((name, value)) = names.iter().find_map(|name| Some((name, read(name)?))) else {
        return Ok(None);
    };
    let fail = |what: &str| format!("{name}: {what}; expected http://[user:password@]host:port");
    let plain = Proxy::new(&value).map_err(|_| fail("not the address of a proxy"))?;
    let mut builder = Proxy::builder(plain.protocol()).host(plain.host()).port(plain.port());
    if let Some(username) = plain.username() {
        builder = builder.username(username);
    }
    if let Some(password) = plain.password() {
        builder = builder.password(password);
    }
    if !matches!(plain.protocol(), ureq::ProxyProtocol::Http | ureq::ProxyProtocol::Https) {
        return Err(fail("SOCKS is not supported"));
    }
    for entry in read("NO_PROXY").iter().flat_map(|list| list.split(',')) {
        builder = builder.no_proxy(entry.trim());
    }
    builder.build().map(Some).map_err(|_| fail("not the address of a proxy"))
}

fn read(setting: &str, path: &Path) -> Result<Vec<u8>, String> {
    files::read(path, Links::Follow, limits::PEM_BYTES_MAX)
        .map_err(|error| format!("{setting}: {}: {error}", path.display()))
}

fn certificates(setting: &str, path: &Path) -> Result<Vec<ureq::tls::Certificate<'static>>, String> {
    let bytes = read(setting, path)?;
    let certificates: Vec<_> = parse_pem(&bytes)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(format!("{setting}: {}: no certificate in PEM form in it", path.display()));
    }
    Ok(certificates)
}

fn private_key(setting: &str, path: &Path) -> Result<PrivateKey<'static>, String> {
    PrivateKey::from_pem(&read(setting, path)?)
        .map_err(|_| format!("{setting}: {}: no private key in PEM form in it", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy_of(scheme: &str, variables: &[(&str, &str)]) -> Result<Option<Proxy>, String> {
        proxy(scheme, |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string())
        })
    }

    #[test]
    fn the_proxy_of_the_scheme_wins_over_the_one_for_all() {
        let variables = [
            ("HTTPS_PROXY", "http://user:pass@a:3128"),
            ("all_proxy", "b:8080"),
            ("no_proxy", "x.example,.internal"),
        ];
        let https = proxy_of("https", &variables).unwrap().unwrap();
        assert_eq!(
            (https.host(), https.port(), https.username(), https.password()),
            ("a", 3128, Some("user"), Some("pass"))
        );
        assert!(https.is_no_proxy(&"https://x.example/".parse().unwrap()));
        assert!(https.is_no_proxy(&"https://y.internal/".parse().unwrap()));
        assert!(!https.is_no_proxy(&"https://edge.api.flagsmith.com/".parse().unwrap()));
        let http = proxy_of("http", &variables).unwrap().unwrap();
        assert_eq!((http.host(), http.port()), ("b", 8080));
        assert_eq!(proxy_of("http", &[("HTTPS_PROXY", "a:1"), ("HTTP_PROXY", "")]), Ok(None));
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        for value in ["socks5://a:1080", "gopher://a", "http://"] {
            let mistake = proxy_of("https", &[("HTTPS_PROXY", value)]).unwrap_err();
            assert!(mistake.starts_with("HTTPS_PROXY: "), "{mistake}");
        }
    }
}
