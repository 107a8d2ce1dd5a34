//! JSON strings and numbers as orjson writes them.

/// Appends `text` as a JSON string: escapes `"`, `\` and controls below 0x20, the rest is raw.
pub fn string(_text: &str, _out: &mut Vec<u8>) {
    unimplemented!("engine")
}

/// Appends a float: shortest form with a decimal point or exponent; NaN and infinities are `null`.
pub fn float(_number: f64, _out: &mut Vec<u8>) {
    unimplemented!("engine")
}
