//! Callers: connections in memory, whose bytes arrive in pieces and at times that the seed draws.
//!
//! The connection is served by the code of production (`reactor::protocol::serve`): only the socket and the
//! executor are played.
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use edge_proxy::clock;
use edge_proxy::http::hpack::decoder::HpackDecoder;
use edge_proxy::http::hpack::encoder;
use edge_proxy::reactor::context::Reactor;
use edge_proxy::reactor::protocol;
use edge_proxy::reactor::transport::{Sendable, Transport};

/// Both directions of one connection.
#[derive(Debug, Default)]
pub struct Pipe {
    to_server: Vec<u8>,
    client_closed: bool,
    from_server: Vec<u8>,
    server_closed: bool,
    /// How much the client takes before it stops reading.
    window: usize,
    /// How much one read or one write transfers.
    piece: usize,
    waker: Option<Waker>,
}

impl Pipe {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// The server's end.
struct PlayedTransport(Rc<RefCell<Pipe>>);

impl Drop for PlayedTransport {
    fn drop(&mut self) {
        self.0.borrow_mut().server_closed = true;
    }
}

impl Transport for PlayedTransport {
    async fn read(&mut self, mut buffer: BytesMut) -> (io::Result<usize>, BytesMut) {
        poll_fn(|context| {
            let mut pipe = self.0.borrow_mut();
            if pipe.to_server.is_empty() && !pipe.client_closed {
                pipe.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            let free = buffer.capacity() - buffer.len();
            let count = pipe.to_server.len().min(free).min(pipe.piece);
            buffer.extend_from_slice(&pipe.to_server[..count]);
            pipe.to_server.drain(..count);
            Poll::Ready((Ok(count), std::mem::take(&mut buffer)))
        })
        .await
    }

    async fn readable(&mut self) -> io::Result<()> {
        poll_fn(|context| {
            let mut pipe = self.0.borrow_mut();
            if pipe.to_server.is_empty() && !pipe.client_closed {
                pipe.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    fn now(&self) -> SystemTime {
        clock::wall()
    }

    async fn write<B: Sendable>(&mut self, bytes: B, start: usize) -> (io::Result<usize>, B) {
        let result = poll_fn(|context| {
            let mut pipe = self.0.borrow_mut();
            if pipe.client_closed {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            if pipe.window == 0 {
                pipe.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            let left = &bytes.as_ref()[start..];
            let count = left.len().min(pipe.window).min(pipe.piece);
            pipe.from_server.extend_from_slice(&left[..count]);
            pipe.window -= count;
            Poll::Ready(Ok(count))
        })
        .await;
        (result, bytes)
    }

    async fn shutdown_write(&mut self) -> io::Result<()> {
        self.0.borrow_mut().server_closed = true;
        Ok(())
    }
}

struct WakeFlag(AtomicBool);

impl Wake for WakeFlag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub fields: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

/// A request that was sent in whole.
#[derive(Clone, Debug)]
pub struct Sent<T> {
    pub what: T,
    /// When its last byte was sent.
    pub at: Duration,
    stream: u32,
}

/// The client's view of one connection; `T` is what it remembers of each request.
pub struct Caller<T> {
    pipe: Rc<RefCell<Pipe>>,
    task: Option<Pin<Box<dyn Future<Output = ()>>>>,
    is_served: bool,
    is_in_request: bool,
    is_unacknowledged: bool,
    /// An answer said that no other one follows (RFC 9112 9.6).
    pub is_last_answered: bool,
    flag: Arc<WakeFlag>,
    unread: Vec<u8>,
    /// Not answered yet, in order.
    pub waiting: Vec<Sent<T>>,
    h2: Option<Http2State>,
    pub opened: Duration,
    /// Bytes of an event stream after its head.
    pub stream: Option<Vec<u8>>,
}

#[derive(Default)]
struct Http2State {
    decoder: HpackDecoder,
    next: u32,
    partial: BTreeMap<u32, Answer>,
}

impl<T: Clone> Caller<T> {
    /// Connects; `window`: how many bytes it reads without [`read_more`](Self::read_more). Nothing is read
    /// from it before [`serve`](Self::serve).
    pub fn connect(piece: usize, window: usize, is_http2: bool, now: Duration) -> Self {
        let pipe = Rc::new(RefCell::new(Pipe { window, piece: piece.max(1), ..Pipe::default() }));
        let mut caller = Self {
            pipe,
            task: None,
            is_served: false,
            is_in_request: false,
            is_unacknowledged: false,
            is_last_answered: false,
            flag: Arc::new(WakeFlag(AtomicBool::new(true))),
            unread: Vec::new(),
            waiting: Vec::new(),
            h2: None,
            opened: now,
            stream: None,
        };
        if is_http2 {
            caller.h2 = Some(Http2State { next: 1, ..Http2State::default() });
            let mut preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            preface.extend(frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]));
            preface.extend(frame(8, 0, 0, &0x7000_0000_u32.to_be_bytes()));
            caller.send_bytes(&preface);
        }
        caller
    }

    /// A reactor serves the connection.
    pub fn serve(&mut self, reactor: &Rc<Reactor>) {
        let transport = PlayedTransport(Rc::clone(&self.pipe));
        let guard = reactor.connections.enter();
        self.task = Some(Box::pin(protocol::serve(Rc::clone(reactor), guard, transport, None)));
        self.is_served = true;
        self.flag.0.store(true, Ordering::Relaxed);
    }

    /// Whether a reactor serves the connection, or has served it.
    pub fn is_served(&self) -> bool {
        self.is_served
    }

    /// The bytes of a request; for HTTP/2 its frames.
    pub fn encode(&mut self, method: &str, target: &str, fields: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
        let Some(h2) = &mut self.h2 else {
            let mut head = format!("{method} {target} HTTP/1.1\r\nhost: proxy\r\n");
            fields.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
            if !body.is_empty() {
                head.push_str(&format!("content-length: {}\r\n", body.len()));
            }
            head.push_str("\r\n");
            return [head.as_bytes(), body].concat();
        };
        let mut block = Vec::new();
        let pseudo = [(":method", method), (":scheme", "http"), (":authority", "proxy"), (":path", target)];
        let all = pseudo.iter().chain(fields);
        all.for_each(|(name, value)| encoder::field(name.as_bytes(), value.as_bytes(), &mut block));
        let stream = h2.next;
        h2.next += 2;
        let mut bytes = frame(1, if body.is_empty() { 5 } else { 4 }, stream, &block);
        if !body.is_empty() {
            bytes.extend(frame(0, 1, stream, body));
        }
        bytes
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        let mut pipe = self.pipe.borrow_mut();
        pipe.to_server.extend_from_slice(bytes);
        pipe.wake();
    }

    /// Sends a part of a request; `is_last`: a frame may follow it.
    pub fn send_part(&mut self, bytes: &[u8], is_last: bool) {
        self.send_bytes(bytes);
        self.is_in_request = !is_last;
        if is_last && std::mem::take(&mut self.is_unacknowledged) {
            self.acknowledge();
        }
    }

    /// Acknowledges the settings of the server, after the request that is being sent.
    fn acknowledge(&mut self) {
        match self.is_in_request {
            true => self.is_unacknowledged = true,
            false => self.send_bytes(&frame(4, 1, 0, &[])),
        }
    }

    /// The stream of the request that was encoded last.
    pub fn last_stream(&self) -> u32 {
        self.h2.as_ref().map_or(0, |h2| h2.next - 2)
    }

    /// The last byte of a request was sent.
    pub fn sent(&mut self, what: T, stream: u32, at: Duration) {
        self.waiting.push(Sent { what, at, stream });
    }

    /// The client reads on.
    pub fn read_more(&mut self, bytes: usize) {
        let mut pipe = self.pipe.borrow_mut();
        pipe.window += bytes;
        pipe.wake();
    }

    /// Whether the client has stopped to read.
    pub fn is_stalled(&self) -> bool {
        self.pipe.borrow().window == 0
    }

    pub fn close(&mut self) {
        let mut pipe = self.pipe.borrow_mut();
        pipe.client_closed = true;
        pipe.wake();
    }

    pub fn is_closed_by_client(&self) -> bool {
        self.pipe.borrow().client_closed
    }

    /// The server has shut down its side.
    pub fn is_closed(&self) -> bool {
        self.pipe.borrow().server_closed
    }

    /// The task of the connection has ended.
    pub fn has_ended(&self) -> bool {
        self.is_served && self.task.is_none()
    }

    /// Lets the server run until it waits. True if it did something.
    pub fn run(&mut self) -> bool {
        let waker = Waker::from(Arc::clone(&self.flag));
        let mut has_run = false;
        while self.flag.0.swap(false, Ordering::Relaxed) {
            let Some(task) = &mut self.task else { break };
            has_run = true;
            if task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                self.task = None;
            }
        }
        has_run
    }

    /// The process has ended: its connections with it.
    pub fn abort(&mut self) {
        self.is_served = true;
        self.task = None;
    }

    /// The answers that have arrived in whole, each with its request.
    ///
    /// # Errors
    /// The bytes are not those of the protocol.
    pub fn answers(&mut self) -> Result<Vec<(Sent<T>, Answer)>, String> {
        let arrived = std::mem::take(&mut self.pipe.borrow_mut().from_server);
        if let Some(stream) = &mut self.stream {
            stream.extend(arrived);
            return Ok(Vec::new());
        }
        self.unread.extend(arrived);
        let mut answers = Vec::new();
        if self.h2.is_some() {
            while let Some((stream, answer)) = self.next_of_http2()? {
                let place = self.waiting.iter().position(|sent| sent.stream == stream);
                let place = place.ok_or_else(|| format!("an answer on stream {stream}"))?;
                answers.push((self.waiting.remove(place), answer));
            }
            return Ok(answers);
        }
        while let Some((length, answer, is_stream)) = parse(&self.unread)? {
            self.unread.drain(..length);
            if answer.status == 100 {
                continue;
            }
            if self.waiting.is_empty() {
                // Such as 408: the request was not sent in whole.
                let is_expected = matches!(answer.status, 400..=499);
                if !is_expected {
                    return Err(format!("{} without a request", answer.status));
                }
                continue;
            }
            if is_stream {
                self.stream = Some(std::mem::take(&mut self.unread));
            }
            self.is_last_answered |= answer.fields.get("connection").is_some_and(|value| value == "close");
            answers.push((self.waiting.remove(0), answer));
        }
        Ok(answers)
    }

    fn next_of_http2(&mut self) -> Result<Option<(u32, Answer)>, String> {
        loop {
            if self.unread.len() < 9 {
                return Ok(None);
            }
            let length = usize::from(self.unread[0]) << 16
                | usize::from(self.unread[1]) << 8
                | usize::from(self.unread[2]);
            if self.unread.len() < 9 + length {
                return Ok(None);
            }
            let (kind, flags) = (self.unread[3], self.unread[4]);
            let stream = u32::from_be_bytes(self.unread[5..9].try_into().expect("four bytes"));
            let payload: Vec<u8> = self.unread.drain(..9 + length).skip(9).collect();
            let Some(h2) = &mut self.h2 else { return Ok(None) };
            match kind {
                0 => h2.partial.entry(stream).or_default().body.extend(payload),
                1 => {
                    let answer = h2.partial.entry(stream).or_default();
                    let decoded = h2.decoder.decode(&payload, |name, value| {
                        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                        match name {
                            b":status" => answer.status = text(value).parse().unwrap_or(0),
                            _ => drop(answer.fields.insert(text(name), text(value))),
                        }
                        true
                    });
                    if decoded.is_err() {
                        return Err("a header block that does not decode".into());
                    }
                }
                3 => return Err(format!("stream {stream} was reset")),
                4 if flags & 1 == 0 => self.acknowledge(),
                7 if payload.get(4..8) != Some(&[0; 4]) => {
                    return Err(format!("GOAWAY with an error: {payload:?}"));
                }
                _ => {}
            }
            if matches!(kind, 0 | 1) && flags & 1 != 0 {
                let Some(h2) = &mut self.h2 else { return Ok(None) };
                return Ok(h2.partial.remove(&stream).map(|answer| (stream, answer)));
            }
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The first response of HTTP/1.1: its length, and whether it is an event stream.
fn parse(bytes: &[u8]) -> Result<Option<(usize, Answer, bool)>, String> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| "a head that is not text")?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
    let status = status.and_then(|line| line.get(..3)?.parse().ok());
    let status: u16 = status.ok_or_else(|| format!("not a status line in {head:?}"))?;
    let fields = lines.filter_map(|line| line.split_once(": "));
    let fields: BTreeMap<String, String> =
        fields.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
    let is_stream = fields.get("content-type").is_some_and(|kind| kind.starts_with("text/event-stream"));
    let length = fields.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    if is_stream {
        return Ok(Some((end + 4, Answer { status, fields, body: Vec::new() }, true)));
    }
    let total = end + 4 + length;
    if bytes.len() < total {
        return Ok(None);
    }
    let body = bytes[end + 4..total].to_vec();
    Ok(Some((total, Answer { status, fields, body }, false)))
}
