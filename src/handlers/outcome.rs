//! The result of a request as metrics, the access log and usage counts need it.
use crate::engine::program::Role;
use crate::http::ParseError;
use crate::http::route::Route;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestOutcome {
    pub status: u16,
    pub route: Route,
    /// Index of the environment that the key belongs to.
    pub slot: Option<usize>,
    pub role: Option<Role>,
    /// Set if the request was rejected for the coding or the size of its body.
    pub reject: Option<ParseError>,
    /// The response is a 422 that omits some of the errors.
    pub errors_truncated: bool,
    /// The response is a document as a delta.
    pub is_delta: bool,
    /// Bytes of the decoded body that were parsed: a measure of the work done.
    pub body_bytes: usize,
}

impl RequestOutcome {
    /// The outcome of a request before it is routed.
    pub const NONE: Self = Self {
        status: 0,
        route: Route::Unknown,
        slot: None,
        role: None,
        reject: None,
        errors_truncated: false,
        is_delta: false,
        body_bytes: 0,
    };
}

/// The step budgets ([`crate::step_budget`]) that a request exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    pub jsonpath: bool,
    pub patterns: bool,
    pub flag_cycles: bool,
    /// A bulk request was rejected with 400.
    pub bulk: bool,
}

impl Exceeded {
    pub const NONE: Self = Self { jsonpath: false, patterns: false, flag_cycles: false, bulk: false };
}
