//! Arguments of `serve` and `demo`, which `check` and `health` accept as well.
//!
//! Values are passed on as typed: `config` validates them together with the file and the environment,
//! so that one run reports every problem.
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use crate::config::Inputs;
use crate::demo;

const ENVIRONMENTS: &str = "Configuration and environments";
const LISTENERS: &str = "Listeners";
const PROCESS: &str = "CPUs and log";

/// Flags override environment variables, which override the configuration file.
#[derive(Debug, Default, Args)]
pub struct ServeArgs {
    /// Configuration file [default: config.json] [env: CONFIG_PATH]
    #[arg(long, value_name = "PATH", help_heading = ENVIRONMENTS)]
    config: Option<PathBuf>,
    /// Serve this environment document from disk and reload it when it changes; may be repeated
    /// [env: EDGE_PROXY_DOCUMENTS]
    #[arg(long, value_name = "FILE", help_heading = ENVIRONMENTS)]
    document: Vec<PathBuf>,
    /// Interval between polls of upstream: 10s, 500ms or a number of seconds [default: 10s]
    /// [env: EDGE_PROXY_API_POLL_FREQUENCY_SECONDS]
    #[arg(long, value_name = "TIME", help_heading = ENVIRONMENTS)]
    poll_interval: Option<String>,
    /// Replace the process that serves the port now: share the port with it without a warning
    /// [env: EDGE_PROXY_SERVER_TAKE_OVER]
    #[arg(long, help_heading = LISTENERS)]
    take_over: bool,
    #[command(flatten)]
    listen: ListenArgs,
}

#[derive(Debug, Default, Args)]
pub struct DemoArgs {
    /// Serve the demo from this environment document and reload it when it changes
    #[arg(long, value_name = "FILE", help_heading = ENVIRONMENTS)]
    document: Option<PathBuf>,
    #[command(flatten)]
    listen: ListenArgs,
}

#[derive(Debug, Default, Args)]
struct ListenArgs {
    /// Address to listen on [default: 0.0.0.0; demo: 127.0.0.1] [env: EDGE_PROXY_SERVER_HOST]
    #[arg(long, value_name = "ADDRESS", help_heading = LISTENERS)]
    host: Option<String>,
    /// Port to listen on [default: 8000] [env: EDGE_PROXY_SERVER_PORT]
    #[arg(long, value_name = "PORT", help_heading = LISTENERS)]
    port: Option<String>,
    /// Port of the status page and /metrics on 127.0.0.1 [default: none; demo: 8001]
    /// [env: EDGE_PROXY_ADMIN_PORT]
    #[arg(long, value_name = "PORT", help_heading = LISTENERS)]
    admin_port: Option<String>,
    /// Number of CPUs to use, or a list of them: 4 or 0,2-5 [default: all that the CPU affinity and
    /// the cgroup quota of the process allow] [env: EDGE_PROXY_CORES]
    #[arg(long, value_name = "N|LIST", help_heading = PROCESS)]
    cores: Option<String>,
    /// Least severe level to log: critical, error, warning, info or debug [default: info]
    /// [env: EDGE_PROXY_LOGGING_LOG_LEVEL]
    #[arg(long, value_name = "LEVEL", help_heading = PROCESS)]
    log_level: Option<String>,
    /// Log format: generic (text) or json [default: generic] [env: EDGE_PROXY_LOGGING_LOG_FORMAT]
    #[arg(long, value_name = "FORMAT", help_heading = PROCESS)]
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
    /// The demo ignores the configuration file and the environment, so that it is the same everywhere. Only
    /// what it exports to OpenTelemetry is set by variables.
    pub fn inputs(self) -> Inputs {
        let mut inputs = Inputs { without_file: true, ..Inputs::from_process() };
        inputs.variables.retain(|(name, _)| name.starts_with("OTEL_"));
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

#[cfg(test)]
mod tests {
    use clap::{Args, Command};

    use super::*;
    use crate::config::settings;

    /// A flag of a setting that is read from variables names the setting's own one.
    #[test]
    fn help_names_the_variable_of_each_flag() {
        let text = || Some("1".to_owned());
        let listen = ListenArgs {
            host: text(),
            port: text(),
            admin_port: text(),
            cores: text(),
            log_level: text(),
            log_format: text(),
        };
        let args = ServeArgs {
            config: None,
            document: vec![PathBuf::from("x")],
            poll_interval: text(),
            take_over: true,
            listen,
        };
        let command = ServeArgs::augment_args(Command::new("serve"));
        let flags = args.inputs().flags;
        let named = command.get_arguments().filter(|argument| argument.get_long() != Some("config"));
        assert_eq!(flags.len(), named.count(), "every flag is a setting");
        for (path, flag, _) in flags {
            let is_named = |argument: &&clap::Arg| argument.get_long() == flag.strip_prefix("--");
            let argument = command.get_arguments().find(is_named).expect("a flag");
            let help = argument.get_help().expect("a text").to_string();
            let variable = settings::find(path).expect("a setting").own_variable();
            assert!(help.contains(&format!("[env: {variable}]")), "{flag}: {help}");
            assert!(argument.get_help_heading().is_some(), "{flag} is in a group");
        }
    }
}
