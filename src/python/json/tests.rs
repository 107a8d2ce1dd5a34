use super::*;

fn code_points(text: &str) -> Vec<u32> {
    match loads(text.as_bytes()).expect("JSON").root() {
        PyValue::Text(text) => text.code_points().collect(),
        other => panic!("{other:?} is not a string"),
    }
}

#[test]
fn lone_surrogates_keep_their_code_points() {
    assert_eq!(code_points(r#""\ud800x\udc01\ud83d\ude00\ufffd""#), [0xd800, 0x78, 0xdc01, 0x1f600, 0xfffd]);
    assert_eq!(code_points("\"\u{fffd}\""), [0xfffd]);
    // The encoding of the body contains them too, in a string with an escape and in one without.
    for (escape, code) in [(&b""[..], None), (&br"\n"[..], Some(0x0a))] {
        let body = [b"\"a\xed\xa0\x80b".as_slice(), escape, b"\xed\xbf\xbf\""].concat();
        let document = loads(&body).expect("JSON");
        let PyValue::Text(text) = document.root() else { panic!("a string") };
        let expected: Vec<u32> = [0x61, 0xd800, 0x62].into_iter().chain(code).chain([0xdfff]).collect();
        assert!(text.has_lone_surrogate());
        assert_eq!(text.code_points().collect::<Vec<u32>>(), expected);
    }
}

#[test]
fn members_are_unique_by_code_point() {
    let document = loads(br#"{"\ud800": 1, "\ud801": 2, "\ud800": 3, "\ufffd": 4}"#).expect("JSON");
    let PyValue::Dict(members) = document.root() else { panic!("an object") };
    let values: Vec<String> = members.exact_members().iter().map(|(_, value)| format!("{value:?}")).collect();
    assert_eq!(values, [r#"Int("3")"#, r#"Int("2")"#, r#"Int("4")"#]);
    assert_eq!(members.members().len(), 1);
}

#[test]
fn nesting_is_limited() {
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    assert!(loads_text(&nested(3), 3).is_ok());
    assert!(matches!(loads_text(&nested(4), 3), Err(JsonError::TooDeep)));
    assert!(matches!(
        loads_text("[[", 3),
        Err(JsonError::Decode { message: "Expecting value", position: 2 })
    ));
}

#[test]
fn members_of_a_large_object_are_found_in_linear_time() {
    let body = (0..300_000).map(|number| format!("\"{number}\":0")).collect::<Vec<String>>().join(",");
    let body = format!("{{{body}}}");
    let document = loads(body.as_bytes()).expect("JSON");
    let PyValue::Dict(members) = document.root() else { panic!("an object") };
    // Comparing each name with all before it would take minutes.
    assert_eq!((members.exact_members().len(), members.members().len()), (300_000, 300_000));
}
