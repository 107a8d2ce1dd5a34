//! A ureq connector for plain HTTP through an outgoing proxy, with request targets in absolute form
//! (RFC 9112 3.2.2).
//!
//! ureq itself supports only `CONNECT`, which proxies usually allow for port 443 only. Each request is sent
//! to the proxy and starts with `METHOD http://host:port/path`.
use http::Uri;
use ureq::config::Config;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, DefaultConnector, NextTimeout, Transport,
};

/// Connects to a proxy instead of the host of the request.
#[derive(Debug)]
pub struct AbsoluteForm {
    /// With scheme `https` the connection to the proxy is encrypted.
    proxy: Uri,
    inner: DefaultConnector,
}

impl AbsoluteForm {
    pub fn new(proxy: Uri) -> Self {
        Self { proxy, inner: DefaultConnector::default() }
    }
}

impl Connector<()> for AbsoluteForm {
    type Out = AbsoluteTransport;

    fn connect(
        &self,
        details: &ConnectionDetails,
        chained: Option<()>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        let to_proxy = ConnectionDetails {
            uri: &self.proxy,
            // These are the addresses of the proxy: see `ProxyResolver`.
            addrs: details.addrs.clone(),
            config: details.config,
            request_level: details.request_level,
            resolver: details.resolver,
            now: details.now,
            timeout: details.timeout,
            current_time: details.current_time.clone(),
            run_connector: details.run_connector.clone(),
            register_shutdown: details.register_shutdown.clone(),
        };
        let origin = super::url::origin(details.uri).into_bytes();
        let connected = self.inner.connect(&to_proxy, chained)?;
        Ok(connected.map(|inner| AbsoluteTransport { inner, origin, is_start: true }))
    }
}

/// Resolves the proxy's name. Only the proxy may be able to resolve the name of the target.
#[derive(Debug)]
pub struct ProxyResolver {
    proxy: Uri,
    inner: DefaultResolver,
}

impl ProxyResolver {
    pub fn new(proxy: Uri) -> Self {
        Self { proxy, inner: DefaultResolver::default() }
    }
}

impl Resolver for ProxyResolver {
    fn resolve(
        &self,
        _target: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        self.inner.resolve(&self.proxy, config, timeout)
    }
}

/// A connection to the proxy for requests to one origin.
#[derive(Debug)]
pub struct AbsoluteTransport {
    inner: Box<dyn Transport>,
    /// Such as `http://flags.internal:8000`.
    origin: Vec<u8>,
    /// Whether the next output starts a request: nothing was sent yet, or a response was read.
    is_start: bool,
}

impl Transport for AbsoluteTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        let mut amount = amount;
        if std::mem::take(&mut self.is_start) {
            amount = insert_origin(self.inner.buffers().output(), amount, &self.origin).ok_or_else(|| {
                let error =
                    "the request head is too large for the buffer of the connection to the outgoing proxy";
                ureq::Error::Io(std::io::Error::other(error))
            })?;
        }
        self.inner.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.is_start = true;
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

/// Inserts `origin` before the path of a request line, and returns the new length; `None` if the buffer is
/// full.
fn insert_origin(output: &mut [u8], length: usize, origin: &[u8]) -> Option<usize> {
    let at = output[..length].iter().position(|byte| *byte == b' ')? + 1;
    let end = length + origin.len();
    if end > output.len() {
        return None;
    }
    output.copy_within(at..length, at + origin.len());
    output[at..at + origin.len()].copy_from_slice(origin);
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inserts_the_origin_before_the_path() {
        let mut output = [0; 40];
        let request = b"GET /x HTTP/1.1\r\n\r\n";
        output[..request.len()].copy_from_slice(request);
        let length = insert_origin(&mut output, request.len(), b"http://a:81").unwrap();
        assert_eq!(&output[..length], b"GET http://a:81/x HTTP/1.1\r\n\r\n");
        assert_eq!(insert_origin(&mut output, length, b"http://a:81"), None, "the buffer is full");
        let mut exact = *b"GET /x HTTP/1.1\r\n\r\n           ";
        assert_eq!(insert_origin(&mut exact, request.len(), b"http://a:81"), Some(exact.len()));
    }
}
