//! Every bound in one place: its unit, its reason, and what happens when it is met.
//!
//! Settings that a user may change have their default here and are read from `config`.
//! Invariant: a bound that is not named here does not exist. No code, only constants.

/// Request head, bytes. Beyond: 431 and close. Browsers send under 8 KiB.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Request target, bytes. Beyond: 414 and close.
pub const TARGET_BYTES_MAX: usize = 8 * 1024;
/// Header fields of one request. Beyond: 431 and close. monoio-http's decoder has room for as many.
pub const HEADERS_MAX: usize = 96;
/// Request body, bytes, after de-chunking and de-compression. Beyond: 413 and close. No SDK sends more.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Ready bodies at least this large are written from where they are, not copied, bytes.
pub const TAIL_BYTES_MIN: usize = 16 * 1024;
/// Smallest body worth compressing, bytes. The Python proxy's value (wire.md 2.6).
pub const COMPRESS_BYTES_MIN: usize = 1000;
/// Messages a reactor may leave unread. Full: the supervisor sends the newest again later.
pub const INBOX_MESSAGES_MAX: usize = 64;
/// A trait value that is text, characters. Beyond: 422, as the Python proxy.
pub const TRAIT_VALUE_CHARS_MAX: usize = 2000;
/// Nesting of a JSON body. Beyond: 400. Where Python 3.12's `json.loads` gives up (measured).
pub const JSON_DEPTH_MAX: usize = 1497;
/// Digits of an integer in a JSON body. Beyond: 400. Python's `int_max_str_digits`.
pub const JSON_INTEGER_DIGITS_MAX: usize = 4300;
/// Configuration file, bytes. Beyond: refused. Ten thousand key pairs take 1 MB.
pub const CONFIG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// An environment document with all its pages, bytes (`api_document_bytes_max`). Beyond: the round is
/// dropped. Legal documents reach tens of MB (wire.md 3).
pub const DOCUMENT_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Connections one reactor holds (`server.connections_max`). Beyond: closed at once and counted.
pub const CONNECTIONS_MAX: usize = 50_000;
/// Log records that may wait for the writer. Beyond: dropped and counted.
pub const LOG_RECORDS_MAX: usize = 8192;

const _: () = assert!(TARGET_BYTES_MAX < HEAD_BYTES_MAX, "a target must fit in a head");
const _: () = assert!(COMPRESS_BYTES_MIN < TAIL_BYTES_MIN, "a body without a copy is worth compressing");
