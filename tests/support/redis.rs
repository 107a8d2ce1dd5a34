//! Debian's `redis-server` as a child process.
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Scratch, eventually, fixture};

/// A running server. Killed when dropped.
pub struct RedisServer {
    child: Child,
    port: u16,
    scratch: Scratch,
    args: Vec<String>,
}

impl RedisServer {
    /// Starts one that keeps its data in memory. `None`, with a message, if it is not installed.
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// As [`start`](Self::start), with further arguments.
    pub fn start_with(args: &[&str]) -> Option<Self> {
        let version = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
        if !version.is_ok_and(|status| status.success()) {
            fixture::say("SKIPPED: redis-server is not installed (Debian: apt install redis-server)");
            return None;
        }
        let (port, scratch) = (free_port(), Scratch::new());
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let child = spawn(port, &scratch, &args);
        let server = Self { child, port, scratch, args };
        server.wait();
        Some(server)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port())
    }

    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Kills it. [`restart`](Self::restart) starts it again with the data that are on its disk.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.port, &self.scratch, &self.args);
        self.wait();
    }

    fn wait(&self) {
        eventually("redis-server listens", || TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok());
        // While it loads its data it refuses commands.
        eventually("redis-server answers", || {
            let mut connection = redis::Client::open(self.url()).ok()?.get_connection().ok()?;
            redis::cmd("PING")
                .exec(&mut connection)
                .or_else(|error| if error.code() == Some("NOAUTH") { Ok(()) } else { Err(error) })
                .ok()
        });
    }

    pub fn connection(&self) -> redis::Connection {
        let client = redis::Client::open(self.url()).expect("a URL");
        client.get_connection().expect("it answers")
    }

    /// The names of all keys.
    pub fn keys(&self) -> Vec<String> {
        redis::cmd("KEYS").arg("*").query(&mut self.connection()).expect("the keys")
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(port: u16, scratch: &Scratch, args: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
    command.arg("--dir").arg(scratch.path()).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("redis-server is installed")
}

/// A port below those that the kernel assigns, so that nothing else takes it while the server is down. It does not
/// share a port, as the proxy does.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(97);
    loop {
        let number = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 20_000 + u16::try_from(number % 10_000).expect("small");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
