//! Directories and ports of one test, released when it ends.
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use socket2::{Domain, Protocol, Socket, Type};

/// A directory that is removed when dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("edge-proxy-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the temporary directory is writable");
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path.join(name);
        std::fs::write(&path, content).expect("the scratch directory is writable");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// A reserved port.
///
/// A bound socket that does not listen keeps the kernel from assigning the port again and accepts no connection.
/// It has `SO_REUSEPORT`, as the proxy's listeners have, so the proxy can share the port.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _socket: Socket,
}

impl Port {
    pub fn free() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        // Bound without `SO_REUSEPORT`, so that no other socket has the port; shared only afterwards.
        socket.bind(&any.into()).expect("a free port");
        socket.set_reuse_port(true).expect("SO_REUSEPORT");
        let bound = socket.local_addr().expect("bound").as_socket().expect("an IP address");
        Self { number: bound.port(), _socket: socket }
    }

    pub fn number(&self) -> u16 {
        self.number
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.number))
    }
}
