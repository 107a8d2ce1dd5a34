//! Every bound in one place: its unit, its reason, and what happens when it is met.
//!
//! Settings that a user may change have their default here and are read from `config`.
//! Invariant: a bound that is not named here does not exist. No code, only constants.
use std::time::Duration;

// --- a request ---

/// Request head, bytes (`server.head_bytes_max`). Beyond: 431 and close; a target that takes more than half
/// of it: 414 and close. Browsers send under 8 KiB, unless cookies of a whole domain come with it.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// What `server.head_bytes_max` may be, bytes. An SDK may not get by with less; no proxy in front sends
/// more (HAProxy 16 KiB, nginx 32 KiB), and the decoder takes 65,534 bytes of target.
pub const HEAD_BYTES_RANGE: std::ops::RangeInclusive<usize> = 4 * 1024..=64 * 1024;
/// Header fields of one request. Beyond: 431 and close. monoio-http's decoder has room for as many.
pub const HEADERS_MAX: usize = 96;
/// Decoded heads that a reactor caches, and the longest that is cached, bytes: with their fields 0.5 MiB at
/// most.
pub const CACHED_HEADS_MAX: usize = 128;
pub const CACHED_HEAD_BYTES_MAX: usize = 2048;
/// Request body, bytes, after de-chunking and de-compression. Beyond: 413 and close. No SDK sends more.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Empty lines skipped before a request line (RFC 9112 2.2 asks for one). Beyond: 400 and close.
pub const EMPTY_LINES_MAX: usize = 2;
/// One chunk-size line with its extensions, bytes. Beyond: 400 and close.
pub const CHUNK_LINE_BYTES_MAX: usize = 256;
/// Trailer fields of a chunked body, bytes. They are read over. Beyond: 431 and close.
pub const TRAILER_BYTES_MAX: usize = 4 * 1024;
/// A trait value that is text, characters. Beyond: 422, as the Python proxy; 400 in a context of OFREP.
pub const TRAIT_VALUE_CHARS_MAX: usize = 2000;
/// An identifier, characters: what Flagsmith core stores. Beyond: 422, 400 as OFREP's `targetingKey`, cut in
/// `analytics/flags/`; each condition on the identifier would read all of it again.
pub const IDENTIFIER_CHARS_MAX: usize = TRAIT_VALUE_CHARS_MAX;
/// Errors listed in a 422. Beyond: a last entry says so, `edge_proxy_errors_truncated_total` counts it, and
/// the rest of the body is not judged. Python lists 350,000 for a body of 1 MiB, in 50 MB.
pub const ERRORS_MAX: usize = 100;
/// The `input` of one error in a 422, bytes of JSON. Beyond: it is cut and ends in `...`. With `ERRORS_MAX`
/// this keeps the whole answer below 64 KiB.
pub const ERROR_INPUT_BYTES_MAX: usize = 200;
/// Bytes of a body that are judged for a caller without a valid key: 0.3 ms of work. Beyond: 422 if these are
/// refused already, whatever follows, else 401.
pub const UNKNOWN_CALLER_BODY_BYTES_MAX: usize = 64 * 1024;
/// An unknown key that a 401 quotes, bytes. Beyond: it is cut and ends in `...`.
pub const KEY_QUOTED_BYTES_MAX: usize = 2048;
/// Bodies from this size on leave no buffers behind that were grown for them, bytes.
pub const KEPT_BODY_BYTES_MAX: usize = 64 * 1024;
/// Buffers for an answer that a reactor keeps (plain and compressed), bytes each. Larger ones are released
/// after the request.
pub const KEPT_ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Nesting of a JSON body. Beyond: 400. Where Python 3.12's `json.loads` gives up (measured).
pub const JSON_DEPTH_MAX: usize = 1497;
/// Stack of a reactor, bytes, whatever `RUST_MIN_STACK` says. A body of `JSON_DEPTH_MAX` takes 0.75 MiB of
/// it, and more than 2 MiB where nothing is optimised.
pub const STACK_BYTES: usize = if cfg!(debug_assertions) { 8 } else { 2 } * 1024 * 1024;
/// Identities in one `bulk-identities/`. Beyond: 400. What the hosted Edge API takes.
pub const BULK_IDENTITIES_MAX: usize = 100;
/// Bytes of identifiers and trait values that the conditions of one `bulk-identities/` may hash or search
/// together, each at least 64. Beyond: 400, counted; fewer identities must be sent at once.
pub const BULK_TEXT_BYTES_MAX: u32 = 8 * 1024 * 1024;

// --- an answer ---

/// Ready bodies at least this large are written from where they are, not copied, bytes.
pub const TAIL_BYTES_MIN: usize = 16 * 1024;
/// Rendered responses that a reactor caches for a second, and the largest body, bytes: 0.5 MiB at most.
pub const CACHED_RESPONSES_MAX: usize = 8;
pub const CACHED_RESPONSE_BYTES_MAX: usize = 64 * 1024;
/// Smallest body worth compressing, bytes. The Python proxy's value (compatibility.md 2.6).
pub const COMPRESS_BYTES_MIN: usize = 1000;
/// Answers to pipelined requests are gathered up to this many bytes before they are written.
pub const BATCH_BYTES_MAX: usize = 64 * 1024;
/// Answer buffers a reactor keeps for reuse, and the largest that is kept, bytes.
pub const SPARE_BUFFERS_MAX: usize = 64;
pub const SPARE_BUFFER_BYTES_MAX: usize = 128 * 1024;
/// Between two comments on an event stream that has nothing to tell. As the SDKs' own service.
pub const STREAM_KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Where the year 10000 begins, seconds since the epoch. From then on a document has no time for those
/// who read it: neither an HTTP date nor RFC 3339 can tell it.
pub const YEAR_10000_SECONDS: u64 = 253_402_300_800;

// --- a connection ---

/// Free room before a read, bytes; less, and the buffer is moved together or grown.
pub const READ_BYTES_MIN: usize = 1024;
/// A connection's buffer while it waits for a request, bytes. With the task and its registers an
/// idle connection stays below 8 KiB of our memory; a larger buffer is given back when it idles.
pub const READ_BYTES_IDLE: usize = 2560;
/// Room for what comes encrypted, once the handshake is done, bytes: a whole record and its head.
pub const TLS_READ_BYTES: usize = 16 * 1024 + 256;
/// What all connections may hold in requests and answers, bytes, shared out evenly among the reactors, and
/// the least share. Beyond: those that have waited longest for their peers are ended and counted; beyond half
/// as much again also those that have not waited for long.
pub const HELD_BYTES_MAX: usize = 40 * 1024 * 1024;
pub const HELD_BYTES_REACTOR_MIN: usize = 16 * 1024 * 1024;
/// What requests may hold of it that are not answered yet, bytes: their callers may have no key.
/// Buffers that they outgrew take as much again until the allocator returns them, so that the process grows
/// by 24 MiB at most.
pub const HELD_REQUEST_BYTES_MAX: usize = 8 * 1024 * 1024;
pub const HELD_REQUEST_BYTES_REACTOR_MIN: usize = 4 * 1024 * 1024;
/// Buffers of one connection up to this size are not counted towards it, bytes.
pub const HELD_BYTES_MIN: usize = 4 * 1024;
/// Who waits for its peer no longer than this is not ended for what it holds.
pub const HELD_PATIENCE: Duration = Duration::from_millis(500);
/// Connections the kernel holds for a listener before they are accepted; `somaxconn` caps it.
pub const BACKLOG_MAX: i32 = 4096;
/// How often idle and slow connections are looked at: the times of a connection are no finer.
pub const SWEEP_INTERVAL: Duration = Duration::from_millis(250);
/// A head, from its first byte. Beyond: 408 and close.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A body, from the end of its head. Beyond: 408 and close.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// For a peer to take `WRITE_BYTES_MIN` of what is written to it. Beyond: closed and counted.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// What a peer must take within `WRITE_TIMEOUT`, bytes: 270 a second, about what other servers ask
/// for (Kestrel: 240). Without it one byte now and then would hold an answer, and its snapshot, for days.
pub const WRITE_BYTES_MIN: usize = 8 * 1024;
/// Of a large answer this part counts instead, so that all of it is taken within so many times
/// `WRITE_TIMEOUT`: a ready body holds the environment that it belongs to, of which there may be a
/// newer one by then.
pub const WRITE_PARTS_MAX: usize = 20;
/// After the last answer, for the peer to take it and close. Beyond: close.
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes read over while lingering, so that a close does not destroy the answer on its way.
pub const LINGER_BYTES_MAX: usize = 1024 * 1024;
/// Pause of the accept loop at the descriptor limit, instead of spinning.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Operations on a socket that one task may do without ever having to wait, and how many bytes count as
/// one more. Then it rests for a moment: some milliseconds' worth of pipelined requests.
pub const TURN_OPERATIONS_MAX: u32 = 512;
pub const TURN_BYTES: usize = 1024;
/// How long; no timer is finer.
pub const TURN_REST: Duration = Duration::from_millis(1);
/// Connections one reactor holds (`server.connections_max`). Beyond: closed at once and counted.
pub const CONNECTIONS_MAX: usize = 50_000;

// --- a reactor ---

/// Entries of a reactor's submission queue; its completion queue has four times as many.
pub const RING_ENTRIES: u32 = 1024;
/// While draining, an idle connection may still bring a request for so long.
pub const DRAIN_IDLE_TIMEOUT: Duration = Duration::from_millis(250);
/// While draining, handshakes under way when new ones were shut out are accepted for so long.
pub const DRAIN_ACCEPT_TIME: Duration = Duration::from_millis(50);
/// While draining, longest wait for the queues of the listeners to be empty, where new ones could not
/// be shut out.
pub const DRAIN_QUEUE_PATIENCE: Duration = Duration::from_secs(1);
/// A process that listens on our own port already answers a connection within this time.
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(250);
/// Names tried for a unix socket before it is renamed to its path. Beyond: the start fails.
pub const UNIX_SOCKET_NAMES_MAX: u32 = 16;
/// A process that takes over lets the other one serve until it has documents, but no longer.
pub const TAKE_OVER_PATIENCE: Duration = Duration::from_secs(10);
/// When a process looks whether it shares its port: others that were started at the same time listen
/// by then, and the warning is there within two seconds.
pub const PORT_SHARED_DELAY: Duration = Duration::from_secs(1);
/// How often a draining reactor looks whether it is done.
pub const DRAIN_CHECK_INTERVAL: Duration = Duration::from_millis(5);
/// Pause before a reactor that panicked starts again.
pub const RESTART_PAUSE: Duration = Duration::from_millis(20);
/// A hard limit of descriptors below this is warned of: it is soon met by connections.
pub const DESCRIPTORS_LOW: u64 = 10_000;
/// Descriptors without which the process does not start: for itself, and for each reactor its
/// listener, ring, wake pair and a few connections.
pub const DESCRIPTORS_MIN: u64 = 24;
pub const DESCRIPTORS_REACTOR_MIN: u64 = 12;
/// Descriptors that callers may not have: fetches, event streams, files, the admin listener, rings.
pub const DESCRIPTORS_RESERVED: u64 = 256;

// --- upstream, files on disk, and counts on their way up ---

/// Configuration file, bytes. Beyond: refused. Ten thousand key pairs take 1 MB.
pub const CONFIG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// A file of certificates or a key in PEM form, bytes. Beyond: refused. The list of all public
/// authorities takes 0.3 MB.
pub const PEM_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// A file in `cache_dir`, bytes. Beyond: ignored, and the document is fetched. Room for the largest
/// document that a machine of this size serves, whatever `api_document_bytes_max` says.
pub const CACHE_FILE_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Longest wait after a failure while nothing is held, `Retry-After` included, or while readiness is red
/// or will be: clients get errors, and orchestrators kill what does not get ready.
pub const BACKOFF_URGENT_MAX: Duration = Duration::from_secs(5);
/// Longest wait after a failure, however long the poll interval is.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Longest `Retry-After` that is honoured for what never gets stale: documents without a grace period,
/// the list of environments, uploads.
pub const RETRY_AFTER_HELD_MAX: Duration = Duration::from_secs(60);
/// Longest `Retry-After` that is honoured however long the grace period is; a slip upstream must not
/// silence polling for a day.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);
/// A failure that goes on is told again after this, so that a log of the last hour shows it.
pub const FAILURE_REMINDER: Duration = Duration::from_secs(600);
/// Threads that fetch. More environments than that wait their turn: at 1 s a fetch,
/// 200 environments take 7 s a round.
pub const FETCH_THREADS_MAX: usize = 32;
/// A thread of the pools without work for so long ends, and the allocator gives back what it freed: it
/// holds that for a second, so that this is a little longer.
pub const THREAD_IDLE_MAX: Duration = Duration::from_millis(1500);
/// Redirects followed for one request. Beyond: the poll failed.
pub const REDIRECTS_MAX: usize = 5;
/// Rejected key pairs of one answer of discovery that are logged one by one. Beyond: their number alone.
pub const DISCOVERY_WARNINGS_MAX: usize = 100;
/// Pages of one document. Beyond: the round is dropped. Edge's pages hold about 1 MB, so this is four
/// times the largest document allowed.
pub const PAGES_MAX: usize = 1024;
/// Slowest upstream that is waited for once its answer began, bytes per second. Slower: the poll
/// failed, since a fetching thread is too dear for a drip.
pub const FETCH_RATE_MIN: u64 = 64 * 1024;
/// How often a document on disk is looked at.
pub const FILE_POLL: Duration = Duration::from_millis(500);
/// Characters of a feature's name, as in core. Beyond: no such feature, and the count is skipped.
pub const FEATURE_NAME_CHARS_MAX: usize = 2000;
/// Each of the SDK's headers that counts are kept apart by, bytes. Beyond: cut between characters.
pub const LABEL_BYTES_MAX: usize = 256;
/// Labels (sets of those headers) of one environment between two uploads. Beyond: counted without. An
/// upload is made for each.
pub const COUNT_LABELS_MAX: usize = 50;
/// What a row of counts takes besides its texts, bytes: at most, in memory or in the JSON of an upload.
pub const COUNT_ROW_BYTES: usize = 128;
/// Rows of counts with an identifier: of one label, of one environment, and of all together, bytes.
/// Beyond: counted without the identifier. Each reactor has as much, and so have its reports on their way.
pub const COUNT_LABEL_BYTES_MAX: usize = 1024 * 1024;
pub const COUNT_ENVIRONMENT_BYTES_MAX: usize = 2 * 1024 * 1024;
pub const COUNT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What each environment has of these however much the others have, bytes.
pub const COUNT_ENVIRONMENT_BYTES_MIN: usize = 64 * 1024;
/// Rows of counts without an identifier, of the labels of one environment, bytes; one label has half of
/// it at most. Beyond: counted without the label. Rows without a label have as much of their own. Beyond:
/// lost and counted. A document with 400 features needs 0.1 MB for each label.
pub const COUNT_PLAIN_BYTES_MAX: usize = 2 * 1024 * 1024;
/// The same while there is no document, so that any name of a feature is taken, bytes.
pub const COUNT_UNKNOWN_BYTES_MAX: usize = 64 * 1024;
/// Largest count of a row in an upload: core has 32 bits for it. Beyond: the rest waits for the next
/// upload; at the end of the process it is lost and counted.
pub const COUNT_MAX: u64 = i32::MAX as u64;
/// One upload of counts, bytes. Proxies and web servers take 1 MB as a rule.
pub const UPLOAD_BYTES_MAX: usize = 1_000_000;
/// Uploads of one environment that wait, bytes, in memory and on disk; twice as much when the process
/// ends. Beyond: its largest labels are not packed, and at the end lost and counted.
pub const OUTBOX_ENVIRONMENT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A round of uploads. What is left then takes turns in the next round with what was counted since.
pub const ROUND_TIME_MAX: Duration = Duration::from_secs(10);
/// Divisions of refused uploads of one environment in a round. Beyond: what is refused is lost and counted.
/// One bad row in a full upload takes 14.
pub const DIVISIONS_MAX: u32 = 128;
/// An event stream silent for this long is given up; upstream sends a comment every 15 s.
pub const STREAM_SILENCE_MAX: Duration = Duration::from_secs(60);
/// An event stream that lived this long did not fail when it ended.
pub const STREAM_SETTLED: Duration = Duration::from_secs(1);
/// Wait before an event stream is opened again; doubled for each that failed.
pub const STREAM_RETRY_MIN: Duration = Duration::from_millis(100);
/// One event of a stream, bytes. Beyond: the stream is opened anew.
pub const STREAM_LINE_BYTES_MAX: usize = 64 * 1024;
/// Bytes of an event stream within `STREAM_WINDOW`, lines (comments and empty ones count too) and reads
/// within it. Beyond: the stream is closed, logged (`realtime_flood`), counted, and opened again after a
/// backoff. Upstream sends some hundred bytes for each edit and a comment every 15 s, so that this is 300
/// edits in a second.
pub const STREAM_WINDOW: Duration = Duration::from_secs(1);
pub const STREAM_WINDOW_BYTES_MAX: usize = 256 * 1024;
pub const STREAM_WINDOW_LINES_MAX: usize = 1000;
/// First wait before a document is asked for again that is older than its event said; doubled each time.
pub const EVENT_RETRY_MIN: Duration = Duration::from_millis(50);
/// Longest such wait.
pub const EVENT_RETRY_MAX: Duration = Duration::from_secs(5);
/// After this the event is not believed. Core serves an environment from a cache for up to 60 s.
pub const EVENT_PATIENCE: Duration = Duration::from_secs(120);
/// Longest wait for documents to reach the disk when the process ends.
pub const STORE_PATIENCE: Duration = Duration::from_secs(5);
/// A half-written file of this age belongs to a process that is gone.
pub const STORE_LEFTOVER_AGE: Duration = Duration::from_secs(3600);
/// How often the configuration file is looked at.
pub const CONFIG_POLL: Duration = Duration::from_secs(1);
/// Rows of one report of usage; upstream takes no more (compatibility.md 4.3).
pub const USAGE_ROWS_MAX: usize = 1000;
/// How long the last counts are posted when the process ends, before the rest is left to the disk.
pub const LAST_POST_PATIENCE: Duration = Duration::from_secs(5);

// --- a document, and compiling it beside the reactors ---

/// Ready bodies up to this size are compressed as well as can be, larger ones fast, bytes: a new
/// document must not wait a second for its compression.
pub const COMPRESS_BEST_BYTES_MAX: usize = 1024 * 1024;
/// Digits of an integer that CPython reads (`sys.get_int_max_str_digits`). Beyond: a JSON body is 400, a
/// document is refused, and no condition holds for a trait.
pub const INTEGER_DIGITS_MAX: usize = 4300;
/// An environment document with all its pages, bytes (`api_document_bytes_max`). Beyond: the round is
/// dropped. Legal documents reach tens of MB (compatibility.md 3).
pub const DOCUMENT_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Documents from this size on are compiled after the reactors' work, bytes; smaller ones take some
/// milliseconds, and those come first.
pub const LARGE_DOCUMENT_BYTES: usize = 1024 * 1024;
/// How much nicer than the reactors the thread for those is: at most a third of a CPU that both want.
pub const NICE: i32 = 3;
/// Nesting of a document. Beyond: the document is refused. Core nests 12 deep; the engine allows any depth.
pub const DOCUMENT_DEPTH_MAX: usize = 512;
/// Repeated members in one document. Beyond: it is refused. No writer of JSON makes any.
pub const DUPLICATE_MEMBERS_MAX: usize = 64;
/// Ready answers of one environment, bytes. Beyond: the document is refused. A long name that many
/// states repeat can make them larger than the document.
pub const ANSWER_BYTES_MAX: usize = 1024 * 1024 * 1024;
/// A flag's client form is stored beside its server form up to this size, bytes, so that flags that
/// follow each other are copied at once; beyond, it is cut out of it.
pub const CLIENT_COPY_BYTES_MAX: usize = 1024;

// --- conditions ---

/// Words of 64 segments in the lookup tables of one trait. Beyond: its conditions are tried one by one.
pub const LOOKUP_WORDS_MAX: usize = 256 * 1024;
/// Items of an IN condition that go into a lookup table. Beyond: it is asked by itself.
pub const LOOKUP_ITEMS_MAX: usize = 100;
/// Flags that wait for each other in a chain of conditions. Beyond: they count as in a cycle. Python
/// fails at about 45.
pub const FLAG_CHAIN_MAX: usize = 128;
/// Flags that conditions may resolve in one evaluation. Beyond: they count as in a cycle; without a
/// bound, flags that all read each other would take time exponential in their number.
pub const FLAG_READS_MAX: usize = 10_000;
/// Steps of one back-tracking match, about a millisecond's worth. Beyond: no match. Python has no
/// such bound: a pattern that needs more hangs its process.
pub const PATTERN_STEPS_MAX: u32 = 200_000;
/// Steps of all back-tracking matches of one request. Beyond: the REGEX conditions that need them are
/// false, and the request is counted.
pub const PATTERN_STEPS_REQUEST_MAX: u32 = 1_000_000;
/// A REGEX condition's pattern, bytes. Beyond: refused, the condition is false. None that a person
/// writes comes near.
pub const PATTERN_BYTES_MAX: usize = 20_000;
/// Groups inside groups of a pattern. Beyond: refused. Python's own bound is its recursion limit (about 480).
pub const PATTERN_DEPTH_MAX: usize = 250;
/// A pattern's automaton, bytes. Beyond: the back-tracking matcher takes the pattern.
pub const PATTERN_AUTOMATON_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The automata of all patterns of one document, bytes. Beyond: the back-tracking matcher takes the rest,
/// which needs little memory and no time to build. A try that met its own bound counts as one that large.
pub const PATTERN_AUTOMATA_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A pattern's table of states for ASCII text, bytes. Beyond: states are made as texts need them, which
/// is slower.
pub const PATTERN_TABLE_BYTES_MAX: usize = 8 * 1024;
/// Lists inside lists of an IN condition. Beyond: the condition is false. No list of values is
/// nested; CPython raises too, at a depth that depends on its build.
pub const IN_LIST_DEPTH_MAX: usize = 200;
/// Steps of all general JSONPath queries of one request, about a node each. Beyond: every condition on
/// such a query is false for the rest of the request, and the request is counted. Python has no bound.
pub const JSONPATH_STEPS_MAX: u32 = 300_000;
/// The automaton of a pattern that a JSONPath takes from a request's values, bytes. Beyond: no match.
pub const JSONPATH_PATTERN_BYTES_MAX: usize = 64 * 1024;
/// Filters and functions inside each other in a JSONPath. Beyond: the condition is false;
/// Python's bound is its recursion limit.
pub const JSONPATH_DEPTH_MAX: usize = 100;

// --- the log and the admin listener ---

/// Log records that may wait for the writer. Beyond: dropped and counted.
pub const LOG_RECORDS_MAX: usize = 8192;
/// Longest wait at the end of the process for whoever reads the log; what is left then is lost.
pub const LOG_FLUSH_PATIENCE: Duration = Duration::from_secs(2);
/// Between two tries to hand the writer its last message.
pub const LOG_FLUSH_PAUSE: Duration = Duration::from_millis(5);
/// Longest JSON path that the log shows, characters; of a longer one the middle is left out.
pub const PATH_CHARS_MAX: usize = 160;
/// Access records that a reactor gathers before it hands them on; the sweep hands on what there is.
pub const ACCESS_BATCH_RECORDS: usize = 64;
/// Access records among them. Beyond: dropped and counted, so that events always find room.
pub const ACCESS_RECORDS_MAX: usize = 6144;
/// Warnings and errors kept for the status page, the newest.
pub const LOG_RECENT_MAX: usize = 20;
/// Request head on the admin listener, bytes. Beyond: closed. Scrapers send a few hundred.
pub const ADMIN_HEAD_BYTES_MAX: usize = 16 * 1024;
/// A whole request head on the admin listener. Beyond: closed and counted.
pub const ADMIN_HEAD_TIMEOUT: Duration = Duration::from_secs(1);
/// Characters of a refused `Host` in the log and in the answer.
pub const ADMIN_HOST_CHARS_SHOWN: usize = 255;
/// Connections of the admin listener at a time, one thread each. Beyond: the one that has waited longest is
/// closed and counted.
pub const ADMIN_CONNECTIONS_MAX: usize = 32;

const _: () = assert!(HELD_BYTES_MIN > READ_BYTES_IDLE, "an idle connection is not counted");
const _: () = assert!(COMPRESS_BYTES_MIN < TAIL_BYTES_MIN, "a body without a copy is worth compressing");
const _: () = assert!(
    COUNT_ENVIRONMENT_BYTES_MAX + 2 * COUNT_PLAIN_BYTES_MAX <= OUTBOX_ENVIRONMENT_BYTES_MAX,
    "all counts of an environment can be packed at once",
);
