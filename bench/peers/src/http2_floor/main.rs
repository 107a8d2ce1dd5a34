//! The floor of HTTP/2: the cost of the kernel, of frames and of decoding request heads.
//!
//! `http2-floor PORT ANSWER`: answers each request with the frames of the file, a HEADERS and DATA frames of any
//! stream, as the proxy has sent them; only the stream's number is written anew. It decodes the header block
//! of each request (without a memo), keeps the windows, answers SETTINGS and PING, and writes once for each
//! connection and turn of its loop, from two buffers that are swapped. It looks at no field besides
//! `:path`. One thread, one ring, as `floor`.
use std::collections::VecDeque;
use std::os::fd::AsRawFd;

use io_uring::types::{Fd, Fixed};
use io_uring::{IoUring, cqueue, opcode};

use crate::hpack::{Decoder, Huffman};
use crate::ring::{Buffers, FILES_MAX, listen, push, receive};

mod hpack;
#[path = "../ring.rs"]
mod ring;

/// The kind of a completion, in the low bits of its user data; the file's index is above.
const ACCEPT: u64 = 0;
const RECEIVE: u64 = 1;
const SEND: u64 = 2;
const CLOSE: u64 = 3;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const HAS_PRIORITY: u8 = 0x20;
const INITIAL_WINDOW_SIZE: u16 = 4;
const INITIAL_WINDOW: i64 = 65_535;
/// Received DATA is reported once there is this much.
const CREDIT: u32 = 32 * 1024;

/// The frames of an answer.
struct Answer {
    bytes: Vec<u8>,
    /// Where the stream's number is written.
    numbers: Vec<usize>,
    /// What it takes of the windows.
    body_bytes: i64,
}

impl Answer {
    fn new(bytes: Vec<u8>) -> Self {
        let (mut numbers, mut body_bytes, mut at) = (Vec::new(), 0, 0);
        while let Some(frame) = Frame::read(&bytes[at..]) {
            numbers.push(at + FRAME_HEAD_BYTES - 4);
            if frame.kind == DATA {
                body_bytes += frame.payload.len() as i64;
            }
            at += FRAME_HEAD_BYTES + frame.payload.len();
        }
        assert_eq!(at, bytes.len(), "the answer is whole frames");
        Self { bytes, numbers, body_bytes }
    }

    fn append(&self, stream: u32, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        for number in &self.numbers {
            out[start + number..start + number + 4].copy_from_slice(&stream.to_be_bytes());
        }
    }
}

struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let &[a, b, c, kind, flags, ..] = bytes else { return None };
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        let payload = bytes.get(FRAME_HEAD_BYTES..FRAME_HEAD_BYTES + length)?;
        let stream = u32::from_be_bytes(bytes[5..FRAME_HEAD_BYTES].try_into().ok()?);
        Some(Self { kind, flags, stream, payload })
    }

    fn number(&self) -> u32 {
        self.payload.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes)) & 0x7fff_ffff
    }
}

fn append_frame(kind: u8, flags: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&[0, 0, payload.len() as u8, kind, flags, 0, 0, 0, 0]);
    out.extend_from_slice(payload);
}

struct Connection {
    /// An incomplete frame.
    rest: Vec<u8>,
    out: Vec<u8>,
    /// What the kernel sends.
    sent: Vec<u8>,
    is_sending: bool,
    is_in_turn: bool,
    is_closing: bool,
    has_preface: bool,
    decoder: Decoder,
    window: i64,
    stream_window: i64,
    credit: u32,
    /// Streams that wait for the window of the connection.
    blocked: VecDeque<u32>,
}

impl Connection {
    fn new() -> Self {
        let mut out = Vec::new();
        append_frame(SETTINGS, 0, b"", &mut out);
        Self {
            rest: Vec::new(),
            out,
            sent: Vec::new(),
            is_sending: false,
            is_in_turn: false,
            is_closing: false,
            has_preface: false,
            decoder: Decoder::default(),
            window: INITIAL_WINDOW,
            stream_window: INITIAL_WINDOW,
            credit: 0,
            blocked: VecDeque::new(),
        }
    }

    fn receive(&mut self, received: &[u8], huffman: &Huffman, answer: &Answer) -> Option<()> {
        if self.rest.is_empty() {
            let read = self.frames(received, huffman, answer)?;
            self.rest.extend_from_slice(&received[read..]);
            return Some(());
        }
        let mut rest = std::mem::take(&mut self.rest);
        rest.extend_from_slice(received);
        let read = self.frames(&rest, huffman, answer)?;
        rest.drain(..read);
        self.rest = rest;
        Some(())
    }

    /// Handles the whole frames; returns their bytes. `None`: the client breaks the protocol.
    fn frames(&mut self, bytes: &[u8], huffman: &Huffman, answer: &Answer) -> Option<usize> {
        let mut at = 0;
        if !self.has_preface {
            if bytes.len() < PREFACE.len() {
                return Some(0);
            }
            self.has_preface = true;
            at = bytes.starts_with(PREFACE).then_some(PREFACE.len())?;
        }
        while let Some(frame) = Frame::read(&bytes[at..]) {
            at += FRAME_HEAD_BYTES + frame.payload.len();
            self.frame(&frame, huffman, answer)?;
        }
        Some(at)
    }

    fn frame(&mut self, frame: &Frame<'_>, huffman: &Huffman, answer: &Answer) -> Option<()> {
        let is_end = frame.flags & END_STREAM != 0;
        match frame.kind {
            HEADERS => {
                let mut block = frame.payload;
                if frame.flags & PADDED != 0 {
                    let (padding, rest) = block.split_first()?;
                    block = rest.get(..rest.len().checked_sub(usize::from(*padding))?)?;
                }
                if frame.flags & HAS_PRIORITY != 0 {
                    block = block.get(5..)?;
                }
                let mut has_path = frame.flags & END_HEADERS == 0;
                self.decoder.decode(huffman, block, |name, value| {
                    has_path |= name == b":path" && value.starts_with(b"/");
                })?;
                has_path.then_some(())?;
                if is_end {
                    self.answer(frame.stream, answer)?;
                }
            }
            DATA => {
                self.credit += frame.payload.len() as u32;
                if self.credit >= CREDIT {
                    append_frame(WINDOW_UPDATE, 0, &self.credit.to_be_bytes(), &mut self.out);
                    self.credit = 0;
                }
                if is_end {
                    self.answer(frame.stream, answer)?;
                }
            }
            WINDOW_UPDATE if frame.stream == 0 => {
                self.window += i64::from(frame.number());
                while self.window >= answer.body_bytes
                    && let Some(stream) = self.blocked.pop_front()
                {
                    self.answer(stream, answer)?;
                }
            }
            SETTINGS if frame.flags & ACK == 0 => {
                for setting in frame.payload.chunks_exact(6) {
                    if u16::from_be_bytes([setting[0], setting[1]]) == INITIAL_WINDOW_SIZE {
                        self.stream_window = i64::from(u32::from_be_bytes(setting[2..].try_into().ok()?));
                    }
                }
                append_frame(SETTINGS, ACK, b"", &mut self.out);
            }
            PING if frame.flags & ACK == 0 => append_frame(PING, ACK, frame.payload, &mut self.out),
            _ => {}
        }
        Some(())
    }

    fn answer(&mut self, stream: u32, answer: &Answer) -> Option<()> {
        // Streams have windows of the same size, so one that is too small stays so.
        (answer.body_bytes <= self.stream_window).then_some(())?;
        if self.window < answer.body_bytes {
            self.blocked.push_back(stream);
        } else {
            self.window -= answer.body_bytes;
            answer.append(stream, &mut self.out);
        }
        Some(())
    }
}

fn close(ring: &mut IoUring, connection: &mut Option<Box<Connection>>, file: u32) {
    if let Some(open) = connection
        && open.is_sending
    {
        // The kernel reads its buffer: it closes after that.
        open.is_closing = true;
        return;
    }
    *connection = None;
    push(ring, &opcode::Close::new(Fixed(file)).build().user_data(CLOSE));
}

/// Sends what was written in this turn.
fn flush(ring: &mut IoUring, connection: &mut Connection, file: u32) {
    connection.is_in_turn = false;
    if connection.is_sending || connection.out.is_empty() {
        return;
    }
    connection.sent.clear();
    std::mem::swap(&mut connection.sent, &mut connection.out);
    connection.is_sending = true;
    let (bytes, length) = (connection.sent.as_ptr(), connection.sent.len() as u32);
    let send = opcode::Send::new(Fixed(file), bytes, length).flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL);
    push(ring, &send.build().user_data(u64::from(file) << 2 | SEND));
}

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, place, answer] = arguments.as_slice() else { panic!("http2-floor PORT ANSWER") };
    let (answer, huffman) = (Answer::new(std::fs::read(answer)?), Huffman::new());
    let listener = listen(place)?;
    let mut ring = ring::ring()?;
    let mut buffers = Buffers::new(&ring)?;
    let accept = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).allocate_file_index(true).build();
    let accept = accept.user_data(ACCEPT);
    push(&mut ring, &accept);
    let mut connections: Vec<Option<Box<Connection>>> = (0..FILES_MAX).map(|_| None).collect();
    let (mut done, mut turn) = (Vec::new(), Vec::new());
    loop {
        ring.submit_and_wait(1)?;
        done.extend(ring.completion().map(|entry| (entry.user_data(), entry.result(), entry.flags())));
        for (data, result, flags) in done.drain(..) {
            let mut file = (data >> 2) as u32;
            match data & 3 {
                ACCEPT => {
                    if !cqueue::more(flags) {
                        push(&mut ring, &accept);
                    }
                    if result < 0 {
                        continue;
                    }
                    file = result as u32;
                    connections[result as usize] = Some(Box::new(Connection::new()));
                    receive(&mut ring, file, u64::from(file) << 2 | RECEIVE);
                }
                RECEIVE => {
                    let mut is_valid = result > 0 || result == -libc::ENOBUFS;
                    let connection = &mut connections[file as usize];
                    if let Some(buffer) = cqueue::buffer_select(flags) {
                        if let Some(open) = connection {
                            let received = buffers.received(buffer, result.max(0) as usize);
                            is_valid &= open.receive(received, &huffman, &answer).is_some();
                        }
                        buffers.give_back(buffer);
                    }
                    if !is_valid {
                        close(&mut ring, connection, file);
                        continue;
                    }
                    if !cqueue::more(flags) {
                        receive(&mut ring, file, u64::from(file) << 2 | RECEIVE);
                    }
                }
                SEND => {
                    let connection = &mut connections[file as usize];
                    if let Some(open) = connection {
                        open.is_sending = false;
                        if open.is_closing {
                            close(&mut ring, connection, file);
                            continue;
                        }
                    }
                }
                _ => continue,
            }
            if let Some(open) = &mut connections[file as usize]
                && !std::mem::replace(&mut open.is_in_turn, true)
            {
                turn.push(file);
            }
        }
        for file in turn.drain(..) {
            if let Some(open) = &mut connections[file as usize] {
                flush(&mut ring, open, file);
            }
        }
    }
}
