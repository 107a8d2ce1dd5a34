//! Sockets that are listened on, bound before any thread starts so that errors reach the user.
//!
//! In: addresses of the configuration. Out: listeners, or what stands in the way and what to do.
//! Invariant: one TCP listener for each core on the same address (SO_REUSEPORT), so that the
//! kernel spreads connections and a second process can take over; a unix socket is put in place
//! by a rename, which takes over from whoever had the path.
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
use crate::limits::{BACKLOG_MAX, PROBE_TIMEOUT, UNIX_SOCKET_NAMES_MAX};

/// Binds one listener for each core; none without `server.tcp`.
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
        // Port 0 means any free one; the others must have the same.
        address.set_port(listener.local_addr()?.port());
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Whether a process listens there already, which is seen by its taking a connection.
pub fn is_taken(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&reachable(address), PROBE_TIMEOUT).is_ok()
}

/// Inodes of the listening sockets at this port, of all processes in this network namespace.
///
/// # Errors
/// `/proc` is not there, or not readable.
fn listening_inodes(port: u16) -> io::Result<Vec<u64>> {
    let mut inodes = Vec::new();
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        let text = match std::fs::read_to_string(table) {
            Ok(text) => text,
            // The kernel may be without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        inodes.extend(text.lines().skip(1).filter_map(|line| listening_inode(line, port)));
    }
    Ok(inodes)
}

/// The inode in a line of proc_net_tcp(5), if it is of a socket that listens at this port.
fn listening_inode(line: &str, port: u16) -> Option<u64> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, local, _, LISTEN, _, _, _, _, _, inode, ..] = fields[..] else { return None };
    let (_, local_port) = local.rsplit_once(':')?;
    (u16::from_str_radix(local_port, 16).ok()? == port).then(|| inode.parse().ok())?
}

/// Inodes of listeners, by which [`is_shared`] tells them from those of other processes.
///
/// # Errors
/// The system does not say.
pub fn inodes(listeners: &[TcpListener]) -> io::Result<Vec<u64>> {
    listeners.iter().map(|listener| Ok(rustix::fs::fstat(listener)?.st_ino)).collect()
}

/// Whether a socket other than these listens at the port.
///
/// # Errors
/// As [`listening_inodes`].
pub fn is_shared(port: u16, own: &[u64]) -> io::Result<bool> {
    Ok(listening_inodes(port)?.iter().any(|inode| !own.contains(inode)))
}

/// Taking over from another process, the socket is bound and no more: connections go on to the
/// other one until the reactor has documents to answer with (`life`).
fn listen(address: SocketAddr, taken: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false)?;
    }
    // Accepted sockets inherit it, which saves a system call for each.
    socket.set_tcp_nodelay(true)?;
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
                "another program listens there: `ss -ltnp 'sport = :{port}'` shows which; set server.port"
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

/// A unix socket. At its path it takes over from whoever had it; before that it stands beside.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    beside: PathBuf,
    /// Device and inode of the socket's file.
    id: (u64, u64),
    is_beside: AtomicBool,
}

impl UnixSocket {
    /// The listener for one more reactor.
    ///
    /// # Errors
    /// The descriptor limit.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }

    /// Whether another process still serves at the path.
    pub fn is_beside(&self) -> bool {
        self.is_beside.load(Ordering::Relaxed)
    }

    /// Callers reach this process from now on; the other one keeps those it has.
    ///
    /// # Errors
    /// The directory went away, or is no longer ours to write.
    pub fn put_in_place(&self) -> io::Result<()> {
        // One of the reactors does it, the others find it done.
        if self.is_beside.swap(false, Ordering::Relaxed) {
            // Other programs may have put something there since the start.
            refuse_other_than_socket(&self.path)?;
            std::fs::rename(&self.beside, &self.path)?;
        }
        Ok(())
    }

    /// Nobody new may come; unless somebody took over, whose path it is then.
    pub fn take_away(&self) {
        for path in [&self.path, &self.beside] {
            let is_ours = |metadata: Metadata| metadata.file_type().is_socket() && id(&metadata) == self.id;
            if std::fs::symlink_metadata(path).is_ok_and(is_ours) {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        self.take_away();
    }
}

/// Binds `server.unix_socket`, if there is one.
///
/// # Errors
/// The path cannot be bound, or something that is not a socket stands there.
pub fn bind_unix(config: &Config) -> io::Result<Option<Arc<UnixSocket>>> {
    let Some(path) = &config.server.unix_socket else { return Ok(None) };
    let wrong = |error: io::Error| {
        let shown = path.display();
        let advice = match error.kind() {
            io::ErrorKind::NotFound => "; make its directory first",
            io::ErrorKind::PermissionDenied => "; its directory must be writable for this user",
            _ => "",
        };
        let message = format!("cannot listen on server.unix_socket {shown}: {error}{advice}");
        io::Error::new(error.kind(), message)
    };
    let socket = listen_unix(path, config.server.unix_socket_mode).map_err(wrong)?;
    Ok(Some(Arc::new(socket)))
}

/// A file that a process left behind when it was killed is replaced. A process that is there keeps
/// the path until the reactors have documents to answer with (`life`), as with TCP.
fn listen_unix(path: &Path, mode: Option<u32>) -> io::Result<UnixSocket> {
    refuse_other_than_socket(path)?;
    let is_taken = UnixStream::connect(path).is_ok();
    let beside = beside(path)?;
    let listener = UnixListener::bind(&beside)?;
    let id = id(&std::fs::symlink_metadata(&beside)?);
    let (path, is_beside) = (path.to_owned(), AtomicBool::new(true));
    let socket = UnixSocket { listener, path, beside, id, is_beside };
    if let Some(mode) = mode {
        std::fs::set_permissions(&socket.beside, Permissions::from_mode(mode))?;
    }
    if !is_taken {
        socket.put_in_place()?;
    }
    Ok(socket)
}

/// Only a socket is ever replaced or unlinked: a regular file, directory or link is somebody's data.
fn refuse_other_than_socket(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            let message = format!("{} exists and is not a socket", path.display());
            Err(io::Error::new(io::ErrorKind::AlreadyExists, message))
        }
        _ => Ok(()),
    }
}

/// A path to bind at first, `PATH.PID` or `PATH.PID-NUMBER`, where nothing is. A socket there that
/// refuses connections was left by a killed process with the same PID and is unlinked. One that takes
/// them is of a process in another PID namespace (each container has a PID 1): the next name is tried.
fn beside(path: &Path) -> io::Result<PathBuf> {
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
        let is_left = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        if is_socket && UnixStream::connect(&name).is_err_and(is_left) {
            std::fs::remove_file(&name)?;
            return Ok(name);
        }
        tried = Some(name);
    }
    let tried = tried.unwrap_or_default();
    let message = format!("{} and the names before it are in use; remove these files", tried.display());
    Err(io::Error::new(io::ErrorKind::AlreadyExists, message))
}

fn id(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_listener_at_the_port_is_found() {
        let mut address: SocketAddr = ([127, 0, 0, 1], 0).into();
        let own = listen(address, false).expect("a free port");
        address.set_port(own.local_addr().expect("bound").port());
        let port = address.port();
        let own = [own, listen(address, false).expect("shared"), listen(address, true).expect("shared")];
        let inodes = inodes(&own).expect("sockets");
        let is_shared = || is_shared(port, &inodes).expect("/proc");
        assert!(!is_shared(), "all are of this process");
        let other = listen(address, true).expect("shared");
        assert!(!is_shared(), "the other one does not listen yet");
        SockRef::from(&other).listen(1).expect("bound");
        assert!(is_shared());
        drop(other);
        assert!(!is_shared());
    }
}
