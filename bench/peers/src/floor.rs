//! The floor: the cost of the kernel for a socket.
//!
//! `floor (PORT|PATH) ANSWER [--close]`: for whatever arrives on a connection (of a port, or of a unix socket at
//! a path) it sends the bytes of the file; with `--close` it then closes the connection. It
//! parses nothing: one receive is one request, which holds for a load generator that writes each
//! request at once and waits for the answer. One thread, one ring, everything the kernel offers:
//! multishot accept and receive, registered files, a ring of provided buffers, deferred task run.
//! No server that reads its requests can be cheaper; how near one comes is the measure.
use std::os::fd::AsRawFd;

use io_uring::types::{Fd, Fixed};
use io_uring::{IoUring, cqueue, opcode};

use crate::ring::{Buffers, listen, push};

mod ring;

/// The kind of a completion, in the low bits of its user data; the file's index is above.
const ACCEPT: u64 = 0;
const RECEIVE: u64 = 1;
const SEND: u64 = 2;
const CLOSE: u64 = 3;

fn receive(ring: &mut IoUring, file: u32) {
    ring::receive(ring, file, u64::from(file) << 2 | RECEIVE);
}

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let (place, answer, closes) = match arguments.as_slice() {
        [_, place, answer] => (place, answer, false),
        [_, place, answer, flag] if flag == "--close" => (place, answer, true),
        _ => panic!("floor (PORT|PATH) ANSWER [--close]"),
    };
    let answer: &'static [u8] = std::fs::read(answer)?.leak();
    let listener = listen(place)?;
    let mut ring = ring::ring()?;
    let mut buffers = Buffers::new(&ring)?;
    let accept = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).allocate_file_index(true).build();
    let accept = accept.user_data(ACCEPT);
    push(&mut ring, &accept);
    let mut done: Vec<(u64, i32, u32)> = Vec::new();
    loop {
        ring.submit_and_wait(1)?;
        done.extend(ring.completion().map(|entry| (entry.user_data(), entry.result(), entry.flags())));
        for (data, result, flags) in done.drain(..) {
            let file = (data >> 2) as u32;
            match data & 3 {
                ACCEPT => {
                    if result >= 0 {
                        receive(&mut ring, result as u32);
                    }
                    if !cqueue::more(flags) {
                        push(&mut ring, &accept);
                    }
                }
                RECEIVE => {
                    if let Some(buffer) = cqueue::buffer_select(flags) {
                        buffers.give_back(buffer);
                    }
                    if result > 0 {
                        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
                        let send =
                            opcode::Send::new(Fixed(file), answer.as_ptr(), answer.len() as u32).flags(flags);
                        push(&mut ring, &send.build().user_data(u64::from(file) << 2 | SEND));
                    } else if result != -libc::ENOBUFS {
                        push(&mut ring, &opcode::Close::new(Fixed(file)).build().user_data(CLOSE));
                        continue;
                    }
                    if !cqueue::more(flags) {
                        receive(&mut ring, file);
                    }
                }
                SEND if closes => {
                    // The receive under way ends with it, and closes the file.
                    let shutdown = opcode::Shutdown::new(Fixed(file), libc::SHUT_WR);
                    push(&mut ring, &shutdown.build().user_data(u64::from(file) << 2 | CLOSE));
                }
                // A failed send shows as the end of the stream on the receiving side.
                _ => {}
            }
        }
    }
}
