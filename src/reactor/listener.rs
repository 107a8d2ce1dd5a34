//! Binds listening sockets, before any thread starts, so that errors end the start.
//!
//! There is one TCP listener per reactor on the same address (SO_REUSEPORT): the kernel distributes
//! connections, and a second process can take over. A unix socket is bound beside its path and published
//! by a rename, which replaces the socket of another process.
use std::fs::{Metadata, Permissions};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(test)]
use socket2::SockRef;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::config::{Config, reachable};
use crate::limits::{BACKLOG_MAX, PROBE_TIMEOUT, UNIX_SOCKET_NAMES_MAX, UNSENT_BYTES_MAX};

/// Binds one TCP listener per core; none if `server.tcp` is false.
///
/// # Errors
/// The address cannot be bound; the message says what to do.
pub fn bind(config: &Config) -> io::Result<Vec<TcpListener>> {
    if !config.server.tcp {
        return Ok(Vec::new());
    }
    let mut address = SocketAddr::new(config.server.host, config.server.port);
    let taken = address.port() != 0 && is_taken(address);
    let mut listeners = Vec::with_capacity(config.cores.len());
    for _ in &config.cores {
        let listener = listen(address, taken).map_err(|error| explain(address, &error))?;
        // Port 0 selects a free port, which the other listeners share.
        address.set_port(listener.local_addr()?.port());
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Whether a process already accepts connections at this address.
pub fn is_taken(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&reachable(address), PROBE_TIMEOUT).is_ok()
}

/// The inodes of all sockets in this network namespace that listen at this port.
///
/// # Errors
/// `/proc` cannot be read.
fn listening_inodes(port: u16) -> io::Result<Vec<u64>> {
    let mut inodes = Vec::new();
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        let text = match std::fs::read_to_string(table) {
            Ok(text) => text,
            // The kernel may not support IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        inodes.extend(text.lines().skip(1).filter_map(|line| listening_inode(line, port)));
    }
    Ok(inodes)
}

/// The inode in a line of proc_net_tcp(5), if its socket listens at this port.
fn listening_inode(line: &str, port: u16) -> Option<u64> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, local, _, LISTEN, _, _, _, _, _, inode, ..] = fields[..] else { return None };
    let (_, local_port) = local.rsplit_once(':')?;
    (u16::from_str_radix(local_port, 16).ok()? == port).then(|| inode.parse().ok())?
}

/// The inodes of listeners, for [`is_shared`].
///
/// # Errors
/// fstat(2) failed.
pub fn inodes(listeners: &[TcpListener]) -> io::Result<Vec<u64>> {
    listeners.iter().map(|listener| Ok(rustix::fs::fstat(listener)?.st_ino)).collect()
}

/// Whether a socket other than these listens at the port.
///
/// # Errors
/// `/proc` cannot be read.
pub fn is_shared(port: u16, own: &[u64]) -> io::Result<bool> {
    Ok(listening_inodes(port)?.iter().any(|inode| !own.contains(inode)))
}

/// `taken`: another process serves the address. The socket is then only bound; the reactor calls listen(2)
/// once it can answer requests (`worker`).
fn listen(address: SocketAddr, taken: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false)?;
    }
    // Accepted sockets inherit these, which saves system calls per connection.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    socket.bind(&SockAddr::from(address))?;
    if !taken {
        socket.listen(BACKLOG_MAX)?;
    }
    Ok(socket.into())
}

fn explain(address: SocketAddr, error: &io::Error) -> io::Error {
    let port = address.port();
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!(
                "another program uses this port (find it with `ss -ltnp 'sport = :{port}'`); set server.port"
            )
        }
        io::ErrorKind::PermissionDenied => {
            format!("port {port} needs CAP_NET_BIND_SERVICE; set server.port to 1024 or more")
        }
        io::ErrorKind::AddrNotAvailable => "no interface has this address; set server.host".to_owned(),
        _ => "check server.host and server.port".to_owned(),
    };
    io::Error::new(error.kind(), format!("cannot listen on {address}: {error}; {advice}"))
}

/// A unix socket, bound at a temporary path until it is published at its path.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    temporary_path: PathBuf,
    /// Device and inode of the socket's file.
    id: (u64, u64),
    /// Memory ordering: relaxed, because the swap itself decides who publishes, and the path is in the file
    /// system.
    is_temporary: AtomicBool,
}

impl UnixSocket {
    /// A listener for one more reactor.
    ///
    /// # Errors
    /// The descriptor limit is reached.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }

    /// Whether the socket is not published yet.
    pub fn is_temporary(&self) -> bool {
        self.is_temporary.load(Ordering::Relaxed)
    }

    /// Renames the socket to its path, so that new connections reach this process. A process that had the
    /// path keeps its open connections. Only the first call has an effect.
    ///
    /// # Errors
    /// The path is not a socket, or its directory is not writable.
    pub fn publish(&self) -> io::Result<()> {
        if self.is_temporary.swap(false, Ordering::Relaxed) {
            // Another program may have created a file there in the meantime.
            require_socket_or_nothing(&self.path)?;
            std::fs::rename(&self.temporary_path, &self.path)?;
        }
        Ok(())
    }

    /// Removes the socket file, unless another process has replaced it.
    pub fn unlink(&self) {
        for path in [&self.path, &self.temporary_path] {
            let is_ours = |metadata: Metadata| metadata.file_type().is_socket() && id(&metadata) == self.id;
            if std::fs::symlink_metadata(path).is_ok_and(is_ours) {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        self.unlink();
    }
}

/// Binds `server.unix_socket`, if there is one.
///
/// # Errors
/// The path cannot be bound, or is another kind of file.
pub fn bind_unix(config: &Config) -> io::Result<Option<Arc<UnixSocket>>> {
    let Some(path) = &config.server.unix_socket else { return Ok(None) };
    let explain = |error: io::Error| {
        let shown = path.display();
        let advice = match error.kind() {
            io::ErrorKind::NotFound => "; create its directory first",
            io::ErrorKind::PermissionDenied => "; its directory must be writable by this user",
            _ => "",
        };
        let message = format!("cannot listen on server.unix_socket {shown}: {error}{advice}");
        io::Error::new(error.kind(), message)
    };
    let socket = listen_unix(path, config.server.unix_socket_mode).map_err(explain)?;
    Ok(Some(Arc::new(socket)))
}

/// Replaces the socket of a process that was killed. If a process serves the path, it keeps the path until a
/// reactor can answer requests (`worker`).
fn listen_unix(path: &Path, mode: Option<u32>) -> io::Result<UnixSocket> {
    require_socket_or_nothing(path)?;
    let is_taken = UnixStream::connect(path).is_ok();
    let temporary_path = temporary_path(path)?;
    let listener = UnixListener::bind(&temporary_path)?;
    let id = id(&std::fs::symlink_metadata(&temporary_path)?);
    let (path, is_temporary) = (path.to_owned(), AtomicBool::new(true));
    let socket = UnixSocket { listener, path, temporary_path, id, is_temporary };
    if let Some(mode) = mode {
        std::fs::set_permissions(&socket.temporary_path, Permissions::from_mode(mode))?;
    }
    if !is_taken {
        socket.publish()?;
    }
    Ok(socket)
}

/// Only sockets are replaced or unlinked; any other file may be data.
fn require_socket_or_nothing(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            let message = format!("{} exists and is not a socket", path.display());
            Err(io::Error::new(io::ErrorKind::AlreadyExists, message))
        }
        _ => Ok(()),
    }
}

/// An unused path to bind before publishing, `PATH.PID` or `PATH.PID-NUMBER`. A socket there that refuses
/// connections is left from a killed process with the same PID and is unlinked. A socket that accepts them
/// belongs to another PID namespace (each container has a PID 1), so the next name is tried.
fn temporary_path(path: &Path) -> io::Result<PathBuf> {
    let mut tried = None;
    for number in 0..UNIX_SOCKET_NAMES_MAX {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}", std::process::id()));
        if number > 0 {
            name.push(format!("-{number}"));
        }
        let name = PathBuf::from(name);
        let is_socket = match std::fs::symlink_metadata(&name) {
            Ok(metadata) => metadata.file_type().is_socket(),
            Err(_) => return Ok(name),
        };
        let is_stale = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        if is_socket && UnixStream::connect(&name).is_err_and(is_stale) {
            std::fs::remove_file(&name)?;
            return Ok(name);
        }
        tried = Some(name);
    }
    let tried = tried.unwrap_or_default();
    let message = format!("{} and the names before it are in use; remove them", tried.display());
    Err(io::Error::new(io::ErrorKind::AlreadyExists, message))
}

fn id(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_other_listeners_at_the_port() {
        let mut address: SocketAddr = ([127, 0, 0, 1], 0).into();
        let own = listen(address, false).expect("a free port");
        address.set_port(own.local_addr().expect("bound").port());
        let port = address.port();
        let own = [own, listen(address, false).expect("shared"), listen(address, true).expect("shared")];
        let inodes = inodes(&own).expect("sockets");
        let is_shared = || is_shared(port, &inodes).expect("/proc");
        assert!(!is_shared(), "only own listeners");
        let other = listen(address, true).expect("shared");
        assert!(!is_shared(), "the other socket does not listen yet");
        SockRef::from(&other).listen(1).expect("bound");
        assert!(is_shared());
        drop(other);
        assert!(!is_shared());
    }
}
