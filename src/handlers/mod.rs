//! Request handlers: [`handle`] turns a request into a response, synchronously.
//!
//! Checks run in the order of the Python proxy: preflight, path, method, shape of the query or body, key,
//! document (compatibility.md 2.6). A handler does not await, lock, log or read the clock, and once the
//! scratch buffers have grown it does not allocate for plain input. There is one file per family of routes.
mod analytics;
mod assets;
mod body;
mod bulk;
mod document;
mod errors;
mod events;
mod exchange;
mod explain;
mod flags;
mod health;
mod identities;
mod kept;
mod ofrep;
mod outcome;
pub mod readiness;
mod result_cache;
mod scratch;
mod settings;
pub mod sse;
mod state;
mod static_files;
mod traits;
mod validators;

use std::time::SystemTime;

use crate::counts::Counts;
use crate::handlers::errors::ApiError;
pub use crate::handlers::events::write_not_stored;
use crate::handlers::exchange::Exchange;
pub use crate::handlers::outcome::{Exceeded, RequestOutcome};
pub use crate::handlers::result_cache::ResultCacheCounts;
pub use crate::handlers::settings::HandlerSettings;
use crate::handlers::sse::{StreamProtocol, StreamSubscription};
use crate::handlers::state::BodyReaders;
pub use crate::handlers::state::{HandlerState, ReceivedEvents, SharedView};
use crate::http::cors::Cors;
use crate::http::route::{Methods, Route};
use crate::http::{Body, ContentType, Method, Request, ResponseWriter, route};
use crate::snapshot::Snapshot;

/// Handles one request and writes the complete response to `output`. The body of `request` may be changed
/// in place.
pub fn handle(
    settings: &HandlerSettings,
    snapshot: &Snapshot,
    now: SystemTime,
    request: &mut Request<'_>,
    state: &mut HandlerState,
    output: &mut ResponseWriter,
) -> RequestOutcome {
    state.scratch.headers.clear();
    let outcome = respond(settings, snapshot, now, request, state, output);
    state.scratch.shrink();
    state.readers.gunzip.release();
    if settings.counts_usage && (200..300).contains(&outcome.status) {
        state.count_usage(&outcome);
    }
    outcome
}

fn respond(
    settings: &HandlerSettings,
    snapshot: &Snapshot,
    now: SystemTime,
    request: &mut Request<'_>,
    state: &mut HandlerState,
    output: &mut ResponseWriter,
) -> RequestOutcome {
    let HandlerState { readers, scratch, counts, subscription, events, traits } = state;
    if let Some(id) = request.fields.request_id {
        settings::append_request_id(id, &mut scratch.headers);
    }
    let mut exchange = Exchange::new(settings, snapshot, now, request, scratch, output);
    if Cors::is_preflight(request.method, &request.fields) {
        let (status, body) = settings.cors.preflight(&request.fields, &mut exchange.scratch.headers);
        exchange.send(status, Some(ContentType::Text), Body::Copy(body));
        return exchange.outcome;
    }
    exchange.varies_by_origin = settings.cors.simple(&request.fields, &mut exchange.scratch.headers);
    let Some(found) = settings.route(request.path) else {
        match (request.method, request.path) {
            (Method::Options, b"*") => exchange.send_options(),
            (Method::Connect, _) => exchange.send_error(&ApiError::MethodNotAllowed(Methods::GetPost)),
            _ => exchange.send_error(&ApiError::PathNotFound),
        }
        return exchange.outcome;
    };
    exchange.outcome.route = found.route;
    let sinks = Sinks { counts, subscription, events, traits: traits.as_ref() };
    if let Err(error) = dispatch(&mut exchange, &found, request, readers, sinks) {
        exchange.send_error(&error);
    }
    exchange.outcome
}

/// What a request leaves for the reactor, besides its response.
struct Sinks<'s> {
    counts: &'s mut Counts,
    subscription: &'s mut Option<StreamSubscription>,
    events: &'s mut ReceivedEvents,
    /// Kept traits; `None` without a store.
    traits: Option<&'s SharedView>,
}

/// Calls the handler of the route. The method is one of the route's.
fn dispatch<'a>(
    exchange: &mut Exchange<'a>,
    found: &'a route::Match<'_>,
    request: &'a mut Request<'_>,
    readers: &mut BodyReaders,
    sinks: Sinks<'_>,
) -> Result<(), ApiError<'a>> {
    let Sinks { counts, subscription, events, traits } = sinks;
    let method = request.method;
    let is_off = found.route == Route::Events && !exchange.settings.accepts_events;
    if is_off || (found.route.needs_traits() && traits.is_none()) {
        return Err(ApiError::PathNotFound);
    }
    if !found.methods.allow(method) {
        return Err(ApiError::MethodNotAllowed(found.methods));
    }
    let BodyReaders { gunzip, identity } = readers;
    let body = match body::is_read_by(found.route, method) {
        true => body::decode(exchange, request.body, request.coding, gunzip)?,
        false => &mut [],
    };
    match (found.route, method) {
        (Route::Flags, _) => flags::get(exchange, request.query),
        (Route::Identities, Method::Post) => match traits {
            None => identities::post(exchange, body, identity),
            Some(view) => kept::post(exchange, body, identity, view),
        },
        (Route::Identities, _) => match traits {
            None => identities::get(exchange, request.query),
            Some(view) => kept::get(exchange, request.query, view),
        },
        (Route::EnvironmentDocument, _) => document::get(exchange),
        (Route::Readiness, _) => health::readiness(exchange),
        (Route::Liveness, _) => health::liveness(exchange),
        (Route::Analytics, _) => analytics::version_1(exchange, body, counts),
        (Route::AnalyticsV2, _) => analytics::version_2(exchange, body, counts),
        (Route::BulkIdentities, _) => match traits {
            None => bulk::post(exchange, body),
            Some(view) => bulk::post_kept(exchange, body, view),
        },
        (Route::Traits, _) => match traits {
            None => bulk::post_trait(exchange, body),
            Some(view) => traits::post(exchange, body, view),
        },
        (Route::TraitsBulk | Route::TraitsIncrement | Route::KeptTraits, _) => {
            traits::dispatch(exchange, (found.route, method), request.query, body, traits)
        }
        (Route::Events, _) => events::post(exchange, body, events),
        (Route::EventStream, _) => {
            *subscription = sse::open(exchange, &found.parameter, StreamProtocol::Flagsmith)?;
            Ok(())
        }
        (Route::OfrepEventStream, _) => {
            *subscription = sse::open(exchange, &found.parameter, StreamProtocol::Ofrep)?;
            Ok(())
        }
        (Route::OfrepFlags, _) => ofrep::evaluate_all(exchange, body, traits),
        (Route::OfrepFlag, _) => ofrep::evaluate_one(exchange, &found.parameter, body, traits),
        (Route::Explain, _) => explain::post(exchange, request.query, body, identity, traits),
        (Route::OpenApi, _) => assets::openapi(exchange),
        (Route::Docs, _) => assets::docs(exchange),
        (Route::Demo, _) => assets::demo(exchange, &found.parameter),
        (Route::Root, _) => assets::root(exchange),
        (Route::Unknown, _) => Err(ApiError::PathNotFound),
    }
}
