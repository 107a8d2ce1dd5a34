//! Limits of the log, the admin listener and the exporter of OpenTelemetry.
use std::time::Duration;

// --- the log and the admin listener ---

/// Log records in the queue of the writer. Beyond: dropped and counted.
pub const LOG_RECORDS_MAX: usize = 8192;
/// Access records that a reactor collects before it sends them to the writer.
pub const ACCESS_BATCH_RECORDS: usize = 64;
/// Access records in the queue of the writer, so that events have space. Beyond: dropped and counted.
pub const ACCESS_RECORDS_MAX: usize = 6144;
/// The user agent in an access record, bytes. Beyond: cut.
pub const ACCESS_USER_AGENT_BYTES_MAX: usize = 200;
/// Interval of the samples that the status page shows, and how many are kept: two hours, 70 KB. Beyond: the
/// oldest is dropped.
pub const HISTORY_INTERVAL: Duration = Duration::from_secs(10);
pub const HISTORY_SAMPLES_MAX: usize = 720;
/// Environments whose responses are counted separately, counted from the start of the process: 10 KiB per
/// reactor. Beyond: they are counted together, as `other`.
pub const COUNTED_ENVIRONMENTS_MAX: usize = 256;
/// Request head on the admin listener, bytes. Scrapers send a few hundred. Beyond: closed.
pub const ADMIN_HEAD_BYTES_MAX: usize = 16 * 1024;
/// Time for a request head on the admin listener. Beyond: closed and counted.
pub const ADMIN_HEAD_TIMEOUT: Duration = Duration::from_secs(1);
/// Characters of a rejected `Host` in the log and in the response. Beyond: truncated.
pub const ADMIN_HOST_CHARS_SHOWN: usize = 255;
/// Connections of the admin listener, one thread each. Beyond: the one that has waited longest is closed and
/// counted.
pub const ADMIN_CONNECTIONS_MAX: usize = 32;

// --- OpenTelemetry ---

/// Times of the `OTEL_*` variables, milliseconds: a day. Beyond: a warning, the default is used.
pub const OTEL_MILLISECONDS_MAX: u64 = 24 * 60 * 60 * 1000;
/// Attributes in `OTEL_RESOURCE_ATTRIBUTES`, and the name and value of each, bytes. Beyond: a warning, none
/// is used.
pub const OTEL_ATTRIBUTES_MAX: usize = 128;
pub const OTEL_ATTRIBUTE_BYTES_MAX: usize = 4 * 1024;
/// Highest `OTEL_BSP_MAX_QUEUE_SIZE`, spans; each takes 2 KiB at most. Beyond: a warning, the default is
/// used.
pub const SPANS_QUEUED_MAX: u64 = 65_536;
/// Highest `OTEL_BSP_MAX_EXPORT_BATCH_SIZE`, spans; a collector accepts 20 MiB by default. Beyond: a
/// warning, the default is used.
pub const SPANS_EXPORTED_MAX: u64 = 8192;
/// A text in a span (a path, a URL, an error), bytes. Beyond: cut.
pub const SPAN_TEXT_BYTES_MAX: usize = 256;
/// The response of a collector, bytes; it has the number of rejected items and a message. Beyond: not read.
pub const OTLP_ANSWER_BYTES_MAX: usize = 64 * 1024;
/// How long a process that exits waits for its last exports. Beyond: they are lost.
pub const LAST_EXPORT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait between two attempts to reach a collector, unless its `Retry-After` is longer.
pub const OTLP_BACKOFF_MAX: Duration = Duration::from_secs(30);
