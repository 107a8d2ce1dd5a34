//! Metrics of HTTP/2.
use crate::http::h2::event::Http2Counts;
use crate::http::h2::frame::ErrorCode;
use crate::metrics::counter::Counter;

/// The metrics of the HTTP/2 connections of one reactor.
#[derive(Debug, Default)]
pub struct Http2Metrics {
    pub connections_opened: Counter,
    pub connections_closed: Counter,
    pub streams: Counter,
    pub resets_by_client: Counter,
    pub resets_by_server: Counter,
    /// Responses that waited for the peer's window.
    pub window_stalls: Counter,
    goaway: [Counter; ErrorCode::GOAWAY.len()],
}

impl Http2Metrics {
    /// Adds the events of a connection.
    pub fn add(&self, counts: &Http2Counts) {
        self.streams.add(counts.streams);
        self.resets_by_client.add(counts.resets_by_client);
        self.resets_by_server.add(counts.resets_by_server);
        self.window_stalls.add(counts.window_stalls);
        if let Some(code) = counts.goaway
            && let Some(index) = ErrorCode::GOAWAY.iter().position(|known| *known == code)
        {
            self.goaway[index].add(1);
        }
    }

    /// Connections that the server ended with this code (its index in `ErrorCode::GOAWAY`).
    pub fn goaway_of(&self, code: usize) -> u64 {
        self.goaway.get(code).map_or(0, Counter::value)
    }

    /// Currently open connections.
    pub fn connections_open(&self) -> u64 {
        self.connections_opened.value().saturating_sub(self.connections_closed.value())
    }
}
