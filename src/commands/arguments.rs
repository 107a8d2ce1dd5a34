//! Arguments of `serve` and `demo`, which `check` and `health` accept as well.
//!
//! Values are passed on as typed: `config` validates them together with the file and the environment,
//! so that one run reports every problem.
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use crate::config::Inputs;
use crate::demo;

/// Flags override environment variables, which override the configuration file.
#[derive(Debug, Default, Args)]
pub struct ServeArgs {
    /// Configuration file [default: $CONFIG_PATH, or config.json]
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Serve this environment document from disk and reload it when it changes; may be repeated
    #[arg(long, value_name = "FILE")]
    document: Vec<PathBuf>,
    /// Interval between polls of upstream: 10s, 500ms or a number of seconds [default: 10s]
    #[arg(long, value_name = "TIME")]
    poll_interval: Option<String>,
    /// Replace the process that serves the port now: share the port with it without a warning
    #[arg(long)]
    take_over: bool,
    #[command(flatten)]
    listen: ListenArgs,
}

#[derive(Debug, Default, Args)]
pub struct DemoArgs {
    /// Serve the demo from this environment document and reload it when it changes
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
    #[command(flatten)]
    listen: ListenArgs,
}

#[derive(Debug, Default, Args)]
struct ListenArgs {
    /// Address to listen on [default: 0.0.0.0; demo: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    host: Option<String>,
    /// Port to listen on [default: 8000]
    #[arg(long, value_name = "PORT")]
    port: Option<String>,
    /// Port of the status page and /metrics on 127.0.0.1 [default: none; demo: 8001]
    #[arg(long, value_name = "PORT")]
    admin_port: Option<String>,
    /// Number of CPUs to use, or a list of them: 4 or 0,2-5 [default: all that the CPU affinity and
    /// the cgroup quota of the process allow]
    #[arg(long, value_name = "N|LIST")]
    cores: Option<String>,
    /// Least severe level to log: critical, error, warning, info or debug [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Log format: generic (text) or json [default: generic]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

impl ServeArgs {
    pub fn inputs(self) -> Inputs {
        let mut inputs = Inputs { config_path: self.config, ..Inputs::from_process() };
        if !self.document.is_empty() {
            let paths = self.document.iter().map(|path| Value::from(path.to_string_lossy()));
            inputs.flags.push(("documents", "--document", paths.collect()));
        }
        if let Some(interval) = self.poll_interval {
            inputs.flags.push(("api_poll_frequency_seconds", "--poll-interval", interval.into()));
        }
        if self.take_over {
            inputs.flags.push(("server.take_over", "--take-over", true.into()));
        }
        self.listen.add_to(&mut inputs);
        inputs
    }
}

impl DemoArgs {
    /// The demo ignores the configuration file and the environment, so that it is the same everywhere.
    pub fn inputs(self) -> Inputs {
        let mut inputs = Inputs { without_file: true, ..Inputs::default() };
        inputs.environments.push(demo::environment(self.document));
        inputs.flags.push(("server.host", "demo", "127.0.0.1".into()));
        // With --port a second demo may be running, which has port 8001.
        if self.listen.port.is_none() {
            inputs.flags.push(("admin.port", "demo", 8001.into()));
        }
        self.listen.add_to(&mut inputs);
        inputs
    }
}

impl ListenArgs {
    fn add_to(self, inputs: &mut Inputs) {
        let flags = [
            ("server.host", "--host", self.host),
            ("server.port", "--port", self.port),
            ("admin.port", "--admin-port", self.admin_port),
            ("cores", "--cores", self.cores),
            ("logging.log_level", "--log-level", self.log_level),
            ("logging.log_format", "--log-format", self.log_format),
        ];
        let given = flags.into_iter().filter_map(|(path, flag, text)| Some((path, flag, text?.into())));
        inputs.flags.extend(given);
    }
}
