//! The floor: the cost of the kernel for a socket.
//!
//! `floor (PORT|PATH) ANSWER [--close]`: for whatever arrives on a connection (of a port, or of a unix socket at
//! a path) it sends the bytes of the file; with `--close` it then closes the connection. It
//! parses nothing: one receive is one request, which holds for a load generator that writes each
//! request at once and waits for the answer. One thread, one ring, everything the kernel offers:
//! multishot accept and receive, registered files, a ring of provided buffers, deferred task run.
//! No server that reads its requests can be cheaper; how near one comes is the measure.
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, Fd, Fixed};
use io_uring::{IoUring, cqueue, opcode, squeue};

const FILES_MAX: u32 = 16 * 1024;
const BUFFERS: u16 = 1024;
const BUFFER_BYTES: usize = 4096;
const GROUP: u16 = 0;
const RING_ENTRIES: u32 = 4096;

/// The kind of a completion, in the low bits of its user data; the file's index is above.
const ACCEPT: u64 = 0;
const RECEIVE: u64 = 1;
const SEND: u64 = 2;
const CLOSE: u64 = 3;

/// Receive buffers that the kernel selects and that are returned after each request.
struct Buffers {
    ring: *mut BufRingEntry,
    bytes: Vec<u8>,
    tail: u16,
}

impl Buffers {
    fn new(uring: &IoUring) -> std::io::Result<Self> {
        let length = usize::from(BUFFERS) * size_of::<BufRingEntry>();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: a fresh anonymous mapping, page-aligned as the kernel requires, never unmapped.
        let ring = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        if ring == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: the mapping holds BUFFERS entries and lives as long as the process.
        unsafe { uring.submitter().register_buf_ring_with_flags(ring as u64, BUFFERS, GROUP, 0)? };
        let bytes = vec![0; usize::from(BUFFERS) * BUFFER_BYTES];
        let mut buffers = Self { ring: ring.cast(), bytes, tail: 0 };
        for buffer in 0..BUFFERS {
            buffers.give_back(buffer);
        }
        Ok(buffers)
    }

    fn give_back(&mut self, buffer: u16) {
        let start = usize::from(buffer) * BUFFER_BYTES;
        // SAFETY: the index is below BUFFERS, and the kernel reads an entry only below the tail.
        unsafe {
            let entry = &mut *self.ring.add(usize::from(self.tail % BUFFERS));
            entry.set_addr(self.bytes.as_mut_ptr().add(start) as u64);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(buffer);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.ring).cast_mut().cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}

fn push(ring: &mut IoUring, entry: &squeue::Entry) {
    // SAFETY: what an entry points at (the answer) lives as long as the process.
    while unsafe { ring.submission().push(entry) }.is_err() {
        ring.submit().expect("the ring takes submissions");
    }
}

fn receive(ring: &mut IoUring, file: u32) {
    push(ring, &opcode::RecvMulti::new(Fixed(file), GROUP).build().user_data(u64::from(file) << 2 | RECEIVE));
}

fn listen(place: &str) -> std::io::Result<socket2::Socket> {
    let Ok(port) = place.parse::<u16>() else {
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
        socket.bind(&socket2::SockAddr::unix(place)?)?;
        socket.listen(4096)?;
        return Ok(socket);
    };
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?; // Accepted sockets inherit it.
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    socket.listen(4096)?;
    Ok(socket)
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
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_submit_all()
        .build(RING_ENTRIES)?;
    ring.submitter().register_files_sparse(FILES_MAX)?;
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
