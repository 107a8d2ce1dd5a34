//! The floor: what the kernel costs for a socket, and what the machine adds in the same minute.
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command};

use crate::documents::ENVIRONMENTS;
use crate::load::Head;
use crate::proxies::reactor_cpus;
use crate::support::{Port, Proxy, Scratch, eventually};

/// The floor server of the benchmarks, which answers the bytes of a file to every request.
pub struct Floor {
    child: Child,
    pub address: SocketAddr,
    _scratch: Scratch,
}

impl Floor {
    /// `SOAK_FLOOR=`, its executable. Without it latencies are not compared.
    pub fn start(proxy: &Proxy, head: &Head) -> Option<Self> {
        let executable = std::env::var_os("SOAK_FLOOR")?;
        let mut fields = vec![("X-Environment-Key", ENVIRONMENTS[0].0)];
        fields.extend(head.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let answer = proxy.client().request("GET", "/api/v1/flags/", &fields, b"");
        let head =
            answer.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect::<String>();
        let bytes = [format!("HTTP/1.1 200 OK\r\n{head}\r\n").as_bytes(), &answer.body].concat();
        let (scratch, port) = (Scratch::new(), Port::free());
        let (path, address) = (scratch.write("answer", bytes), port.address());
        drop(port);
        // On the CPU of the reactor: on a busy machine its share of a CPU decides a latency.
        let cpu = reactor_cpus(proxy.pid()).unwrap_or_else(|| "0".into());
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", &cpu]).arg(executable).arg(address.port().to_string()).arg(path);
        let child = command.spawn();
        let child = child.expect("the floor starts");
        eventually("the floor listens", || TcpStream::connect(address).ok());
        Some(Self { child, address, _scratch: scratch })
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
