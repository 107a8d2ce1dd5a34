//! How connections to upstream are made: certificates and outgoing proxies.
//!
//! In: settings and the usual variables of the environment. Out: ureq's settings, or every mistake as a
//! line. Invariant: certificates are always verified; there is no switch to turn that off.
use std::fmt;
use std::path::Path;

use http::Uri;
use ureq::Proxy;
use ureq::tls::{ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use crate::config::{Certificate, Config, Secret};
use crate::files::Links;
use crate::upstream::no_proxy::NoProxy;
use crate::upstream::{basic, url};
use crate::{files, limits};

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

/// The outgoing proxies of the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outgoing {
    http: Option<OutgoingProxy>,
    https: Option<OutgoingProxy>,
    no_proxy: NoProxy,
}

/// One outgoing proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutgoingProxy {
    /// The variable that names it, as it is spelled in the environment.
    pub variable: String,
    pub proxy: Proxy,
}

impl Outgoing {
    /// Reads the variables as httpx and Python's `urllib.request.getproxies` do: `HTTPS_PROXY` or
    /// `HTTP_PROXY` by the scheme of the address, else `ALL_PROXY`; in lower case a name is stronger,
    /// and unsets the other one if it is empty. `NO_PROXY` lists the hosts that are asked directly.
    ///
    /// # Errors
    /// One line for each variable that is not the address of a proxy that can be used.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Vec<String>> {
        let read = |name: &str| {
            let lower = name.to_ascii_lowercase();
            match variable(&lower) {
                Some(value) => Some((lower, value)),
                None => variable(name).map(|value| (name.to_owned(), value)),
            }
            .filter(|(_, value)| !value.is_empty())
        };
        let mut mistakes = Vec::new();
        let mut proxy = |name: &str| {
            let (variable, value) = read(name).or_else(|| read("ALL_PROXY"))?;
            match parse(&variable, &value) {
                Ok(proxy) => Some(OutgoingProxy { variable, proxy }),
                Err(mistake) => {
                    // ALL_PROXY is read for both schemes.
                    if !mistakes.contains(&mistake) {
                        mistakes.push(mistake);
                    }
                    None
                }
            }
        };
        let (http, https) = (proxy("HTTP_PROXY"), proxy("HTTPS_PROXY"));
        let no_proxy = read("NO_PROXY").map(|(_, list)| NoProxy::parse(&list)).unwrap_or_default();
        if mistakes.is_empty() { Ok(Self { http, https, no_proxy }) } else { Err(mistakes) }
    }

    /// The proxy for addresses of this scheme.
    pub fn for_scheme(&self, scheme: &str) -> Option<&OutgoingProxy> {
        if scheme == "https" { self.https.as_ref() } else { self.http.as_ref() }
    }

    /// The proxy by which this address is asked; `None`: directly.
    pub fn for_address(&self, uri: &Uri) -> Option<&OutgoingProxy> {
        let proxy = self.for_scheme(uri.scheme_str().unwrap_or_default())?;
        (!self.no_proxy.contains(uri)).then_some(proxy)
    }
}

impl OutgoingProxy {
    /// Its address, without user and password.
    pub fn address(&self) -> Uri {
        basic::split(self.proxy.uri()).0
    }

    /// The value of `Proxy-Authorization`.
    pub fn credentials(&self) -> Option<Secret> {
        let user = self.proxy.username()?;
        Some(basic::credentials(user.as_bytes(), self.proxy.password().unwrap_or_default().as_bytes()))
    }
}

impl fmt::Display for OutgoingProxy {
    /// `the outgoing proxy http://proxy:3128 (HTTPS_PROXY)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the outgoing proxy {} ({})", url::origin(&self.address()), self.variable)
    }
}

fn parse(variable: &str, value: &str) -> Result<Proxy, String> {
    let fail = |what: &str| format!("{variable}: {what}; expected http://[user:password@]host:port");
    let proxy = Proxy::new(value).map_err(|_| fail("not the address of a proxy"))?;
    match proxy.protocol() {
        ureq::ProxyProtocol::Http | ureq::ProxyProtocol::Https => Ok(proxy),
        _ => Err(fail("SOCKS is not supported")),
    }
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

    fn read(variables: &[(&str, &str)]) -> Result<Outgoing, Vec<String>> {
        Outgoing::read(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string())
        })
    }

    /// `VARIABLE host:port` of the proxy by which an address is asked, or nothing.
    fn way(variables: &[(&str, &str)], uri: &str) -> String {
        let outgoing = read(variables).unwrap();
        let proxy = outgoing.for_address(&uri.parse().unwrap());
        proxy.map_or_else(String::new, |own| {
            format!("{} {}:{}", own.variable, own.proxy.host(), own.proxy.port())
        })
    }

    #[test]
    fn variables_are_read_as_python_reads_them() {
        const HTTP: &str = "http://api.example/";
        const HTTPS: &str = "https://api.example/";
        for (variables, uri, expected) in [
            (&[("HTTPS_PROXY", "http://a:3128"), ("ALL_PROXY", "b:8080")][..], HTTPS, "HTTPS_PROXY a:3128"),
            (&[("HTTPS_PROXY", "http://a:3128"), ("all_proxy", "b:8080")], HTTP, "all_proxy b:8080"),
            (&[("HTTPS_PROXY", "http://a:3128")], HTTP, ""),
            (&[("HTTP_PROXY", "http://a:3128"), ("http_proxy", "http://b:3128")], HTTP, "http_proxy b:3128"),
            (&[("HTTP_PROXY", "http://a:3128"), ("http_proxy", "")], HTTP, ""),
            (&[("HTTP_PROXY", ""), ("ALL_PROXY", "b:8080")], HTTP, "ALL_PROXY b:8080"),
            (&[("HTTP_PROXY", "a:3128"), ("NO_PROXY", "x.example, api.example")], HTTP, ""),
            (&[("HTTP_PROXY", "a:3128"), ("no_proxy", ""), ("NO_PROXY", "*")], HTTP, "HTTP_PROXY a:3128"),
        ] {
            assert_eq!(way(variables, uri), expected, "{variables:?}");
        }
    }

    #[test]
    fn credentials_are_decoded_and_not_shown() {
        let outgoing = read(&[("http_proxy", "http://user:p%40ss@a:3128")]).unwrap();
        let proxy = outgoing.for_scheme("http").unwrap();
        assert_eq!(proxy.credentials().unwrap().expose(), "Basic dXNlcjpwQHNz");
        assert_eq!(proxy.to_string(), "the outgoing proxy http://a:3128 (http_proxy)");
    }

    #[test]
    fn a_variable_that_cannot_be_used_is_named() {
        for value in ["socks5://a:1080", "gopher://a", "http://"] {
            for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
                let mistakes = read(&[(name, value)]).unwrap_err();
                assert_eq!(mistakes.len(), 1);
                assert!(mistakes[0].starts_with(&format!("{name}: ")), "{mistakes:?}");
            }
        }
    }
}
