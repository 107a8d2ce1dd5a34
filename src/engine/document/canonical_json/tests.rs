use crate::engine::document::canonical_json::transcode;

fn ok(text: &str) -> String {
    transcode(text.as_bytes()).unwrap()
}

fn error(text: &str) -> String {
    let error = transcode(text.as_bytes()).unwrap_err();
    format!("{}: {}", error.path, error.message)
}

#[test]
fn writes_compactly_with_numbers_as_in_orjson() {
    let table = [
        (" { \"a\" : [ 1 , 2 ] , \"b\" : { } , \"c\" : [ ] } ", "{\"a\":[1,2],\"b\":{},\"c\":[]}"),
        (
            "[1.0,1e3,1.10,-0.0,-0,1e308,1e-400,123456789012345678901234567890]",
            "[1.0,1000.0,1.1,-0.0,0,1e308,0.0,123456789012345678901234567890]",
        ),
        ("\"\\u00e9\\ud83d\\ude00\\/\\u0001\\n\\u007f\\\"\\\\\"", "\"é😀/\\u0001\\n\u{7f}\\\"\\\\\""),
        ("[true,false,null]", "[true,false,null]"),
        ("\u{feff} {\"a\":1}", "{\"a\":1}"),
        ("{\"a\":{\"b_config\":1}}", "{\"a\":{\"b_config\":1}}"),
    ];
    for (input, expected) in table {
        assert_eq!(ok(input), expected, "{input}");
    }
}

#[test]
fn repeated_members_keep_the_last_value_at_the_first_position() {
    assert_eq!(ok("{\"a\":1,\"b\":22,\"a\":{\"x\":[1]},\"c\":4}"), "{\"a\":{\"x\":[1]},\"b\":22,\"c\":4}");
    assert_eq!(ok("{\"a\":[1,2],\"b\":2,\"a\":3,\"b\":\"x\",\"c\":1,\"b\":7}"), "{\"a\":3,\"b\":7,\"c\":1}");
    assert_eq!(ok("{\"\\u0061\":1,\"a\":2}"), "{\"a\":2}");
    // Enough members that names are found by hash.
    let members =
        |from: usize| (0..100).map(|at| format!("\"name{at}\":{}", from + at)).collect::<Vec<_>>().join(",");
    let repeated = format!("{{{},\"name3\":\"x\",\"name99\":[],\"new\":1}}", members(0));
    let expected = format!("{{{},\"new\":1}}", members(0))
        .replace("\"name3\":3,", "\"name3\":\"x\",")
        .replace("\"name99\":99", "\"name99\":[]");
    assert_eq!(ok(&repeated), expected);
}

#[test]
fn drops_members_that_may_have_secrets() {
    let document = "{\"webhook_config\":{\"secret\":\"s\"},\"a\":1,\"\":5,\"heap_config\":null,\"b\":2,\"x_config\":[1]}";
    assert_eq!(ok(document), "{\"a\":1,\"\":5,\"b\":2}");
    assert_eq!(ok("{\"x_config\":1,\"x_config\":2,\"\":3,\"\":4}"), "{\"\":4}");
    assert_eq!(ok("{\"x_config\":1}"), "{}");
}

#[test]
fn errors_name_the_path_and_the_position() {
    let table = [
        ("", "$: not JSON: expected a value at byte 0"),
        ("{\"a\":[1,{\"b\":}]}", "$.a[1].b: not JSON: expected a value at byte 13"),
        ("[1,2", "$[2]: not JSON: expected `,` or `]` at byte 4"),
        ("[1] x", "$: not JSON: expected the end at byte 4"),
        ("[01]", "$[1]: not JSON: expected `,` or `]` at byte 3"),
        ("[1]\u{feff}", "$: not JSON: expected the end at byte 3"),
        ("[1.]", "$[0]: not JSON: expected a digit at byte 3"),
        ("[NaN]", "$[0]: not JSON: expected a value at byte 1"),
        ("[1,1e400]", "$[1]: a number with a point or an exponent, beyond 1.8e308"),
        ("[-1.7976931348623159e308]", "$[0]: a number with a point or an exponent, beyond 1.8e308"),
        ("[\"\\ud800\"]", "$[0]: a lone surrogate at byte 8"),
        ("[\"\\ud800\\u0041\"]", "$[0]: a lone surrogate at byte 14"),
        ("{\"a\" 1}", "$: not JSON: expected `:` at byte 6"),
        ("{\"a\":1,}", "$.a: not JSON: expected a member's name at byte 7"),
        ("<html>", "$: not JSON: expected a value at byte 0"),
    ];
    for (input, expected) in table {
        assert_eq!(error(input), expected, "{input}");
    }
    let wide = |encode: fn(u16) -> [u8; 2], byte_order_mark: &[u8]| {
        [byte_order_mark.to_vec(), "{}".encode_utf16().flat_map(encode).collect()].concat()
    };
    let utf_32: Vec<u8> = "{}".chars().flat_map(|character| u32::from(character).to_le_bytes()).collect();
    for (document, encoding) in [
        (wide(u16::to_le_bytes, b""), "UTF-16"),
        (wide(u16::to_be_bytes, b""), "UTF-16"),
        (wide(u16::to_le_bytes, b"\xff\xfe"), "UTF-16"),
        (wide(u16::to_be_bytes, b"\xfe\xff"), "UTF-16"),
        (utf_32.clone(), "UTF-32"),
        ([b"\xff\xfe\0\0".to_vec(), utf_32].concat(), "UTF-32"),
        (b"\x1f\x8b\x08\0".to_vec(), "gzip"),
    ] {
        let message = transcode(&document).unwrap_err().message;
        let expected =
            format!("encoded as {encoding}, expected UTF-8 (RFC 8259 8.1): save or send it as UTF-8");
        assert_eq!(message, expected, "{document:?}");
    }
    assert!(transcode(b"\"\xff\"").unwrap_err().message.contains("not UTF-8"));
    assert!(transcode(b"\"\x01\"").is_err());
}

#[test]
fn deep_nesting_does_not_overflow_the_stack() {
    for text in ["[".repeat(1_000_000), "{\"a\":".repeat(1_000_000)] {
        assert!(error(&text).contains("nested deeper"), "{}", error(&text).len());
    }
    let many = format!("{{{}\"a\":1}}", "\"a\":1,".repeat(1000));
    assert!(error(&many).contains("repeated members"));
}
