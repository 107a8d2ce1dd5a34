//! Directories and ports that belong to one test and go with it.
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use socket2::{Domain, Protocol, Socket, Type};

/// A directory that is removed with its handle.
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

    /// Writes a file and returns where it is.
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

/// A port that nobody else is given while this is held.
///
/// A bound socket that does not listen keeps the kernel from handing the port out again and takes
/// no connection. It allows `SO_REUSEPORT`, which is how the proxy binds, so the proxy may join.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _held: Socket,
}

impl Port {
    pub fn free() -> Self {
        let held = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        // Bound without sharing, so that the number is nobody else's; shared only afterwards.
        held.bind(&any.into()).expect("a free port");
        held.set_reuse_port(true).expect("SO_REUSEPORT");
        let bound = held.local_addr().expect("bound").as_socket().expect("an IP address");
        Self { number: bound.port(), _held: held }
    }

    pub fn number(&self) -> u16 {
        self.number
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.number))
    }
}
