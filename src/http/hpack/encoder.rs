//! The encoder of header blocks (RFC 7541 6), without a dynamic table.
use crate::http::hpack::huffman;
use crate::http::hpack::static_table::STATIC_TABLE;

/// A size update to 0: the encoder has no table. Required at the start of the next block after the peer has
/// lowered its limit (RFC 7541 4.2).
pub const SIZE_UPDATE_0: u8 = 0x20;

const INDEXED: u8 = 0x80;
const HUFFMAN: u8 = 0x80;
const STATUS_INDEX: usize = 8;

/// Appends `:status`.
pub fn status(status: u16, out: &mut Vec<u8>) {
    let index = match status {
        200 => STATUS_INDEX,
        204 => 9,
        206 => 10,
        304 => 11,
        400 => 12,
        404 => 13,
        500 => 14,
        other => {
            integer(STATUS_INDEX, 4, 0, out);
            return string(itoa::Buffer::new().format(other).as_bytes(), out);
        }
    };
    integer(index, 7, INDEXED, out);
}

/// An encoded `content-length`. The digits are not compressed, so its size depends on their number only.
#[derive(Debug)]
pub struct ContentLength {
    bytes: [u8; CONTENT_LENGTH_BYTES_MAX],
    length: usize,
}

/// Two bytes of the name's index, one of the number of digits, and the digits of a 64-bit number.
const CONTENT_LENGTH_BYTES_MAX: usize = 3 + 20;

impl ContentLength {
    pub fn new(value: usize) -> Self {
        let mut text = itoa::Buffer::new();
        let digits = text.format(value).as_bytes();
        let mut bytes = [0; CONTENT_LENGTH_BYTES_MAX];
        // A literal that enters no table, with name 28 of the static table.
        bytes[..2].copy_from_slice(&[0x0f, 28 - 0x0f]);
        bytes[2] = digits.len() as u8;
        let length = 3 + digits.len();
        bytes[3..length].copy_from_slice(digits);
        Self { bytes, length }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Appends rendered header lines, each with its CRLF. The names are in lower case.
pub fn lines(lines: &[u8], out: &mut Vec<u8>) {
    for line in lines.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(colon) = memchr::memchr(b':', line) else { continue };
        field(&line[..colon], line[colon + 1..].trim_ascii(), out);
    }
}

/// Appends a field as a literal that enters no table.
pub fn field(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    match STATIC_TABLE.iter().position(|(known, _)| known.as_bytes() == name) {
        Some(at) => integer(at + 1, 4, 0, out),
        None => {
            out.push(0);
            string(name, out);
        }
    }
    string(value, out);
}

/// Appends a string, compressed if that makes it shorter.
fn string(text: &[u8], out: &mut Vec<u8>) {
    let coded_bytes = huffman::encoded_bytes(text);
    if coded_bytes < text.len() {
        integer(coded_bytes, 7, HUFFMAN, out);
        huffman::encode(text, out);
    } else {
        integer(text.len(), 7, 0, out);
        out.extend_from_slice(text);
    }
}

/// Appends an integer with a prefix of this many bits; `first` holds the bits before it (RFC 7541 5.1).
fn integer(value: usize, prefix_bits: u32, first: u8, out: &mut Vec<u8>) {
    let prefix_max = (1_usize << prefix_bits) - 1;
    if value < prefix_max {
        return out.push(first | value as u8);
    }
    out.push(first | prefix_max as u8);
    let mut left = value - prefix_max;
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}
