//! `api_headers`: header fields for a gateway in front of the API. Values are secrets: no message shows one.
use std::fmt;

use http::{HeaderName, HeaderValue};
use serde_json::Value;

use crate::config::issue::ConfigIssue;
use crate::config::raw::RawConfig;
use crate::config::secret::Secret;
use crate::limits::{API_HEADER_BYTES_MAX, API_HEADERS_MAX};

/// Fields that the proxy itself sets, or that change how a request or its response is framed, encoded or
/// cached.
const RESERVED: &[&str] = &[
    "accept",
    "accept-encoding",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "flagsmith-application-name",
    "flagsmith-application-version",
    "flagsmith-sdk-user-agent",
    "host",
    "idempotency-key",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-environment-key",
    "x-proxy-key",
];

/// Why header fields cannot be sent.
enum HeaderFault {
    NotAnObject,
    TooMany,
    Name,
    Reserved(String),
    Repeated,
    /// `api_url` has a user and a password, which are sent as Authorization.
    Authorization,
    Value,
}

impl fmt::Display for HeaderFault {
    /// Completes the sentence "expected ...".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnObject => f.write_str("an object of header names and values"),
            Self::TooMany => write!(f, "at most {API_HEADERS_MAX} header fields"),
            Self::Name => f.write_str("the name of a header field, such as X-Gateway-Token"),
            Self::Reserved(name) => {
                write!(f, "a header field other than {name}, which the proxy sets itself: remove it")
            }
            Self::Repeated => f.write_str("each header field once: names are compared without case"),
            Self::Authorization => {
                f.write_str("no Authorization, because api_url has a user and a password: remove one of them")
            }
            Self::Value => write!(
                f,
                "a string of 1 to {API_HEADER_BYTES_MAX} printable ASCII characters, without space at either end"
            ),
        }
    }
}

/// A member that cannot be sent; without a name: the object as a whole.
struct HeaderProblem {
    name: Option<String>,
    fault: HeaderFault,
}

/// Reads the setting at `path`. Issues are added to `raw`.
pub fn read(path: &str, raw: &mut RawConfig, api_url: &str) -> Vec<(String, Secret)> {
    loop {
        let Some((value, source)) = raw.value(path) else { return Vec::new() };
        let problems = match parse(value, api_url) {
            Ok(headers) => return headers,
            Err(problems) => problems,
        };
        let source = source.clone();
        let expected = problems.first().map(|problem| problem.fault.to_string()).unwrap_or_default();
        if raw.drop_alias(path, &expected) {
            continue;
        }
        for HeaderProblem { name, fault } in problems {
            let path = name.map_or_else(|| path.to_owned(), |name| format!("{path}.{name}"));
            let source = raw.located(&path, &source);
            raw.issues.push(ConfigIssue::new(
                path,
                Some("a value that is not shown".into()),
                &source,
                fault.to_string(),
            ));
        }
        return Vec::new();
    }
}

fn parse(value: &Value, api_url: &str) -> Result<Vec<(String, Secret)>, Vec<HeaderProblem>> {
    let whole = |fault| vec![HeaderProblem { name: None, fault }];
    let object = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Object(object) => object,
        _ => return Err(whole(HeaderFault::NotAnObject)),
    };
    if object.len() > API_HEADERS_MAX {
        return Err(whole(HeaderFault::TooMany));
    }
    let (mut headers, mut problems): (Vec<(String, Secret)>, Vec<HeaderProblem>) = (Vec::new(), Vec::new());
    for (name, value) in object {
        let is_repeated = |own: &str| headers.iter().any(|(earlier, _)| earlier == own);
        match field(name, value, api_url) {
            Ok((own, _)) if is_repeated(&own) => {
                problems.push(HeaderProblem { name: Some(name.clone()), fault: HeaderFault::Repeated });
            }
            Ok(header) => headers.push(header),
            Err(fault) => problems.push(HeaderProblem { name: Some(name.clone()), fault }),
        }
    }
    if problems.is_empty() { Ok(headers) } else { Err(problems) }
}

/// The name in lower case and the value.
fn field(name: &str, value: &Value, api_url: &str) -> Result<(String, Secret), HeaderFault> {
    let own = HeaderName::from_bytes(name.as_bytes()).map_err(|_| HeaderFault::Name)?;
    if RESERVED.contains(&own.as_str()) {
        return Err(HeaderFault::Reserved(name.to_owned()));
    }
    let authority = api_url.split("://").nth(1).and_then(|rest| rest.split('/').next());
    if own == http::header::AUTHORIZATION && authority.is_some_and(|authority| authority.contains('@')) {
        return Err(HeaderFault::Authorization);
    }
    let text = value.as_str().unwrap_or_default();
    let is_value = !text.is_empty()
        && text.trim() == text
        && text.len() <= API_HEADER_BYTES_MAX
        && text.is_ascii()
        && HeaderValue::from_str(text).is_ok();
    if !is_value {
        return Err(HeaderFault::Value);
    }
    Ok((own.as_str().to_owned(), Secret::new(text)))
}
