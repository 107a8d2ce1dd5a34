//! What the floors share: a ring with everything that the kernel offers, its receive buffers, a listening socket.
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, Fixed};
use io_uring::{IoUring, opcode, squeue};

pub const FILES_MAX: u32 = 16 * 1024;
const BUFFERS: u16 = 1024;
const BUFFER_BYTES: usize = 4096;
const GROUP: u16 = 0;
const RING_ENTRIES: u32 = 4096;

/// A ring with registered files, for one thread.
pub fn ring() -> std::io::Result<IoUring> {
    let ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_submit_all()
        .build(RING_ENTRIES)?;
    ring.submitter().register_files_sparse(FILES_MAX)?;
    Ok(ring)
}

/// Receive buffers that the kernel selects and that are returned after each request.
pub struct Buffers {
    ring: *mut BufRingEntry,
    bytes: Vec<u8>,
    tail: u16,
}

impl Buffers {
    pub fn new(uring: &IoUring) -> std::io::Result<Self> {
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

    pub fn give_back(&mut self, buffer: u16) {
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

    /// The received bytes.
    #[allow(dead_code, reason = "the floor of HTTP/1.1 reads none")]
    pub fn received(&self, buffer: u16, length: usize) -> &[u8] {
        let start = usize::from(buffer) * BUFFER_BYTES;
        &self.bytes[start..start + length]
    }
}

/// Adds an entry. What it points at must live until it completes.
pub fn push(ring: &mut IoUring, entry: &squeue::Entry) {
    // SAFETY: callers keep what an entry points at until it completes.
    while unsafe { ring.submission().push(entry) }.is_err() {
        ring.submit().expect("the ring takes submissions");
    }
}

/// Receives from a registered file until its end. `data` is that of all its completions.
pub fn receive(ring: &mut IoUring, file: u32, data: u64) {
    push(ring, &opcode::RecvMulti::new(Fixed(file), GROUP).build().user_data(data));
}

/// A listening socket at a port, or at a path.
pub fn listen(place: &str) -> std::io::Result<socket2::Socket> {
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
