//! The executable as a child process.
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use super::{Answer, Client, PATIENCE, Port, Scratch, document, eventually, fixture, get, post};

/// A configuration and a command line. The environment contains only what is set here, so that a developer's
/// `SERVER_PORT` or `HTTP_PROXY` does not affect tests.
#[derive(Debug)]
pub struct Start {
    args: Vec<OsString>,
    env: Vec<(String, String)>,
    config: serde_json::Value,
    scratch: Scratch,
    port: Port,
    stdout: Option<Stdio>,
    executable: &'static str,
    /// A program that executes the proxy, with its arguments.
    launcher: Vec<OsString>,
}

impl Start {
    /// `edge-proxy serve` on a free port with one reactor and without environments.
    pub fn serve() -> Self {
        let (scratch, port) = (Scratch::new(), Port::free());
        let config = serde_json::json!({
            "environment_key_pairs": [],
            "server": {"host": "127.0.0.1", "port": port.number()},
        });
        Self {
            args: vec!["serve".into(), "--cores".into(), "1".into()],
            env: Vec::new(),
            config,
            scratch,
            port,
            stdout: None,
            executable: super::executable(),
            launcher: Vec::new(),
        }
    }

    /// Starts the executable of this build, even if another one is under test.
    pub fn of_this_build(mut self) -> Self {
        self.executable = env!("CARGO_BIN_EXE_edge-proxy");
        self
    }

    /// `edge-proxy demo` on a free port.
    pub fn demo() -> Self {
        let mut start = Self::serve();
        start.args = vec!["demo".into(), "--host".into(), "127.0.0.1".into(), "--port".into()];
        start.args.push(start.port.number().to_string().into());
        start.config = serde_json::Value::Null;
        start
    }

    /// `edge-proxy check` with the same configuration.
    pub fn check(mut self) -> Self {
        self.args[0] = "check".into();
        self
    }

    /// `edge-proxy serve` with the demo's document, for tests without upstream.
    pub fn demo_document() -> Self {
        let path = fixture::root().join("src/demo/environment.json");
        Self::serve().document("client-side-key", "ser.server-side-key", path)
    }

    /// Any command line, without a configuration file.
    pub fn command(args: &[&str]) -> Self {
        let mut start = Self::serve();
        start.args = args.iter().map(OsString::from).collect();
        start.config = serde_json::Value::Null;
        start
    }

    /// `edge-proxy serve` with the environment of `document`, polled from `api_url` every 100 ms.
    pub fn polling(api_url: &str) -> Self {
        Self::serve()
            .environment(document::CLIENT_KEY, document::SERVER_KEY)
            .set("api_url", api_url)
            .set("api_poll_frequency_seconds", 0.1)
            .set("api_poll_timeout_seconds", 2)
    }

    /// Adds an environment that is polled from `api_url`.
    pub fn environment(mut self, client_side_key: &str, server_side_key: &str) -> Self {
        let pair =
            serde_json::json!({"client_side_key": client_side_key, "server_side_key": server_side_key});
        self.config["environment_key_pairs"].as_array_mut().expect("a list").push(pair);
        self
    }

    /// Adds an environment that is served from a file, with a server-side key.
    pub fn document(
        mut self,
        client_side_key: &str,
        server_side_key: &str,
        path: impl Into<PathBuf>,
    ) -> Self {
        let pair = serde_json::json!({
            "client_side_key": client_side_key, "server_side_key": server_side_key, "document_path": path.into(),
        });
        self.config["environment_key_pairs"].as_array_mut().expect("a list").push(pair);
        self
    }

    /// Sets a member of the configuration file by its path (`server.host`).
    pub fn set(mut self, path: &str, value: impl Into<serde_json::Value>) -> Self {
        let mut place = &mut self.config;
        for part in path.split('.') {
            place = &mut place[part];
        }
        *place = value.into();
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds an admin listener on a port chosen by the kernel ([`Proxy::admin`]).
    pub fn with_admin(self) -> Self {
        self.set("admin", serde_json::json!({"port": 0}))
    }

    /// Starts it by another program, which gets `-- EXECUTABLE ARGS` and executes it.
    pub fn under<'a>(mut self, launcher: impl Iterator<Item = &'a OsStr>) -> Self {
        self.launcher = launcher.map(OsStr::to_owned).collect();
        self
    }

    /// Sets the number of reactors, one by default.
    pub fn cores(mut self, cores: usize) -> Self {
        let at = self.args.iter().position(|arg| arg == "--cores").expect("serve has --cores");
        self.args[at + 1] = cores.to_string().into();
        self
    }

    /// Redirects the log from [`Proxy::log`].
    pub fn stdout(mut self, to: impl Into<Stdio>) -> Self {
        self.stdout = Some(to.into());
        self
    }

    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Starts it without waiting.
    pub fn spawn(mut self) -> Proxy {
        let executable = self.executable;
        let mut command =
            Command::new(self.launcher.first().map_or(OsStr::new(executable), |program| program));
        if let [_, words @ ..] = &self.launcher[..] {
            command.args(words).args(["--", executable]);
        }
        command.args(&self.args).env_clear().stdin(Stdio::null());
        command.stdout(self.stdout.take().unwrap_or_else(Stdio::piped));
        command.stderr(Stdio::piped()).current_dir(self.scratch.path());
        // Not used by the proxy, but by the loader and by coverage runs.
        for name in ["PATH", "LD_LIBRARY_PATH", "LLVM_PROFILE_FILE"] {
            std::env::var_os(name).map(|value| command.env(name, value));
        }
        if !self.config.is_null() {
            let path = self.scratch.write("config.json", self.config.to_string());
            command.env("CONFIG_PATH", path);
        }
        command.envs(self.env);
        let mut child = command.spawn().expect("the executable was built");
        let log = Log::default();
        child.stdout.take().into_iter().for_each(|stdout| log.follow(stdout));
        log.follow(child.stderr.take().expect("piped"));
        super::translated::register(self.port.address());
        Proxy { child, log, scratch: self.scratch, port: self.port, config: self.config }
    }

    /// Starts it and waits until it answers.
    pub fn start(self) -> Proxy {
        let mut proxy = self.spawn();
        proxy.wait_until_live();
        proxy
    }

    /// Starts it and waits until it is ready: every environment has its document.
    pub fn ready(self) -> Proxy {
        let mut proxy = self.start();
        proxy.wait_until_ready();
        proxy
    }

    /// Runs it to its end; returns the exit code and the output.
    pub fn run(self) -> (Option<i32>, String) {
        let mut proxy = self.spawn();
        let status = proxy.wait();
        (status.code(), proxy.log.text())
    }
}

/// A running proxy. Killed when dropped; its scratch directory is then removed.
#[derive(Debug)]
pub struct Proxy {
    child: Child,
    log: Log,
    scratch: Scratch,
    port: Port,
    config: serde_json::Value,
}

impl Proxy {
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Such as `http://127.0.0.1:40123/api/v1/`.
    pub fn api_url(&self) -> String {
        format!("http://{}/api/v1/", self.address())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The address of the admin listener, from the log.
    pub fn admin(&self) -> SocketAddr {
        let line = self.wait_for_log("admin_listening");
        line.rsplit('=').next().expect("an address").parse().expect("an address")
    }

    /// A sample of `/metrics`, with its labels if it has any.
    pub fn metric(&self, sample: &str) -> f64 {
        let text = get(self.admin(), "/metrics", "").text();
        metric(&text, sample).unwrap_or_else(|| panic!("{sample} in\n{text}"))
    }

    /// Resident memory, bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("our own child");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
        line.trim_end_matches("kB").trim().parse::<u64>().expect("a number") * 1024
    }

    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// The content of the configuration file, which a test may change and write again for a reload.
    pub fn config(&self) -> &serde_json::Value {
        &self.config
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address())
    }

    pub fn get(&self, target: &str, key: &str) -> Answer {
        get(self.address(), target, key)
    }

    /// The value of feature `version` of `document`; `None` if it is not served.
    pub fn version_of(&self, key: &str) -> Option<u64> {
        let answer = self.get("/api/v1/flags/?feature=version", key);
        (answer.status == 200).then(|| answer.json()["feature_state_value"].as_u64().expect("a number"))
    }

    pub fn post(&self, target: &str, key: &str, body: &str) -> Answer {
        post(self.address(), target, key, body)
    }

    pub fn wait_until_live(&mut self) {
        let address = self.address();
        self.until("the proxy answers its liveness check", || {
            let mut client = Client::try_connect(address).ok()?;
            client.try_send(super::request("GET", "/proxy/health/liveness", &[], b"")).ok()?;
            (client.try_answer("GET").ok()??.status == 200).then_some(())
        });
    }

    pub fn wait_until_ready(&mut self) {
        let address = self.address();
        self.until("the proxy is ready", || {
            (get(address, "/proxy/health/readiness", "").status == 200).then_some(())
        });
    }

    /// As [`eventually`], but fails as soon as the process has exited, and shows its log.
    pub fn until<T>(&mut self, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        eventually(what, || {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                panic!("the proxy exited ({status}) before: {what}\n{}", self.log.text());
            }
            let found = probe();
            assert!(found.is_some() || Instant::now() < deadline, "not in time: {what}\n{}", self.log.text());
            found
        })
    }

    /// The output so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Waits for a line that contains `text` and returns it.
    pub fn wait_for_log(&self, text: &str) -> String {
        self.log.wait_for(text)
    }

    /// Sends a signal by name, such as `TERM` or `HUP`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status();
        assert!(status.expect("kill is there").success(), "signal {name}");
    }

    /// Waits until it exits.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                self.log.wait_for_end();
                return status;
            }
            assert!(Instant::now() < deadline, "it did not exit:\n{}", self.log.text());
            std::thread::park_timeout(std::time::Duration::from_millis(2));
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Before the port is released.
        super::translated::unregister(self.port.address());
        if std::thread::panicking() {
            eprintln!("--- log of the proxy ---\n{}------", self.log.text());
        }
    }
}

/// A sample of a `/metrics` page.
pub fn metric(page: &str, sample: &str) -> Option<f64> {
    let value = |line: &str| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok();
    page.lines().find_map(value)
}

/// The output of a process, line by line, from stdout and stderr.
#[derive(Clone, Debug, Default)]
struct Log(Arc<(Mutex<Lines>, Condvar)>);

#[derive(Debug, Default)]
struct Lines {
    lines: Vec<String>,
    outputs_open: usize,
}

impl Log {
    fn follow(&self, output: impl Read + Send + 'static) {
        self.0.0.lock().expect("not poisoned").outputs_open += 1;
        let log = self.clone();
        std::thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut line = Vec::new();
            while output.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                line.clear();
                log.0.0.lock().expect("not poisoned").lines.push(text);
                log.0.1.notify_all();
            }
            log.0.0.lock().expect("not poisoned").outputs_open -= 1;
            log.0.1.notify_all();
        });
    }

    fn text(&self) -> String {
        self.0.0.lock().expect("not poisoned").lines.iter().map(|line| format!("{line}\n")).collect()
    }

    fn wait_for(&self, text: &str) -> String {
        let guard = self.0.0.lock().expect("not poisoned");
        let missing = |log: &mut Lines| !log.lines.iter().any(|line| line.contains(text));
        let (guard, _) = self.0.1.wait_timeout_while(guard, PATIENCE, missing).expect("not poisoned");
        let found = guard.lines.iter().find(|line| line.contains(text)).cloned();
        let lines = if found.is_none() { guard.lines.join("\n") } else { String::new() };
        // Unlocked before the panic, which would otherwise end the threads that read the outputs.
        drop(guard);
        found.unwrap_or_else(|| panic!("no line with {text:?} in the log:\n{lines}"))
    }

    fn wait_for_end(&self) {
        let guard = self.0.0.lock().expect("not poisoned");
        // A child process may keep an output open, so the wait has a deadline.
        let _ = self.0.1.wait_timeout_while(guard, PATIENCE, |log| log.outputs_open > 0);
    }
}
