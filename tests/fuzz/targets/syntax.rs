//! The syntaxes of conditions, bodies and settings, selected by the first byte.
use std::hint::black_box;

use edge_proxy::config;
use edge_proxy::config::Inputs;
use edge_proxy::engine::compile::in_list;
use edge_proxy::engine::jsonpath::Property;
use edge_proxy::python::regex::{AutomataBudget, Pattern};
use edge_proxy::python::semver::{Version, release};
use edge_proxy::python::{json, number};
use edge_proxy::step_budget::RequestBudget;

/// `p` pattern and text, `j` JSONPath, `v` two versions, `i` list of IN, `n` number, `b` JSON as Python
/// reads it, `s` settings as environment variables, one a line.
pub fn syntax(data: &[u8]) {
    let Some((&kind, rest)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    let (first, second) = text.split_once('\n').unwrap_or((&text, ""));
    match kind {
        b'p' => {
            if let Ok(pattern) = Pattern::compile(first, &mut AutomataBudget::default()) {
                black_box(pattern.is_match(second, &RequestBudget::default().patterns));
            }
        }
        b'j' => drop(black_box(Property::parse(&text))),
        b'v' => versions(first, second),
        b'i' => drop(black_box(in_list::parse(&text))),
        b'n' => number(&text),
        b'b' => drop(black_box(json::loads(rest).is_ok())),
        b's' => settings(&text),
        _ => {}
    }
}

/// The order is antisymmetric, and the fast form of a version is ordered as the complete one.
fn versions(one: &str, other: &str) {
    let (Some(a), Some(b)) = (Version::parse(one), Version::parse(other)) else { return };
    assert_eq!(a.cmp(&b), b.cmp(&a).reverse(), "{one} and {other}");
    assert!(a.cmp(&a).is_eq(), "{one}");
    if let (Some(quick_a), Some(quick_b)) = (release(one), release(other))
        && (quick_a.is_final || quick_b.is_final)
    {
        assert_eq!(a.cmp(&b), quick_a.cmp(&quick_b), "{one} and {other}");
    }
}

/// The repr of a value is parsed to the same value.
fn number(text: &str) {
    black_box(number::int_from_text(text));
    if let Some(float) = number::float_from_text(text) {
        let mut written = String::new();
        number::write_float(float, &mut written);
        let read = number::float_from_text(&written).map(f64::to_bits);
        assert!(float.is_nan() || read == Some(float.to_bits()), "{text} is written {written}");
    }
    let (once, mut written) = (number::coerce_text(text), String::new());
    number::write_str(&once, &mut written);
    if !matches!(once, number::Value::Text(_) | number::Value::Float(_) | number::Value::Unreadable) {
        assert_eq!(
            format!("{once:?}"),
            format!("{:?}", number::coerce_text(&written)),
            "{text} is written {written}"
        );
    }
}

/// A configuration is complete, or every issue is reported.
fn settings(text: &str) {
    let variables = text.lines().filter_map(|line| line.split_once('='));
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    match config::load(&Inputs { without_file: true, variables, ..Inputs::default() }) {
        Ok((config, warnings)) => drop(black_box(format!("{config:?} {warnings:?}"))),
        Err(error) => assert!(!error.issues.is_empty() && !error.to_string().is_empty(), "{text}"),
    }
}
