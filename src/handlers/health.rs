//! The health routes of the main port.
use crate::handlers::errors::ApiError;
use crate::handlers::exchange::Exchange;
use crate::handlers::readiness;
use crate::handlers::readiness::Audience;
use crate::http::{Body, Status};

/// `GET /health`, `/proxy/health` and `/proxy/health/readiness`.
pub fn readiness<'a>(exchange: &mut Exchange<'a>) -> Result<(), ApiError<'a>> {
    let (rules, snapshot) = (&exchange.settings.readiness, exchange.snapshot);
    let reason = rules.reason(snapshot);
    let status = Status(if reason.is_some() { 503 } else { 200 });
    exchange.vary();
    exchange.add_headers(b"cache-control: no-store\r\n");
    exchange.send_with(status, |_, out| readiness::write(rules, snapshot, reason, Audience::Public, out));
    Ok(())
}

/// `GET /proxy/health/liveness`: always 200 with an empty body.
pub fn liveness<'a>(exchange: &mut Exchange<'a>) -> Result<(), ApiError<'a>> {
    exchange.vary();
    exchange.send(Status(200), None, Body::Empty);
    Ok(())
}
