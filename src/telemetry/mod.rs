//! Exports metrics and spans by OTLP over HTTP (protobuf) to a collector.
//!
//! One thread for each signal that has an endpoint, so that neither waits for the other. They only read
//! metrics and receive spans: nothing waits for them but the end of the process, within a limit. A reload
//! does not concern them, because their settings are environment variables.
mod export;
mod metrics;
mod resource;
mod spans;
mod stop;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

use crate::admin::View;
use crate::config::{Config, SettingError};
use crate::log::Log;
use crate::metrics::{Metrics, OtlpSignal};
use crate::spans::{SpanReceiver, SpanSender, queue};
use crate::telemetry::export::Exporter;
use crate::telemetry::metrics::MetricExport;
use crate::telemetry::resource::Origin;
use crate::telemetry::spans::SpanExport;
use crate::telemetry::stop::StopSignal;
use crate::upstream::Collector;

/// The running threads.
#[derive(Debug)]
pub struct TelemetryThreads {
    stop: Arc<StopSignal>,
    spans: Option<SpanSender>,
    /// Disconnected when the thread has ended.
    ended: Vec<Receiver<()>>,
}

/// The queue of spans; `None` if they are not exported.
pub fn span_queue(config: &Config, metrics: &Metrics) -> Option<(SpanSender, SpanReceiver)> {
    config.telemetry.traces.as_ref()?;
    Some(queue::queue(config.telemetry.batches.queue_max, Arc::clone(&metrics.telemetry)))
}

/// Starts a thread for each signal with an endpoint. `view` has the metrics.
///
/// # Errors
/// A variable of an outgoing proxy or the file of authorities cannot be used, or a thread cannot be started.
pub fn start(
    config: &Config,
    view: View,
    metrics: &Metrics,
    log: &Log,
    spans: Option<(SpanSender, SpanReceiver)>,
) -> io::Result<TelemetryThreads> {
    let settings = &config.telemetry;
    let origin = Arc::new(Origin::new(settings, metrics.started));
    let stop = Arc::<StopSignal>::default();
    let mut threads = TelemetryThreads { stop: Arc::clone(&stop), spans: None, ended: Vec::new() };
    let exporter = |signal, endpoint| -> io::Result<Exporter> {
        let collector = Collector::new(config, endpoint).map_err(|errors| unusable(&errors))?;
        let metrics = Arc::clone(&metrics.telemetry);
        Ok(Exporter::new(signal, collector, endpoint, metrics, log.clone(), Arc::clone(&stop)))
    };
    if let (Some(endpoint), Some((sender, receiver))) = (&settings.traces, spans) {
        let exporter = exporter(OtlpSignal::Traces, endpoint)?;
        let export = SpanExport::new(receiver, exporter, settings.batches, Arc::clone(&origin));
        threads.spans = Some(sender);
        threads.spawn("otlp-spans", move || export.run())?;
    }
    if let Some(endpoint) = &settings.metrics {
        let exporter = exporter(OtlpSignal::Metrics, endpoint)?;
        let export = MetricExport::new(view, exporter, settings, origin);
        threads.spawn("otlp-metrics", move || export.run())?;
    }
    Ok(threads)
}

fn unusable(errors: &[SettingError]) -> io::Error {
    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    io::Error::new(io::ErrorKind::InvalidInput, lines.join("\n"))
}

impl TelemetryThreads {
    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let (ended, when_ended) = channel();
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            run();
            drop(ended);
        })?;
        self.ended.push(when_ended);
        Ok(())
    }

    /// Exports what waits, with one attempt each, and the metrics once more. Returns at the deadline at the
    /// latest: what is not sent then is lost.
    pub fn stop(self, deadline: Instant) {
        self.stop.set(deadline);
        self.spans.iter().for_each(SpanSender::stop);
        for ended in self.ended {
            let _ = ended.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        }
    }
}
