use super::decoder::{HpackDecoder, HpackError};
use super::{encoder, huffman};

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn decode(decoder: &mut HpackDecoder, block: &[u8]) -> Result<String, HpackError> {
    let mut text = String::new();
    decoder.decode(block, |name, value| {
        text += &format!("{}: {}\n", String::from_utf8_lossy(name), String::from_utf8_lossy(value));
        true
    })?;
    Ok(text)
}

/// RFC 7541 C.2 to C.4: single fields, and requests with and without Huffman coding.
#[test]
fn decodes_the_examples_of_the_rfc() {
    let requests = [
        ("82868441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d", ""),
        ("8286 84be 5808 6e6f 2d63 6163 6865", "cache-control: no-cache\n"),
        (
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
            "custom-key: custom-value\n",
        ),
    ];
    let coded = [
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ];
    let heads = [("http", "/"), ("http", "/"), ("https", "/index.html")];
    let (mut plain, mut huffman) = (HpackDecoder::default(), HpackDecoder::default());
    for ((plain_hex, more), (coded_hex, (scheme, path))) in requests.iter().zip(coded.iter().zip(heads)) {
        let expected =
            format!(":method: GET\n:scheme: {scheme}\n:path: {path}\n:authority: www.example.com\n{more}");
        assert_eq!(decode(&mut plain, &bytes(plain_hex)).as_deref(), Ok(&*expected));
        assert_eq!(decode(&mut huffman, &bytes(coded_hex)).as_deref(), Ok(&*expected));
    }
    for (hex, expected) in [
        ("400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572", "custom-key: custom-header\n"),
        ("040c 2f73 616d 706c 652f 7061 7468", ":path: /sample/path\n"),
        ("1008 7061 7373 776f 7264 0673 6563 7265 74", "password: secret\n"),
        ("82", ":method: GET\n"),
    ] {
        assert_eq!(decode(&mut HpackDecoder::default(), &bytes(hex)).as_deref(), Ok(expected));
    }
}

/// RFC 7541 C.6: responses with a table of 256 bytes, so that entries are evicted.
#[test]
fn evicts_entries_as_the_rfc_does() {
    let mut decoder = HpackDecoder::default();
    let blocks = [
        "3fe101 4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad \
         1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335 \
         dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    ];
    let first = decode(&mut decoder, &bytes(blocks[0])).unwrap();
    assert_eq!(
        first,
        ":status: 302\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:21 GMT\nlocation: https://www.example.com\n"
    );
    let second = decode(&mut decoder, &bytes(blocks[1])).unwrap();
    assert_eq!(second, first.replace("302", "307"));
    let third = decode(&mut decoder, &bytes(blocks[2])).unwrap();
    assert_eq!(
        third,
        ":status: 200\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:22 GMT\nlocation: https://www.example.com\n\
         content-encoding: gzip\nset-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1\n"
    );
}

#[test]
fn huffman_round_trips_every_byte() {
    for byte in 0..=u8::MAX {
        for length in [1, 2, 7] {
            let text = vec![byte; length];
            let (mut coded, mut back) = (Vec::new(), Vec::new());
            huffman::encode(&text, &mut coded);
            assert_eq!(coded.len(), huffman::encoded_bytes(&text));
            assert!(huffman::decode(&coded, &mut back) && back == text, "{byte}");
        }
    }
}

#[test]
fn rejects_malformed_blocks() {
    for (hex, why) in [
        ("80", "index 0"),
        ("be", "an index beyond the tables"),
        ("7f00 0178 0178", "a name beyond the tables"),
        ("8220", "a size update after a field"),
        ("3fe21f", "a table over 4096 bytes"),
        ("0083 ffff ff 00", "the end-of-string symbol"),
        ("0081 fe 00", "padding of zeros"),
        ("0082 1fff 00", "padding of more than seven bits"),
        ("0005 61", "a string beyond the block"),
        ("00", "no strings"),
        ("ff", "an integer without its end"),
        ("ff80 8080 8000", "an integer of too many bytes"),
    ] {
        let result = decode(&mut HpackDecoder::default(), &bytes(hex));
        assert_eq!(result, Err(HpackError::Malformed), "{why}");
    }
    let stopped = HpackDecoder::default().decode(&bytes("8282"), |_, _| false);
    assert_eq!(stopped, Err(HpackError::Stopped));
}

#[test]
fn encodes_lines_that_decode_to_the_same_fields() {
    let lines = b"vary: X-Environment-Key, Accept-Encoding\r\netag: \"a\"\r\nx-accel-buffering: no\r\n";
    let mut block = Vec::new();
    encoder::status(200, &mut block);
    encoder::status(418, &mut block);
    encoder::lines(lines, &mut block);
    block.extend_from_slice(encoder::ContentLength::new(1234).bytes());
    encoder::field(b"x", &[b'7'; 300], &mut block);
    let expected = format!(
        ":status: 200\n:status: 418\n{}content-length: 1234\nx: {}\n",
        String::from_utf8_lossy(lines).replace('\r', ""),
        "7".repeat(300)
    );
    assert_eq!(decode(&mut HpackDecoder::default(), &block), Ok(expected));
}

#[test]
fn generation_changes_with_the_table_only() {
    let mut decoder = HpackDecoder::default();
    let before = decoder.generation();
    decode(&mut decoder, &bytes("8286 0401 2f")).unwrap();
    assert_eq!(decoder.generation(), before);
    decode(&mut decoder, &bytes("4001 7801 79")).unwrap();
    assert_ne!(decoder.generation(), before);
}
