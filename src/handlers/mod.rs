//! The spine: one synchronous function from a request to an answer.
//!
//! In: a [`Snapshot`], a [`Request`], the time, and a reactor's [`HandlerState`]. Out: a whole response
//! in [`ResponseWriter`], and an [`RequestOutcome`] for those who count. Order of judgement, as in the Python
//! proxy: preflight, path, method, shape of query or body, key, document (compatibility.md 2.6).
//! Invariant: no await, no lock, no log, no clock (time is an argument), and no allocation for
//! plain input once the room has grown. One file per family of routes; this one only leads there.
mod analytics;
mod assets;
mod body;
mod bulk;
mod document;
mod errors;
mod exchange;
mod explain;
mod flags;
pub mod health;
mod identities;
mod ofrep;
pub mod sse;
mod validators;

#[cfg(test)]
mod tests;

use std::time::SystemTime;

use crate::config::Config;
use crate::counts::{Counts, Resource};
use crate::demo;
use crate::engine::evaluate::EvaluationScratch;
use crate::engine::program::Role;
use crate::handlers::exchange::Exchange;
use crate::handlers::sse::{StreamProtocol, StreamSubscription};
use crate::http::compression::Gzip;
use crate::http::cors::Cors;
use crate::http::route::Route;
use crate::http::{
    Body, ContentType, Fields, Gunzip, Method, ParseError, Request, ResponseWriter, Status, route,
};
use crate::identity::IdentityReader;
use crate::limits::KEPT_ANSWER_BYTES_MAX;
use crate::snapshot::{Environment, Snapshot};

/// What the configuration says about answers, made ready once per process and on a reload.
#[derive(Debug)]
pub struct HandlerSettings {
    cors: Cors,
    health: health::ReadinessRules,
    /// Evaluations that SDKs report are counted.
    counts_evaluations: bool,
    /// Requests are counted for upstream's billing (compatibility.md 4.3).
    counts_usage: bool,
    /// The demo's environment is one of those served, and so is its page.
    serves_demo: bool,
}

impl HandlerSettings {
    pub fn new(config: &Config) -> Self {
        Self {
            cors: Cors::new(&config.allow_origins),
            health: health::ReadinessRules::new(config),
            counts_evaluations: config.analytics.enabled,
            counts_usage: config.proxy_key.is_some(),
            serves_demo: config.environments.iter().any(|one| one.client_side_key == demo::CLIENT_SIDE_KEY),
        }
    }
}

impl HandlerSettings {
    /// The lines that let a browser show the answer to a request that was refused before it was routed
    /// (`Cors::refused`).
    pub fn refusal_lines(&self, fields: Option<&Fields<'_>>) -> Vec<u8> {
        let mut lines = Vec::new();
        self.cors.refused(fields, &mut lines);
        lines
    }
}

/// A reactor's reusable buffers.
#[derive(Debug, Default)]
pub struct HandlerState {
    reader: IdentityReader,
    gunzip: Gunzip,
    desk: Scratch,
    counts: Counts,
    subscription: Option<StreamSubscription>,
}

impl HandlerState {
    /// What was counted since it was last taken.
    pub fn counts(&mut self) -> &mut Counts {
        &mut self.counts
    }

    /// After a panic in [`answer`]: whatever was left half done is forgotten with its buffers.
    /// What was counted before stays.
    pub fn renew(&mut self) {
        *self = Self { counts: std::mem::take(&mut self.counts), ..Self::default() };
    }

    /// Which budgets the last request exceeded, once.
    pub fn take_exceeded(&mut self, outcome: &RequestOutcome) -> Exceeded {
        let budget = self.desk.scratch.budget();
        let is_refused = outcome.route == Route::BulkIdentities && outcome.status == 400;
        Exceeded {
            jsonpath: budget.jsonpath.take_exceeded(),
            patterns: budget.patterns.take_exceeded(),
            bulk: budget.texts.take_exceeded() && is_refused,
        }
    }

    /// A property of `environment` of which the last request's budget cut a condition.
    pub fn cut_property<'e>(&self, environment: &'e Environment) -> Option<&'e str> {
        let slot = self.desk.scratch.cut_slots().first()?;
        environment.program().property(*slot)
    }

    /// After an answer of an event stream's route: who is to be told of changes from now on.
    pub fn take_subscription(&mut self) -> Option<StreamSubscription> {
        self.subscription.take()
    }
}

/// All of a [`HandlerState`] but what reads identities, so that both can be borrowed at once.
#[derive(Debug, Default)]
struct Scratch {
    scratch: EvaluationScratch,
    /// Header lines of the answer at hand.
    lines: Vec<u8>,
    dated: validators::DateHeaders,
    /// A body that is to be compressed, and then its compressed form.
    body: Vec<u8>,
    compressed: Vec<u8>,
    gzip: Gzip,
}

impl Scratch {
    /// After a request: memory for a large answer is released.
    fn release(&mut self) {
        for buffer in [&mut self.body, &mut self.compressed] {
            if buffer.capacity() > KEPT_ANSWER_BYTES_MAX {
                *buffer = Vec::new();
            }
        }
    }
}

/// What was answered, for metrics, the access log and usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestOutcome {
    pub status: u16,
    pub route: Route,
    /// The environment that the key opened.
    pub slot: Option<usize>,
    pub role: Option<Role>,
    /// Refused for the coding or the size of its body.
    pub reject: Option<ParseError>,
    /// A 422 that lists fewer errors than there are.
    pub errors_truncated: bool,
    /// How much of the plain body was read, bytes: a measure of the work.
    pub body_bytes: usize,
}

impl RequestOutcome {
    /// Of a request that no route has answered yet.
    pub const NONE: Self = Self {
        status: 0,
        route: Route::Unknown,
        slot: None,
        role: None,
        reject: None,
        errors_truncated: false,
        body_bytes: 0,
    };
}

/// Budgets of steps ([`crate::step_budget`]) that a request exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    pub jsonpath: bool,
    pub patterns: bool,
    /// A bulk request was refused.
    pub bulk: bool,
}

impl Exceeded {
    pub const NONE: Self = Self { jsonpath: false, patterns: false, bulk: false };
}

/// Answers one request.
pub fn answer(
    settings: &HandlerSettings,
    snapshot: &Snapshot,
    now: SystemTime,
    request: &mut Request<'_>,
    room: &mut HandlerState,
    output: &mut ResponseWriter,
) -> RequestOutcome {
    let mut exchange = Exchange::new(settings, snapshot, now, request, output);
    let HandlerState { desk, .. } = room;
    desk.lines.clear();
    if Cors::is_preflight(request.method, &request.fields) {
        let (status, body) = settings.cors.preflight(&request.fields, &mut desk.lines);
        exchange.send(desk, status, Some(ContentType::Text), Body::Copy(body));
        return exchange.outcome;
    }
    exchange.varies_by_origin = settings.cors.simple(&request.fields, &mut desk.lines);
    let Some(found) = route::find(request.path) else {
        match (request.method, request.path) {
            (Method::Options, b"*") => exchange.send_options(desk),
            _ => exchange.refuse_path(desk),
        }
        return exchange.outcome;
    };
    exchange.outcome.route = found.route;
    if !found.methods.allow(request.method) {
        exchange.refuse_method(desk, found.methods);
        return exchange.outcome;
    }
    dispatch(&mut exchange, &found, request, room);
    let outcome = exchange.outcome;
    room.desk.release();
    room.gunzip.release();
    if settings.counts_usage && (200..300).contains(&outcome.status) {
        count_usage(&outcome, &mut room.counts);
    }
    outcome
}

/// Leads to the file of the route. The method is one that the route has.
fn dispatch(
    exchange: &mut Exchange<'_>,
    found: &route::Match<'_>,
    request: &mut Request<'_>,
    room: &mut HandlerState,
) {
    let HandlerState { reader, gunzip, desk, counts, subscription } = room;
    let body = match body::is_read_by(found.route, request.method) {
        true => body::plain(exchange, request.body, request.coding, gunzip, desk),
        false => Some(&mut [][..]),
    };
    let Some(body) = body else { return };
    match (found.route, request.method) {
        (Route::Flags, _) => flags::answer(exchange, request.query, desk),
        (Route::Identities, Method::Post) => identities::post(exchange, body, reader, desk),
        (Route::Identities, _) => identities::get(exchange, request.query, desk),
        (Route::EnvironmentDocument, _) => document::answer(exchange, desk),
        (Route::Readiness, _) => health::readiness(exchange, desk),
        (Route::Liveness, _) => {
            exchange.vary(desk);
            exchange.send(desk, Status(200), None, Body::Empty);
        }
        (Route::Analytics, _) => analytics::version_1(exchange, body, counts, desk),
        (Route::AnalyticsV2, _) => analytics::version_2(exchange, body, counts, desk),
        (Route::BulkIdentities, _) => bulk::answer(exchange, body, desk),
        (Route::Traits, _) => bulk::single_trait(exchange, body, desk),
        (Route::EventStream, _) => {
            *subscription = sse::open(exchange, &found.parameter, StreamProtocol::Flagsmith, desk);
        }
        (Route::OfrepEventStream, _) => {
            *subscription = sse::open(exchange, &found.parameter, StreamProtocol::Ofrep, desk);
        }
        (Route::OfrepFlags, _) => ofrep::all(exchange, body, desk),
        (Route::OfrepFlag, _) => ofrep::one(exchange, &found.parameter, body, desk),
        (Route::Explain, _) => explain::answer(exchange, request.query, body, reader, desk),
        (Route::OpenApi, _) => assets::openapi(exchange, desk),
        (Route::Docs, _) => assets::docs(exchange, desk),
        (Route::Demo, _) => assets::demo(exchange, &found.parameter, desk),
        (Route::Unknown, _) => exchange.refuse_path(desk),
    }
}

/// Counts a request that was served, as upstream bills it.
fn count_usage(outcome: &RequestOutcome, counts: &mut Counts) {
    let resource = match outcome.route {
        Route::Flags => Resource::Flags,
        Route::Identities => Resource::Identities,
        Route::EnvironmentDocument => Resource::EnvironmentDocument,
        _ => return,
    };
    if let Some(slot) = outcome.slot {
        counts.used(slot, resource);
    }
}
