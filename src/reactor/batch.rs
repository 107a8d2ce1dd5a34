//! A batch: the responses to all complete requests in a connection's buffer, sent in one write.
//!
//! Synchronous. A panic in a request handler fails only that request, with status 500.
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};

use crate::channel::{EventResult, Lease};
use crate::handlers;
use crate::handlers::sse::StreamSubscription;
use crate::handlers::{Exceeded, RequestOutcome};
use crate::http::route::Route;
use crate::http::{
    Fields, ParseError, Progress, Request, RequestReader, ResponseContext, ResponseWriter, Sdk,
};
use crate::limits::BATCH_BYTES_MAX;
use crate::reactor::access_log::{AccessOutcome, DeferredAccess};
use crate::reactor::client_address::ClientAddress;
use crate::reactor::connections::Phase;
use crate::reactor::context::{Reactor, RequestState};
use crate::reactor::kept_traits::KeptTraits;
#[cfg(test)]
use crate::reactor::options::InjectedPanic;
use crate::reactor::posts::PostTicket;
use crate::reactor::request_spans;
use crate::reactor::request_spans::{RequestSpans, SpanOutcome};
use crate::spans::TraceSpan;

/// What a connection writes, and what it does after that.
pub struct Batch {
    pub bytes: Vec<u8>,
    /// The end of a large body, to be written after `bytes`, and the snapshot that it belongs to.
    pub tail: Option<(Bytes, Rc<Lease>)>,
    pub next: Next,
    /// Set if the last response is the head of an event stream.
    pub subscription: Option<Box<StreamSubscription>>,
    /// Follows `bytes`, once the events of its request are written.
    pub stored: Option<Box<StoredResponse>>,
    /// How many requests the batch answers.
    pub requests: u64,
    /// Whether one of them had a valid key.
    pub has_key: bool,
}

/// The response to a request whose events are being written.
#[derive(Debug)]
pub struct StoredResponse {
    pub ticket: PostTicket,
    accepted: RenderedResponse,
    /// The response if the events are not written.
    refusal: RenderedResponse,
    events: u64,
    client: Option<Client>,
    access: Option<DeferredAccess>,
    span: Option<Box<TraceSpan>>,
}

/// A whole response.
#[derive(Debug, Default)]
pub struct RenderedResponse {
    pub bytes: Vec<u8>,
    /// HTTP/2: where its body begins.
    pub body_start: usize,
}

/// The number of the environment whose key was sent, and the SDK.
type Client = (u64, Sdk);

/// What a connection does after a batch is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Read more bytes, within the timeout of this phase.
    Read(Phase),
    /// Continue with the buffer: it may contain more requests.
    Advance,
    /// Shut down.
    Close,
}

impl RenderedResponse {
    /// Takes the response that `output` ends with.
    fn take(output: &mut ResponseWriter, start: usize) -> Self {
        let body_start = output.body_start.saturating_sub(start);
        Self { bytes: output.bytes.split_off(start), body_start }
    }
}

impl StoredResponse {
    /// The response by the result of the ticket; counts and logs the request.
    pub fn complete(self, result: EventResult, reactor: &Reactor) -> RenderedResponse {
        let (status, response) = match result {
            Ok(()) => {
                reactor.metrics.events_accepted.add(self.events);
                (202, self.accepted)
            }
            Err(refusal) => {
                reactor.metrics.events_refused(refusal, self.events);
                (503, self.refusal)
            }
        };
        count_answer(reactor, Route::Events, self.client, status);
        if let (Some(access), Some(deferred)) = (&reactor.access, self.access) {
            let dropped = access.write_deferred(&reactor.log, deferred, status, response.bytes.len());
            reactor.metrics.access_dropped.add(dropped);
        }
        if let (Some(spans), Some(span)) = (&reactor.spans, self.span) {
            spans.record_deferred(span, status);
        }
        response
    }

    /// Its memory, bytes.
    pub fn memory(&self) -> usize {
        self.accepted.bytes.capacity() + self.refusal.bytes.capacity()
    }
}

fn count_answer(reactor: &Reactor, route: Route, client: Option<Client>, status: u16) {
    reactor.metrics.answered(route, status);
    if let Some((number, sdk)) = client {
        reactor.metrics.answered_for(number, sdk, status);
    }
}

impl Batch {
    fn empty(next: Next) -> Self {
        Self {
            bytes: Vec::new(),
            tail: None,
            next,
            subscription: None,
            stored: None,
            requests: 0,
            has_key: false,
        }
    }

    /// Answers the complete requests in the buffer, until the responses fill one write. `requests_left`: how
    /// many more requests the connection may send.
    pub fn answer(
        reactor: &Reactor,
        reader: &mut RequestReader,
        buffer: &mut BytesMut,
        peer: Option<IpAddr>,
        requests_left: &mut u64,
        now: SystemTime,
    ) -> Self {
        let lease = reactor.worker_state.lease.borrow();
        // Connections are accepted only once there is a snapshot.
        let Some(snapshot) = lease.as_ref() else { return Self::empty(Next::Close) };
        let (state, settings) =
            (&mut *reactor.request_state.borrow_mut(), reactor.worker_state.settings.borrow());
        let (requests, has_begun) = (0, false);
        let settings = &settings;
        let stored = None;
        let mut writer = BatchWriter {
            reactor,
            settings,
            snapshot,
            state,
            peer,
            now,
            has_begun,
            requests,
            requests_left,
            stored,
            has_key: false,
        };
        let next = writer.run(reader, buffer);
        let (requests, has_key, stored) = (writer.requests, writer.has_key, writer.stored.map(Box::new));
        let output = &mut state.output;
        output.close = false;
        let tail = output.tail.take().map(|tail| (tail, snapshot.clone()));
        let subscription = state.handler.take_subscription().map(Box::new);
        Self { bytes: std::mem::take(&mut output.bytes), tail, next, subscription, stored, requests, has_key }
    }

    /// An error response in its own buffer, after which the connection closes.
    pub fn error(
        reactor: &Reactor,
        reader: &RequestReader,
        buffer: &[u8],
        error: ParseError,
        now: SystemTime,
    ) -> Self {
        reactor.count_error(error);
        let mut output = ResponseWriter::default();
        output.set_date(now);
        let lines =
            reactor.worker_state.settings.borrow().error_headers(reader.error_fields(buffer).as_ref());
        output.reject(reader.context(), error, &lines);
        Self { bytes: output.bytes, ..Self::empty(Next::Close) }
    }
}

/// A batch while it is being answered.
pub struct BatchWriter<'a> {
    pub reactor: &'a Reactor,
    pub settings: &'a handlers::HandlerSettings,
    pub snapshot: &'a Rc<Lease>,
    pub state: &'a mut RequestState,
    pub peer: Option<IpAddr>,
    /// The time of all requests of the batch.
    pub now: SystemTime,
    pub has_begun: bool,
    pub requests: u64,
    pub requests_left: &'a mut u64,
    pub stored: Option<StoredResponse>,
    /// Whether a request had a valid key.
    pub has_key: bool,
}

impl BatchWriter<'_> {
    fn run(&mut self, reader: &mut RequestReader, buffer: &mut BytesMut) -> Next {
        loop {
            match reader.advance(buffer) {
                Ok(Progress::Idle) => return Next::Read(Phase::Idle),
                Ok(Progress::Head) => return Next::Read(Phase::Head),
                Ok(Progress::Body { .. }) if self.is_denied(reader) => self.deny(reader, false),
                Ok(Progress::Ready) if self.is_denied(reader) => self.deny(reader, true),
                Ok(Progress::Body { expects_continue }) => {
                    if expects_continue {
                        self.begin();
                        self.state.output.bytes.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                    }
                    return Next::Read(Phase::Body);
                }
                Ok(Progress::Ready) => self.answer(reader, buffer),
                Err(error) => self.write_error(reader, buffer, error),
            }
            let output = &self.state.output;
            if output.close {
                return Next::Close;
            }
            reader.consume(buffer);
            let is_last = output.tail.is_some() || self.stored.is_some();
            if is_last || output.bytes.len() >= BATCH_BYTES_MAX {
                return Next::Advance;
            }
        }
    }

    /// Before the first response: takes a buffer and sets the date.
    pub fn begin(&mut self) {
        if !self.has_begun {
            self.has_begun = true;
            self.state.output.bytes = self.reactor.spare_buffers.take();
            self.state.output.set_date(self.now);
        }
    }

    fn write_error(&mut self, reader: &RequestReader, buffer: &[u8], error: ParseError) {
        self.refuse(reader.context(), reader.error_fields(buffer).as_ref(), error);
    }

    /// Answers a request with an error. `fields`: see
    /// [`RequestReader::error_fields`](crate::http::RequestReader::error_fields).
    pub fn refuse(&mut self, context: ResponseContext, fields: Option<&Fields<'_>>, error: ParseError) {
        self.begin();
        self.requests += 1;
        self.reactor.count_error(error);
        let lines = self.settings.error_headers(fields);
        self.state.output.reject(context, error, &lines);
        if matches!(error, ParseError::HeadTooLarge | ParseError::TargetTooLong) {
            self.reactor.log_large_head(error);
        }
    }

    fn is_denied(&self, reader: &RequestReader) -> bool {
        self.settings.address_lists.is_some() && reader.head().is_some_and(|request| self.excludes(&request))
    }

    /// Whether `server.allow_list` or `server.deny_list` excludes the client. Health is for every client.
    pub fn excludes(&self, request: &Request<'_>) -> bool {
        let Some(lists) = &self.settings.address_lists else { return false };
        let client = self.reactor.addresses.of(self.peer, request.fields.forwarded_for);
        let is_health = || self.settings.route(request.path).is_some_and(|found| found.route.is_health());
        !lists.allows(client.unwrap_or(ClientAddress::LOCAL)) && !is_health()
    }

    /// Answers 403. The connection closes if the body has not arrived.
    fn deny(&mut self, reader: &RequestReader, is_whole: bool) {
        let Some(mut request) = reader.head() else { return };
        request.keep_alive &= is_whole;
        self.deny_request(request);
    }

    /// Answers 403.
    pub fn deny_request(&mut self, mut request: Request<'_>) {
        self.begin();
        self.requests += 1;
        let error = ParseError::Forbidden;
        self.reactor.count_error(error);
        *self.requests_left = self.requests_left.saturating_sub(1);
        request.keep_alive &= *self.requests_left > 0 && !self.reactor.is_draining();
        let start_bytes = self.state.output.bytes.len();
        let lines = self.settings.error_headers(Some(&request.fields));
        self.state.output.reject(request.context(), error, &lines);
        let bytes = self.state.output.bytes.len() - start_bytes;
        self.write_access(&request, error.status().0, bytes, None);
        if let Some(spans) = &self.reactor.spans {
            let outcome = RequestOutcome { status: error.status().0, ..RequestOutcome::NONE };
            self.record_span(spans, &request, &outcome);
        }
    }

    #[inline]
    fn record_span(&self, spans: &RequestSpans, request: &Request<'_>, outcome: &RequestOutcome) {
        if let Some(trace) = spans.sample(request) {
            spans.record(trace, request, self.span_outcome(request, outcome));
        }
    }

    #[cold]
    fn span_outcome(&self, request: &Request<'_>, outcome: &RequestOutcome) -> SpanOutcome<'_> {
        let slot = outcome.slot.and_then(|slot| self.snapshot.slots.get(slot));
        SpanOutcome {
            status: outcome.status,
            route: outcome.route,
            began: self.now,
            client: self.reactor.addresses.of(self.peer, request.fields.forwarded_for),
            environment: slot.map(|slot| &*slot.client_side_key),
            is_tls: self.peer.is_some() && self.reactor.worker_state.tls.borrow().is_some(),
        }
    }

    /// The span of a request whose response is not known yet.
    fn deferred_span(&self, request: &Request<'_>, outcome: &RequestOutcome) -> Option<Box<TraceSpan>> {
        let trace = self.reactor.spans.as_ref()?.sample(request)?;
        let outcome = self.span_outcome(request, &RequestOutcome { status: 0, ..*outcome });
        Some(Box::new(request_spans::span(trace, request, outcome)))
    }

    fn write_access(&self, request: &Request<'_>, status: u16, bytes: usize, slot: Option<usize>) {
        let Some(access) = &self.reactor.access else { return };
        let outcome = self.access_outcome(status, bytes, slot);
        let client = self.reactor.addresses.of(self.peer, request.fields.forwarded_for);
        let dropped = access.write(&self.reactor.log, client, request, &outcome);
        self.reactor.metrics.access_dropped.add(dropped);
    }

    fn access_outcome(&self, status: u16, bytes: usize, slot: Option<usize>) -> AccessOutcome<'_> {
        let environment = slot.and_then(|slot| self.snapshot.slots.get(slot));
        let environment = environment.map(|slot| &*slot.client_side_key);
        AccessOutcome { status, bytes, began: self.now, environment }
    }

    /// The access record of a request whose response is not known yet.
    fn deferred_access(&self, request: &Request<'_>, slot: Option<usize>) -> Option<DeferredAccess> {
        let access = self.reactor.access.as_ref()?;
        let outcome = self.access_outcome(0, 0, slot);
        let client = self.reactor.addresses.of(self.peer, request.fields.forwarded_for);
        access.defer(&self.reactor.log, client, request, &outcome)
    }

    fn answer(&mut self, reader: &mut RequestReader, buffer: &mut BytesMut) {
        self.begin();
        let is_last = reader.is_last(buffer);
        let Some(request) = reader.request(buffer) else {
            return self.write_error(reader, buffer, ParseError::Internal);
        };
        self.state.output.is_only_response = self.state.output.bytes.is_empty() && is_last;
        self.answer_request(request);
    }

    /// Answers a request.
    pub fn answer_request(&mut self, mut request: Request<'_>) {
        self.requests += 1;
        *self.requests_left = self.requests_left.saturating_sub(1);
        request.keep_alive &= *self.requests_left > 0 && !self.reactor.is_draining();
        let RequestState { handler, output } = &mut *self.state;
        let start_bytes = output.bytes.len();
        let (settings, snapshot, now) = (self.settings, self.snapshot, self.now);
        self.reactor.worker_state.traits.iter().for_each(KeptTraits::receive_new);
        let answered = catch_unwind(AssertUnwindSafe(|| {
            #[cfg(test)]
            self.reactor.panic_if_injected(InjectedPanic::Request);
            handlers::handle(settings, snapshot, now, &mut request, handler, output)
        }));
        let outcome = match answered {
            Ok(outcome) => outcome,
            Err(_) => {
                self.reactor.log_panic("request_panicked", request.fields.traceparent);
                // The handler state may be inconsistent.
                handler.reset_after_panic();
                output.bytes.truncate(start_bytes);
                output.tail = None;
                let lines = settings.error_headers(Some(&request.fields));
                output.reject(request.context(), ParseError::Internal, &lines);
                RequestOutcome { status: 500, ..RequestOutcome::NONE }
            }
        };
        self.reactor.worker_state.traits.iter().for_each(KeptTraits::send);
        let exceeded = handler.take_exceeded(&outcome);
        if exceeded != Exceeded::NONE {
            let traceparent = request.fields.traceparent;
            self.reactor.record_exceeded(exceeded, snapshot, &outcome, handler, traceparent);
        }
        let outcome = match outcome.route {
            Route::Events => self.store_events(start_bytes, &request, outcome),
            _ => outcome,
        };
        let slot = outcome.slot.and_then(|slot| snapshot.slots.get(slot));
        self.has_key |= slot.is_some();
        let client = slot.map(|slot| (slot.number, Sdk::of(&request.fields)));
        if self.stored.is_some() {
            // Counted and logged when the result is known.
            let access = self.deferred_access(&request, outcome.slot);
            let span = self.deferred_span(&request, &outcome);
            if let Some(stored) = &mut self.stored {
                (stored.client, stored.access, stored.span) = (client, access, span);
            }
            return;
        }
        count_answer(self.reactor, outcome.route, client, outcome.status);
        if let Some(error) = outcome.reject {
            self.reactor.metrics.rejected(error);
        }
        if outcome.errors_truncated {
            self.reactor.metrics.errors_truncated.add(1);
        }
        if outcome.is_delta {
            self.reactor.metrics.deltas_sent.add(1);
        }
        let output = &self.state.output;
        if self.reactor.access.is_some() {
            let bytes = output.bytes.len() - start_bytes + output.tail.as_ref().map_or(0, Bytes::len);
            self.write_access(&request, outcome.status, bytes, outcome.slot);
        }
        if let Some(spans) = &self.reactor.spans {
            self.record_span(spans, &request, &outcome);
        }
    }

    /// Sends the events of the last request to be written. Its response, rendered from `start_bytes` on, is
    /// taken from the output and waits for the result in `stored`.
    fn store_events(
        &mut self,
        start_bytes: usize,
        request: &Request<'_>,
        outcome: RequestOutcome,
    ) -> RequestOutcome {
        let RequestState { handler, output } = &mut *self.state;
        let received = handler.take_events();
        self.reactor.metrics.events_rejected(&received.rejected);
        let Some(post) = received.post else { return outcome };
        let events = post.count();
        let accepted = RenderedResponse::take(output, start_bytes);
        let lines = self.settings.error_headers(Some(&request.fields));
        handlers::write_not_stored(request.context(), &lines, output);
        match self.reactor.worker_state.posts.send(post) {
            Ok(ticket) => {
                let refusal = RenderedResponse::take(output, start_bytes);
                let (client, access, span) = (None, None, None);
                self.stored =
                    Some(StoredResponse { ticket, accepted, refusal, events, client, access, span });
                outcome
            }
            Err(refusal) => {
                self.reactor.metrics.events_refused(refusal, events);
                RequestOutcome { status: 503, ..outcome }
            }
        }
    }
}
