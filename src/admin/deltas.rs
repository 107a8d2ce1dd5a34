//! Metrics of deltas of documents, those that are sent and those that are received.
use crate::admin::exposition::Exposition;
use crate::metrics::Metrics;

pub fn export(text: &mut Exposition, metrics: &Metrics) {
    let sent = metrics.reactors.iter().map(|reactor| reactor.deltas_sent.value()).sum();
    let rows: [(_, _, u64); 3] = [
        ("document_deltas_sent_total", "Documents sent to other proxies as deltas.", sent),
        (
            "document_deltas_applied_total",
            "Documents that upstream, another proxy, sent as deltas.",
            metrics.supervisor.deltas_applied.value(),
        ),
        (
            "document_deltas_refused_total",
            "Deltas that were not usable, so that the whole document was fetched.",
            metrics.supervisor.deltas_refused.value(),
        ),
    ];
    for (name, help, count) in rows {
        text.single(name, "counter", help, count);
    }
}
