//! TLS settings and outgoing proxies for connections to upstream.
//!
//! Certificates are always verified; there is no setting to turn this off.
use std::fmt;
use std::path::Path;

use http::Uri;
use ureq::Proxy;
use ureq::tls::{ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use crate::config::{Certificate, Config, Secret, SettingError};
use crate::files::Links;
use crate::upstream::no_proxy::NoProxy;
use crate::upstream::{basic, url};
use crate::{files, limits};

/// The TLS settings of `config`.
///
/// # Errors
/// One error for each file that cannot be used.
pub fn tls(config: &Config) -> Result<TlsConfig, Vec<SettingError>> {
    let mut errors = Vec::new();
    let mut tls = TlsConfig::builder();
    if let Some(path) = &config.api_ca_file {
        match certificates("api_ca_file", path) {
            Ok(certificates) => tls = tls.root_certs(RootCerts::new_with_certs(&certificates)),
            Err(error) => errors.push(error),
        }
    }
    if let Some(Certificate { cert, key }) = &config.api_client_certificate {
        match (
            certificates("api_client_certificate.cert", cert),
            private_key("api_client_certificate.key", key),
        ) {
            (Ok(chain), Ok(key)) => tls = tls.client_cert(Some(ClientCert::new_with_certs(&chain, key))),
            (chain, key) => errors.extend(chain.err().into_iter().chain(key.err())),
        }
    }
    if errors.is_empty() { Ok(tls.build()) } else { Err(errors) }
}

/// The outgoing proxies from the environment variables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutboundProxies {
    http: Option<OutgoingProxy>,
    https: Option<OutgoingProxy>,
    no_proxy: NoProxy,
}

/// One outgoing proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutgoingProxy {
    /// The environment variable that configures the proxy, as it is spelled.
    pub variable: String,
    pub proxy: Proxy,
}

impl OutboundProxies {
    /// Reads the variables as httpx and Python's `urllib.request.getproxies` do: `HTTPS_PROXY` or
    /// `HTTP_PROXY` by the scheme of the URL, else `ALL_PROXY`. A lower-case name overrides the upper-case
    /// one, and unsets it if its value is empty. `NO_PROXY` lists hosts that bypass the proxy.
    ///
    /// # Errors
    /// One error for each variable with an invalid value.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Vec<SettingError>> {
        let read = |name: &str| {
            let lower = name.to_ascii_lowercase();
            match variable(&lower) {
                Some(value) => Some((lower, value)),
                None => variable(name).map(|value| (name.to_owned(), value)),
            }
            .filter(|(_, value)| !value.is_empty())
        };
        let mut errors = Vec::new();
        let mut proxy = |name: &str| {
            let (variable, value) = read(name).or_else(|| read("ALL_PROXY"))?;
            match parse(&variable, &value) {
                Ok(proxy) => Some(OutgoingProxy { variable, proxy }),
                Err(error) => {
                    // ALL_PROXY is read for both schemes.
                    if !errors.contains(&error) {
                        errors.push(error);
                    }
                    None
                }
            }
        };
        let (http, https) = (proxy("HTTP_PROXY"), proxy("HTTPS_PROXY"));
        let no_proxy = read("NO_PROXY").map(|(_, list)| NoProxy::parse(&list)).unwrap_or_default();
        if errors.is_empty() { Ok(Self { http, https, no_proxy }) } else { Err(errors) }
    }

    /// The proxy for URLs of this scheme, ignoring `NO_PROXY`.
    pub fn for_scheme(&self, scheme: &str) -> Option<&OutgoingProxy> {
        if scheme == "https" { self.https.as_ref() } else { self.http.as_ref() }
    }

    /// The proxy for `uri`; `None`: a direct connection.
    pub fn for_uri(&self, uri: &Uri) -> Option<&OutgoingProxy> {
        let proxy = self.for_scheme(uri.scheme_str().unwrap_or_default())?;
        (!self.no_proxy.contains(uri)).then_some(proxy)
    }
}

impl OutgoingProxy {
    /// The URL of the proxy, without user and password.
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

fn parse(variable: &str, value: &str) -> Result<Proxy, SettingError> {
    // The value is not quoted: it may contain a password.
    let fail = |what: &str| {
        SettingError::new(variable, format!("{what}; expected http://[user:password@]host:port"))
    };
    let proxy = Proxy::new(value).map_err(|_| fail("invalid proxy URL"))?;
    match proxy.protocol() {
        ureq::ProxyProtocol::Http | ureq::ProxyProtocol::Https => Ok(proxy),
        _ => Err(fail("SOCKS is not supported")),
    }
}

fn read(setting: &str, path: &Path) -> Result<Vec<u8>, SettingError> {
    files::read(path, Links::Follow, limits::PEM_BYTES_MAX)
        .map_err(|error| SettingError::new(setting, format!("{}: {error}", path.display())))
}

fn certificates(setting: &str, path: &Path) -> Result<Vec<ureq::tls::Certificate<'static>>, SettingError> {
    let bytes = read(setting, path)?;
    let certificates: Vec<_> = parse_pem(&bytes)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        let problem = format!("{}: contains no PEM certificate", path.display());
        return Err(SettingError::new(setting, problem));
    }
    Ok(certificates)
}

fn private_key(setting: &str, path: &Path) -> Result<PrivateKey<'static>, SettingError> {
    PrivateKey::from_pem(&read(setting, path)?)
        .map_err(|_| SettingError::new(setting, format!("{}: contains no PEM private key", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<OutboundProxies, Vec<SettingError>> {
        OutboundProxies::read(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string())
        })
    }

    /// `VARIABLE host:port` of the proxy for a URL, or nothing.
    fn proxy_for(variables: &[(&str, &str)], uri: &str) -> String {
        let proxies = read(variables).unwrap();
        let proxy = proxies.for_uri(&uri.parse().unwrap());
        proxy.map_or_else(String::new, |own| {
            format!("{} {}:{}", own.variable, own.proxy.host(), own.proxy.port())
        })
    }

    #[test]
    fn reads_variables_as_python_does() {
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
            assert_eq!(proxy_for(variables, uri), expected, "{variables:?}");
        }
    }

    #[test]
    fn decodes_credentials_and_does_not_display_them() {
        let proxies = read(&[("http_proxy", "http://user:p%40ss@a:3128")]).unwrap();
        let proxy = proxies.for_scheme("http").unwrap();
        assert_eq!(proxy.credentials().unwrap().expose(), "Basic dXNlcjpwQHNz");
        assert_eq!(proxy.to_string(), "the outgoing proxy http://a:3128 (http_proxy)");
    }

    #[test]
    fn names_the_variable_with_an_invalid_value() {
        for value in ["socks5://a:1080", "gopher://a", "http://"] {
            for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
                let errors = read(&[(name, value)]).unwrap_err();
                assert_eq!(errors.len(), 1);
                assert!(errors[0].to_string().starts_with(&format!("{name}: ")), "{errors:?}");
            }
        }
    }
}
