//! Limits: each with its unit, its reason, and what happens beyond it.
//!
//! A setting has its default here. Limits of input are listed in `docs/limits.md`, which a test compares with
//! these constants; tunings with a single user are beside that user.
mod operations;

use std::time::Duration;

pub use crate::limits::operations::*;

// --- a request ---

/// Request head, bytes (`server.head_bytes_max`). Browsers send less than 8 KiB, apart from large cookies.
/// Beyond: 431 and close; a target of more than half of it: 414 and close.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Allowed values of `server.head_bytes_max`, bytes. SDKs may need 4 KiB; proxies in front send at most 32
/// KiB (HAProxy 16 KiB, nginx 32 KiB), and the decoder supports targets of 65,534 bytes. Beyond: the
/// configuration is rejected.
pub const HEAD_BYTES_RANGE: std::ops::RangeInclusive<usize> = 4 * 1024..=64 * 1024;
/// Header fields of a request, the capacity of monoio-http's decoder. Beyond: 431 and close.
pub const HEADERS_MAX: usize = 96;
/// Decoded request heads that a reactor caches, and the largest of them, bytes: 0.5 MiB at most. Beyond:
/// decoded for each request.
pub const CACHED_HEADS_MAX: usize = 128;
pub const CACHED_HEAD_BYTES_MAX: usize = 2048;
/// Request body after de-chunking and decompression, bytes. No SDK sends more. Beyond: 413 and close.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// `X-Request-Id`, bytes; a UUID has 36, ids of gateways up to 100. Beyond: neither echoed nor logged.
pub const REQUEST_ID_BYTES_MAX: usize = 128;
/// Empty lines before a request line (RFC 9112 2.2 recommends to accept one). Beyond: 400 and close.
pub const EMPTY_LINES_MAX: usize = 2;
/// A chunk-size line with its extensions, bytes. Beyond: 400 and close.
pub const CHUNK_LINE_BYTES_MAX: usize = 256;
/// Trailer fields of a chunked body, bytes; they are ignored. Beyond: 431 and close.
pub const TRAILER_BYTES_MAX: usize = 4 * 1024;
/// A trait value of type string, characters, as in the Python proxy. Beyond: 422; 400 in an OFREP context.
pub const TRAIT_VALUE_CHARS_MAX: usize = 2000;
/// An identifier, characters, as in Flagsmith core: every condition on the identifier reads all of it.
/// Beyond: 422; 400 for OFREP's `targetingKey`; truncated in `analytics/flags/`.
pub const IDENTIFIER_CHARS_MAX: usize = TRAIT_VALUE_CHARS_MAX;
/// Errors listed in a 422; Python lists 350,000 for a body of 1 MiB, in 50 MB. Beyond: a last entry says so,
/// `edge_proxy_errors_truncated_total` counts it, and the rest of the body is not validated.
pub const ERRORS_MAX: usize = 100;
/// The `input` of an error in a 422, bytes of JSON. With `ERRORS_MAX` this keeps the response below 64 KiB.
/// Beyond: truncated, ends in `...`.
pub const ERROR_INPUT_BYTES_MAX: usize = 200;
/// Bytes of a body that are validated for a client without a valid key: 0.3 ms of work. Beyond: 422 if these
/// bytes are already invalid, else 401.
pub const UNKNOWN_CALLER_BODY_BYTES_MAX: usize = 64 * 1024;
/// An unknown key quoted in a 401, bytes. Beyond: truncated, ends in `...`.
pub const KEY_QUOTED_BYTES_MAX: usize = 2048;
/// The largest body whose buffers are kept for reuse, bytes. Beyond: released after the request.
pub const KEPT_BODY_BYTES_MAX: usize = 64 * 1024;
/// The largest response buffer that a reactor keeps for reuse (one plain, one compressed), bytes. Beyond:
/// released after the request.
pub const KEPT_ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Nesting of a JSON body, as in Python 3.12's `json.loads` (measured). Beyond: 400.
pub const JSON_DEPTH_MAX: usize = 1497;
/// Identities in one `bulk-identities/` request, as in the hosted Edge API. Beyond: 400.
pub const BULK_IDENTITIES_MAX: usize = 100;
/// Identifiers and trait values that the conditions of one `bulk-identities/` request hash or search, bytes;
/// each counts as 64 at least. Beyond: 400, counted.
pub const BULK_TEXT_BYTES_MAX: u32 = 8 * 1024 * 1024;
/// The response to one `bulk-identities/` request, bytes: the flags of 100 identities can be 20,000 times the
/// size of the request. Beyond: 400, counted; one identity may have more.
pub const BULK_ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Experiment events, as in Flagsmith's events API (compatibility.md 1.6): the name, the feature's name and
/// the identifier, and the key of a trait, characters; the value, the traits and the metadata, bytes of JSON.
/// Beyond: the event is rejected, and counted by its member.
pub const EVENT_NAME_CHARS_MAX: usize = 256;
pub const EVENT_TEXT_CHARS_MAX: usize = 2000;
pub const EVENT_TRAIT_KEY_CHARS_MAX: usize = 200;
pub const EVENT_VALUE_BYTES_MAX: usize = 128 * 1024;
pub const EVENT_TRAITS_BYTES_MAX: usize = 32 * 1024;
pub const EVENT_METADATA_BYTES_MAX: usize = 8 * 1024;
/// Rejected events that a response to `v1/events` lists. Beyond: rejected too, but not listed.
pub const EVENT_REJECTIONS_MAX: usize = 100;

// --- a response ---

/// The smallest ready body that is written without a copy, bytes.
pub const TAIL_BYTES_MIN: usize = 16 * 1024;
/// The smallest body that is compressed, bytes, as in the Python proxy (compatibility.md 2.6).
pub const COMPRESS_BYTES_MIN: usize = 1000;
/// Compressed results of evaluations that a reactor keeps, bytes with their keys: some 500 of documents with
/// 50 features. Beyond: those not used for longest are removed, and counted.
pub const RESULT_CACHE_BYTES_MAX: usize = 1024 * 1024;
/// Longest result that is kept, bytes before compression. Beyond: compressed for each request.
pub const CACHED_RESULT_BYTES_MAX: usize = 256 * 1024;
/// Responses to pipelined requests that are collected into one write, bytes. Beyond: they are written first.
pub const BATCH_BYTES_MAX: usize = 64 * 1024;
/// Response buffers that a reactor keeps for reuse, bytes, and the largest of them. Beyond: released.
pub const SPARE_BUFFERS_BYTES_MAX: usize = 1024 * 1024;
pub const SPARE_BUFFER_BYTES_MAX: usize = 256 * 1024;
/// Time between two comments on an idle event stream, as in Flagsmith's service.
pub const STREAM_KEEP_ALIVE: Duration = Duration::from_secs(15);

// --- a connection ---

/// Free space in the buffer before a read, bytes. With less, the buffer is compacted or grown.
pub const READ_BYTES_MIN: usize = 1024;
/// A connection's buffer while it waits for a request, bytes. With its task and registers, an idle connection
/// takes less than 8 KiB. Beyond: released when the connection is idle.
pub const READ_BYTES_IDLE: usize = 2560;
/// Buffers of requests and responses of all connections, bytes, shared evenly among the reactors, and the
/// minimum share. Beyond: the connections that have waited longest for their peers are closed and counted;
/// beyond 1.5 times the limit also those that have waited for a short time.
pub const BUFFERED_BYTES_MAX: usize = 40 * 1024 * 1024;
pub const BUFFERED_BYTES_REACTOR_MIN: usize = 16 * 1024 * 1024;
/// Buffers of requests without a response yet, whose clients may have no key, bytes, and the minimum share of
/// a reactor. At 1.5 times this nothing grows; the allocator keeps outgrown buffers for a second, so that the
/// process grows by some 25 MB. Beyond: the connections that have waited longest are closed and counted.
pub const BUFFERED_REQUEST_BYTES_MAX: usize = 6 * 1024 * 1024;
pub const BUFFERED_REQUEST_BYTES_REACTOR_MIN: usize = 4 * 1024 * 1024;
/// Buffers of a connection up to this size do not count towards `BUFFERED_BYTES_MAX`, bytes.
pub const BUFFERED_BYTES_MIN: usize = 4 * 1024;
/// Bytes of a connection that wait in the kernel and are not in flight yet (`TCP_NOTSENT_LOWAT`, tcp(7)). The
/// kernel's own limit is 4 MiB (`tcp_wmem`), so that 200 clients that do not read would take 800 MB outside
/// of the process, and the time to copy it. Beyond: the rest waits in the process.
pub const UNSENT_BYTES_MAX: u32 = 256 * 1024;
/// Connections in the kernel's accept queue of a listener; `somaxconn` caps it. Beyond: the kernel drops new
/// connections, and clients retry.
pub const BACKLOG_MAX: i32 = 4096;
/// How often the connection table is swept for timeouts: the resolution of all connection timeouts.
pub const SWEEP_INTERVAL: Duration = Duration::from_millis(250);
/// A connection that releases this many bytes of buffers makes the reactor purge, see `BufferMemory::purge`.
/// Smaller buffers stay with the allocator for the next requests.
pub const PURGE_BYTES_MIN: usize = 64 * 1024;
/// Sweeps between the release and the purge: longer than the second for which mimalloc keeps freed pages.
pub const PURGE_SWEEPS: u32 = 5;
/// The block that a purge allocates: above 512 KiB a block of mimalloc shares no pages.
pub const PURGE_BLOCK_BYTES: usize = 1024 * 1024;
/// Time for a request head, from its first byte. Beyond: 408 and close.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a request body, from the end of its head. Beyond: 408 and close.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for a peer to receive `WRITE_BYTES_MIN` of a response. Beyond: closed and counted.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// What a peer must receive within `WRITE_TIMEOUT`, bytes: 270 bytes/s, similar to other servers (Kestrel:
/// 240). Without a minimum, a slow peer could keep a response and its snapshot in memory for days. Beyond:
/// closed and counted.
pub const WRITE_BYTES_MIN: usize = 8 * 1024;
/// A large response must be received within this many times `WRITE_TIMEOUT`, in equal parts: it keeps its
/// environment in memory, of which there may be a newer version.
pub const WRITE_PARTS_MAX: usize = 20;
/// Time after the last response for the peer to receive it and close. Beyond: closed.
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes read and discarded while lingering, because closing with unread input would destroy the response in
/// flight. Beyond: closed.
pub const LINGER_BYTES_MAX: usize = 1024 * 1024;
/// Socket operations of a connection without waiting, and the bytes that count as one more: a few
/// milliseconds of pipelined requests. Beyond: the connection pauses for `BUDGET_PAUSE`.
pub const BUDGET_OPERATIONS_MAX: u32 = 512;
pub const BUDGET_OPERATION_BYTES: usize = 1024;
/// Pause of a connection that has used up its budget; timers have no finer resolution.
pub const BUDGET_PAUSE: Duration = Duration::from_millis(1);
/// Connections of one reactor (`server.connections_max`). Beyond: closed immediately and counted.
pub const CONNECTIONS_MAX: usize = 50_000;

/// Events of a reactor that wait to be written to disk, bytes in total shared among the reactors, the minimum
/// share, and the requests that wait for it. Beyond: 503, and the events are counted as refused.
pub const EVENTS_QUEUED_BYTES_MAX: usize = 8 * 1024 * 1024;
pub const EVENTS_QUEUED_BYTES_REACTOR_MIN: usize = 2 * 1024 * 1024;
pub const EVENT_POSTS_QUEUED_MAX: usize = 1024;
/// Writes of kept traits of a reactor that the store thread has not acknowledged: their number, their bytes
/// in total shared among the reactors, and the minimum share. Beyond: answered, but not kept, and counted.
pub const TRAIT_WRITES_QUEUED_MAX: usize = 4096;
pub const TRAIT_WRITE_BYTES_QUEUED_MAX: usize = 32 * 1024 * 1024;
pub const TRAIT_WRITE_BYTES_QUEUED_REACTOR_MIN: usize = 2 * 1024 * 1024;
/// Updates of the table that a reactor has not read. Beyond: it gets the whole table.
pub const TRAIT_UPDATES_QUEUED_MAX: usize = 256;
/// Writes that the store thread merges before it informs the reactors.
pub const TRAIT_GROUP_MAX: usize = 1024;
/// The kept traits of one identity, bytes. Beyond: 413, and nothing is kept.
pub const TRAIT_IDENTITY_BYTES_MAX: usize = 64 * 1024;
/// Identities whose traits are kept. Beyond: the least used are removed and counted.
pub const TRAIT_IDENTITIES_MAX: usize = 1_000_000;
/// All kept traits, bytes; the minimum of the setting; and the part of one environment. Beyond: the least
/// used identities are removed and counted.
pub const TRAIT_BYTES_MAX: u64 = 256 * 1024 * 1024;
pub const TRAIT_BYTES_MIN: u64 = 1024 * 1024;
pub const TRAIT_ENVIRONMENT_PART: u64 = 2;
/// What an identity counts beyond its record, bytes: its place in the index and in a queue.
pub const TRAIT_RECORD_OVERHEAD_BYTES: u64 = 32;
/// Identities in one `traits/bulk/`. Beyond: 400.
pub const TRAIT_BULK_IDENTITIES_MAX: usize = 1000;
/// The key of a kept trait, characters. Beyond: 422.
pub const TRAIT_KEY_CHARS_MAX: usize = 200;
/// Cache of the engine that stores traits on disk, bytes. The table itself is in memory.
pub const TRAIT_DISK_CACHE_BYTES: usize = 8 * 1024 * 1024;
/// Damaged files of kept traits that were put aside and are kept. Beyond: the oldest is removed.
pub const TRAIT_DAMAGED_FILES_MAX: usize = 2;
/// Identifiers of removed identities that wait for the disk, bytes. Beyond: evicted ones may come back.
pub const TRAIT_REMOVALS_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How long the end of the process waits until kept traits are on the disk. Beyond: the last second is lost.
pub const TRAIT_STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request waits until its events are written. The Python SDK waits 3 s. Beyond: 503.
pub const EVENT_WRITE_TIMEOUT: Duration = Duration::from_secs(2);

// --- an HTTP/2 connection ---

/// Concurrent streams of a connection (`server.http2_streams_max`). Beyond: refused; the client may retry.
pub const HTTP2_STREAMS_MAX: usize = 100;
/// Allowed values of `server.http2_streams_max`. Beyond: the configuration is rejected.
pub const HTTP2_STREAMS_RANGE: std::ops::RangeInclusive<usize> = 1..=1000;
/// Payload of a received frame, bytes: the minimum of the protocol. Beyond: the connection closes.
pub const HTTP2_FRAME_BYTES_MAX: usize = 16 * 1024;
/// Payload of a sent frame, bytes, if the peer allows it.
pub const HTTP2_SENT_FRAME_BYTES_MAX: usize = 64 * 1024;
/// The largest read of a connection whose client sends bursts, bytes. Beyond: read later.
pub const HTTP2_READ_BYTES_MAX: usize = 40 * 1024;
/// The initial window of a stream, bytes. Beyond: its body waits for a part of `HTTP2_BODIES_WINDOW`.
pub const HTTP2_STREAM_WINDOW: u32 = 8 * 1024;
/// What a client may send in the request bodies of all streams of a connection before it gets more, bytes.
/// Beyond: the connection closes with FLOW_CONTROL_ERROR.
pub const HTTP2_CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Request bodies of a connection beyond the windows of their streams, bytes: those of a body one byte larger
/// than it may be, so that it is noticed. Beyond: streams wait for each other.
pub const HTTP2_BODIES_WINDOW: u32 = BODY_BYTES_MAX as u32 + 1 - HTTP2_STREAM_WINDOW;
/// Dynamic table of the header decoder, bytes as the protocol counts them. Beyond: the connection closes.
pub const HPACK_TABLE_BYTES_MAX: usize = 4096;
/// Scratch buffers of the header decoder that a connection keeps, bytes. Beyond: released after the block.
pub const HPACK_SCRATCH_BYTES_MAX: usize = 1024;
/// A head that exceeds its limit by this factor is not decoded further. Beyond: the connection closes.
pub const HTTP2_HEAD_FACTOR: usize = 4;
/// CONTINUATION frames of one header block. Beyond: the connection closes.
pub const HTTP2_CONTINUATIONS_MAX: usize = 16;
/// Read buffer, header blocks, heads and tables of a connection, bytes. Beyond: the stream is refused.
pub const HTTP2_STATE_BYTES_MAX: usize = 64 * 1024;
/// Heads of requests whose bodies have not arrived, bytes. Beyond: the stream is refused.
pub const HTTP2_HEADS_BYTES_MAX: usize = 16 * 1024;
/// Decoded heads that a connection keeps, and the largest of them and of their blocks, bytes. Beyond: decoded
/// for each request.
pub const HTTP2_KEPT_HEADS_MAX: usize = 4;
pub const HTTP2_KEPT_BLOCK_BYTES_MAX: usize = 512;
pub const HTTP2_KEPT_HEAD_BYTES_MAX: usize = 1024;
/// Responses that wait for the peer's window, bytes, bodies rendered in advance apart. Beyond: further
/// requests of the connection wait.
pub const HTTP2_OUTGOING_BYTES_MAX: usize = 256 * 1024;
/// Consecutive frames that neither open a stream nor carry a part of a body (PING, SETTINGS, PRIORITY,
/// WINDOW_UPDATE, empty DATA, unknown types). Beyond: the connection closes.
pub const HTTP2_IDLE_FRAMES_MAX: u32 = 1000;
/// Streams that either side resets, beyond half of all streams. Beyond: the connection closes.
pub const HTTP2_RESETS_MAX: u64 = 100;
/// Encoded response heads that a reactor caches, and the largest fields of one, bytes. Beyond: encoded for
/// each response.
pub const CACHED_BLOCKS_MAX: usize = 16;
pub const CACHED_BLOCK_BYTES_MAX: usize = 1024;

// --- a reactor ---

/// Entries of a reactor's submission queue; the completion queue has four times as many.
pub const RING_ENTRIES: u32 = 1024;
/// Requests that a reactor answers in one turn of its event loop: two or three milliseconds. Beyond: the
/// connections that have waited longest are answered in the next turn.
pub const TURN_ANSWERS_MAX: usize = 256;
/// Bytes that a reactor renders or encrypts in one turn, half of a core's second-level cache: they are read
/// again when the turn ends and they are sent. Beyond: as for `TURN_ANSWERS_MAX`.
pub const TURN_BYTES_MAX: usize = 512 * 1024;
/// Allowed values of `server.spin_microseconds`. Beyond: the configuration is rejected.
pub const SPIN_MICROSECONDS_RANGE: std::ops::RangeInclusive<u64> = 0..=1_000_000;
/// Accepts of a listener that the kernel may complete in one turn of the event loop, with io_uring. Beyond:
/// new connections wait for the next turn.
pub const ACCEPTS_IN_FLIGHT: usize = 16;
/// While draining, an idle connection may send a request for this time. Beyond: closed.
pub const DRAIN_IDLE_TIMEOUT: Duration = Duration::from_millis(250);
/// Time in which a reactor ends its open requests and reports its last counts. Beyond: they are lost.
pub const LAST_COUNTS_TIMEOUT: Duration = Duration::from_secs(1);
/// Time to connect to a listener of this machine. Beyond: nothing listens there.
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(250);
/// Temporary names tried for a unix socket before it is renamed to its path. Beyond: the start fails.
pub const UNIX_SOCKET_NAMES_MAX: u32 = 16;
/// File descriptors that are not available to clients: for fetches, event streams, files, the admin listener,
/// rings.
pub const DESCRIPTORS_RESERVED: u64 = 256;

/// Networks of `server.allow_list` or `server.deny_list`, which each request is compared with, one by one: a
/// few microseconds. Beyond: the configuration is rejected.
pub const NETWORKS_MAX: usize = 1024;
/// `server.base_path`, bytes. Beyond: the configuration is rejected.
pub const BASE_PATH_BYTES_MAX: usize = 256;

// --- upstream, files on disk, uploads ---

/// Configuration file, bytes; ten thousand key pairs take 1 MB. Beyond: rejected.
pub const CONFIG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// `api_headers`: fields, and the value of each, bytes. Gateways accept heads of 8 KiB. Beyond: the
/// configuration is rejected.
pub const API_HEADERS_MAX: usize = 32;
pub const API_HEADER_BYTES_MAX: usize = 8 * 1024;
/// A PEM file of certificates or a key, bytes; the list of all public authorities takes 0.3 MB. Beyond:
/// rejected.
pub const PEM_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// A file in `cache_dir`, bytes, independent of `api_document_bytes_max`. Beyond: ignored, and the document
/// is fetched.
pub const CACHE_FILE_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Longest wait after a failure, including `Retry-After`, while there is no document, or while readiness
/// fails or will fail: clients get errors, and orchestrators restart the process.
pub const BACKOFF_URGENT_MAX: Duration = Duration::from_secs(5);
/// Longest wait after a failure, independent of the poll interval.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Longest `Retry-After` for what never becomes stale: discovery, uploads. Beyond: shortened.
pub const RETRY_AFTER_DEFAULT_MAX: Duration = Duration::from_secs(60);
/// Longest `Retry-After`, independent of the grace period: an error of upstream must not stop polling for a
/// day. Beyond: shortened.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);
/// A continuing failure is logged again after this time, so that the log of the last hour contains it.
pub const FAILURE_REMINDER: Duration = Duration::from_secs(600);
/// Concurrent fetches. At 1 s per fetch, 200 environments take 7 s. Beyond: environments wait.
pub const FETCH_THREADS_MAX: usize = 32;
/// Redirects of one request. Beyond: the poll fails.
pub const REDIRECTS_MAX: usize = 5;
/// Rejected key pairs of a discovery response that are logged individually. Beyond: their number is.
pub const DISCOVERY_WARNINGS_MAX: usize = 100;
/// Pages of a document. The hosted API's pages have about 1 MB, so this is four times the largest document.
/// Beyond: the poll fails.
pub const PAGES_MAX: usize = 1024;
/// Slowest body from upstream, bytes per second. Beyond: the poll fails, because a slow response would occupy
/// a fetch thread.
pub const FETCH_RATE_MIN: u64 = 64 * 1024;
/// How often a document on disk is checked for changes.
pub const FILE_POLL: Duration = Duration::from_millis(500);
/// Name of a feature, characters, as in core. Beyond: the count is skipped.
pub const FEATURE_NAME_CHARS_MAX: usize = 2000;
/// Each SDK header field by which counts are grouped, bytes. Beyond: truncated at a character boundary.
pub const LABEL_BYTES_MAX: usize = 256;
/// Labels (distinct sets of these header fields) of an environment between two uploads; each needs a separate
/// upload. Beyond: counted without a label.
pub const COUNT_LABELS_MAX: usize = 50;
/// Size of a row of counts besides its strings, bytes, in memory or in the JSON of an upload.
pub const COUNT_ROW_BYTES: usize = 128;
/// Rows of counts with an identifier: of a label, of an environment, and of all environments, bytes. Each
/// reactor, and the reports in flight, have the same limits. Beyond: counted without the identifier.
pub const COUNT_LABEL_BYTES_MAX: usize = 1024 * 1024;
pub const COUNT_ENVIRONMENT_BYTES_MAX: usize = 2 * 1024 * 1024;
pub const COUNT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Rows with an identifier that each environment can have when `COUNT_BYTES_MAX` is reached, bytes.
pub const COUNT_ENVIRONMENT_BYTES_MIN: usize = 64 * 1024;
/// Rows of counts without an identifier, of the labels of an environment, bytes; one label can have half of
/// it. A document with 400 features needs 0.1 MB per label. Beyond: counted without a label; rows without a
/// label have a separate limit of the same size, beyond which counts are lost and counted.
pub const COUNT_PLAIN_BYTES_MAX: usize = 2 * 1024 * 1024;
/// The same while there is no document, because then any feature name is accepted, bytes.
pub const COUNT_UNKNOWN_BYTES_MAX: usize = 64 * 1024;
/// Count of a row in an upload; core stores 32 bits. Beyond: the rest waits for the next upload; when the
/// process exits it is lost and counted.
pub const COUNT_MAX: u64 = i32::MAX as u64;
/// Body of an upload, bytes. Proxies and web servers usually accept 1 MB. Beyond: several uploads.
pub const UPLOAD_BYTES_MAX: usize = 1_000_000;
/// Pending uploads of an environment, bytes, in memory and on disk; twice as much when the process exits.
/// Beyond: its largest labels are not packed, and are lost and counted when the process exits.
pub const OUTBOX_ENVIRONMENT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Duration of a round of uploads. Beyond: the remaining batches wait for the next round.
pub const ROUND_TIME_MAX: Duration = Duration::from_secs(10);
/// Splits of rejected uploads of an environment in a round; one invalid row in a full upload takes 14.
/// Beyond: rejected counts are lost and counted.
pub const DIVISIONS_MAX: u32 = 128;
/// Silence on an event stream; upstream sends a comment every 15 s. Beyond: reconnected.
pub const STREAM_SILENCE_MAX: Duration = Duration::from_secs(60);
/// A line of an event stream, bytes. Beyond: reconnected.
pub const STREAM_LINE_BYTES_MAX: usize = 64 * 1024;
/// Bytes and lines (including comments and empty lines) of an event stream within `STREAM_WINDOW`. Upstream
/// sends a few hundred bytes per edit and a comment every 15 s, so this is 300 edits per second. Beyond:
/// closed, logged (`realtime_flood`), counted, and reopened after a backoff.
pub const STREAM_WINDOW: Duration = Duration::from_secs(1);
pub const STREAM_WINDOW_BYTES_MAX: usize = 256 * 1024;
pub const STREAM_WINDOW_LINES_MAX: usize = 1000;
/// Age at which a temporary file belongs to a process that was killed, and is removed.
pub const STORE_LEFTOVER_AGE: Duration = Duration::from_secs(3600);
/// What a record of a spool counts for at least, bytes: each takes 100 bytes of memory too, so that a full
/// spool of 256 MiB takes 50 MiB.
pub const SPOOL_RECORD_BYTES_MIN: u64 = 512;
/// Segment files of a full spool, and the size of one, bytes: it is deleted when all of it is delivered.
pub const SPOOL_SEGMENTS: u64 = 64;
pub const SPOOL_SEGMENT_BYTES_MIN: u64 = 64 * 1024;
pub const SPOOL_SEGMENT_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Processes that share a `cache_dir`; each uses its own spool. Beyond: nothing is spooled.
pub const SPOOLS_MAX: u32 = 64;
/// Events in one record of the spool, and in one batch that is forwarded, bytes of JSON. Proxies and web
/// servers usually accept 1 MB. One event may be larger than a record.
pub const EVENT_RECORD_BYTES_MAX: usize = 256 * 1024;
pub const EVENT_BATCH_BYTES_MAX: usize = UPLOAD_BYTES_MAX;
/// Spooled events (`events.spool_bytes_max`), bytes. Beyond: 503, and the events are counted as refused.
pub const EVENTS_SPOOL_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// The smallest `events.spool_bytes_max`, bytes: the spool has to take the events of a few requests.
pub const EVENTS_SPOOL_BYTES_MIN: u64 = 4 * 1024 * 1024;
/// Different SDK header fields of an environment's waiting events. Beyond: sent without the field.
pub const EVENT_SDKS_MAX: usize = 50;
/// A response to a batch of events, bytes. Beyond: its list of rejected events is not read.
pub const EVENTS_ANSWER_BYTES_MAX: usize = 256 * 1024;
/// Different reasons of upstream's rejections that are counted, and the characters of each. Beyond: `other`.
pub const EVENT_REASONS_MAX: usize = 32;
pub const EVENT_REASON_CHARS_MAX: usize = 64;
/// Batched events of `events.fsync` `second` are written to the disk after this time.
pub const EVENT_SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// Upstream's answers of 500 to a batch in rounds in which it accepted others. Beyond: the batch is divided.
pub const EVENT_FAULTS_MAX: u32 = 3;
/// Kept traits that wait to be forwarded, bytes, with `TRAIT_FORWARD_ITEM_BYTES` for each. Beyond: further
/// ones are not forwarded, and counted.
pub const TRAIT_FORWARD_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// What a trait that waits takes beside its texts, bytes.
pub const TRAIT_FORWARD_ITEM_BYTES: u64 = 128;
/// Changes that wait for the journal, bytes. Beyond: it is written anew.
pub const TRAIT_FORWARD_UNWRITTEN_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Traits that have changed while their journal could not be opened and that are remembered, 16 bytes each.
/// Beyond: what the journal has is not sent, as newer values may have been.
pub const TRAIT_FORWARD_CHANGED_MAX: usize = 1024 * 1024;
/// Identities of a request to `traits/bulk/`: for core each costs some 20 ms. Beyond: several requests.
pub const TRAIT_FORWARD_IDENTITIES_MAX: usize = 100;
/// Characters of a key and of a text value that core accepts. Beyond: not forwarded, and counted.
pub const TRAIT_FORWARD_KEY_CHARS_MAX: usize = 200;
pub const TRAIT_FORWARD_TEXT_CHARS_MAX: usize = TRAIT_VALUE_CHARS_MAX;
/// How often the configuration file and certificates are checked for changes.
pub const CONFIG_POLL: Duration = Duration::from_secs(1);
/// Rows of a usage report, as upstream accepts (compatibility.md 4.3). Beyond: several reports.
pub const USAGE_ROWS_MAX: usize = 1000;
/// How long a process that exits uploads counts. Beyond: the rest is saved on disk.
pub const LAST_UPLOAD_TIMEOUT: Duration = Duration::from_secs(5);

// --- documents and their compilation ---

/// Digits of an integer, as in CPython (`sys.get_int_max_str_digits`). Beyond: 400 for a JSON body, a
/// document is rejected, and a condition on a trait is false.
pub const INTEGER_DIGITS_MAX: usize = 4300;
/// An environment document with all its pages, bytes (`api_document_bytes_max`). Valid documents reach tens
/// of MB (compatibility.md 3). Beyond: the poll fails.
pub const DOCUMENT_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Connections on their way to one reactor (`server.spread`). Beyond: they stay where they were accepted.
pub const SPREAD_QUEUED_MAX: usize = 256;
/// Documents that deltas are made of, bytes. Beyond: children get the whole document.
pub const DELTA_DOCUMENT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The window that every decoder of `dcz` supports, bytes (RFC 9842 5: 8 MB); more only for larger
/// dictionaries.
pub const DELTA_WINDOW_BYTES_MIN: usize = 8_000_000;
/// Earlier editions of a document that deltas are made from. Each takes some 30 ms of a core for 20 MB.
pub const DELTA_EDITIONS_MAX: usize = 4;
/// One delta, bytes; also at most half of the compressed document. Beyond: not kept, and children get the
/// whole document.
pub const DELTA_BYTES_MAX: usize = 1024 * 1024;
/// Editions without a request for a delta after which none are made.
pub const DELTA_IDLE_EDITIONS_MAX: u8 = 8;
/// Nesting of a document. Core nests 12 deep; the engine allows any depth. Beyond: rejected.
pub const DOCUMENT_DEPTH_MAX: usize = 512;
/// Duplicate members in a document. No JSON writer produces any. Beyond: rejected.
pub const DUPLICATE_MEMBERS_MAX: usize = 64;
/// Ready bodies of an environment, bytes. A long name repeated in many feature states can make them larger
/// than the document. Beyond: the document is rejected.
pub const ANSWER_BYTES_MAX: usize = 1024 * 1024 * 1024;

// --- conditions ---

/// Length of a chain of flags that depend on each other. Python fails at about 45. Beyond: treated as a
/// cycle.
pub const FLAG_CHAIN_MAX: usize = 128;
/// Flags that conditions read in one evaluation; without a limit, flags that read each other would take time
/// exponential in their number. Beyond: treated as a cycle.
pub const FLAG_READS_MAX: usize = 10_000;
/// Steps that cycles of flags take in a request: a step for each read that a cycle cuts, and one for each
/// condition of a segment whose result is discarded, [`SCAN_STEPS`] if it scans text. Without cycles nothing
/// is spent. Beyond: flags not resolved by then are treated as in a cycle, and the request is counted;
/// `bulk-identities/` is answered with 400, unless its first identity exceeds it.
pub const FLAG_CYCLE_STEPS_MAX: u32 = 100_000;
/// Steps for a condition that hashes or searches a text of up to [`TRAIT_VALUE_CHARS_MAX`].
pub const SCAN_STEPS: u32 = 32;
/// Steps of one backtracking match, about 1 ms. Python has no limit: such a pattern blocks its process.
/// Beyond: no match.
pub const PATTERN_STEPS_MAX: u32 = 200_000;
/// Steps of all backtracking matches of a request. Beyond: REGEX conditions that need more are false, and the
/// request is counted.
pub const PATTERN_STEPS_REQUEST_MAX: u32 = 1_000_000;
/// Pattern of a REGEX condition, bytes, far more than a person writes. Beyond: the condition is false.
pub const PATTERN_BYTES_MAX: usize = 20_000;
/// Nested groups of a pattern; Python's limit is its recursion limit (about 480). Beyond: the condition is
/// false.
pub const PATTERN_DEPTH_MAX: usize = 250;
/// Automaton of a pattern, bytes. Beyond: the backtracking matcher is used.
pub const PATTERN_AUTOMATON_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Automata of all patterns of a document, bytes; one that exceeds its own limit counts with that size.
/// Beyond: the backtracking matcher is used, which needs little memory and no construction.
pub const PATTERN_AUTOMATA_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Nested lists of an IN condition; CPython fails too, at a depth that depends on its build. Beyond: the
/// condition is false.
pub const IN_LIST_DEPTH_MAX: usize = 200;
/// Steps of all general JSONPath queries of a request, about a node each. Python has no limit. Beyond:
/// conditions on such queries are false for the rest of the request, and the request is counted.
pub const JSONPATH_STEPS_MAX: u32 = 300_000;
/// Automaton of a pattern that a JSONPath takes from the request, bytes. Beyond: no match.
pub const JSONPATH_PATTERN_BYTES_MAX: usize = 64 * 1024;
/// Nested filters and functions in a JSONPath; Python's limit is its recursion limit. Beyond: the condition
/// is false.
pub const JSONPATH_DEPTH_MAX: usize = 100;

const _: () = assert!(BUFFERED_BYTES_MIN > READ_BYTES_IDLE, "idle connections do not count");
const _: () = assert!(COMPRESS_BYTES_MIN < TAIL_BYTES_MIN, "bodies that are not copied are compressed");
const _: () = assert!(
    COUNT_ENVIRONMENT_BYTES_MAX + 2 * COUNT_PLAIN_BYTES_MAX <= OUTBOX_ENVIRONMENT_BYTES_MAX,
    "all counts of an environment can be packed together",
);
