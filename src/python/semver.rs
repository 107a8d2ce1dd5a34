//! Semantic versions as PyPI's semver 3.1.1 parses and orders them.
//!
//! Strict SemVer 2.0: no `v`, all three numbers, no leading zeros. Numbers may have any size. Build metadata
//! is validated but does not count in the order. A [`Version`] borrows its text.
use std::cmp::Ordering;

use crate::limits::INTEGER_DIGITS_MAX;

/// A version, ordered by precedence (SemVer 2.0, section 11).
#[derive(Clone, Copy, Debug)]
pub struct Version<'a> {
    /// Major, minor, patch: digits without leading zeros, so length and then text give the order.
    numbers: [&'a str; 3],
    /// `None` for a release, which is greater than each of its pre-releases.
    pre_release: Option<&'a str>,
    build: Option<&'a str>,
}

impl<'a> Version<'a> {
    /// Parses a version; `None` if the text is not strict SemVer 2.0.
    pub fn parse(text: &'a str) -> Option<Self> {
        // The common case: the text of a trait that is not a version.
        if !text.starts_with(|first: char| first.is_ascii_digit()) {
            return None;
        }
        let version = Self::split(text)?;
        let Self { numbers, pre_release, build } = version;
        let valid = numbers.iter().all(|number| is_number(number) && number.len() <= INTEGER_DIGITS_MAX)
            && pre_release.is_none_or(|text| are_identifiers(text, false))
            && build.is_none_or(|text| are_identifiers(text, true));
        valid.then_some(version)
    }

    /// The parts of a text that [`Self::parse`] accepts, without validating it again.
    pub fn split(text: &'a str) -> Option<Self> {
        let (text, build) = split_at_char(text, '+');
        let (core, pre_release) = split_at_char(text, '-');
        let mut parts = core.splitn(3, '.');
        let numbers = [parts.next()?, parts.next()?, parts.next()?];
        Some(Self { numbers, pre_release, build })
    }

    /// Whether its pre-release or its build is exactly `text`.
    pub fn has_part(&self, text: &str) -> bool {
        self.pre_release == Some(text) || self.build == Some(text)
    }
}

/// A version whose numbers fit in 64 bits, ordered as [`Version`] except that all pre-releases of a release
/// compare equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    numbers: [u64; 3],
    /// False for a pre-release.
    pub is_final: bool,
}

/// Parses a version as a [`Release`]; `None` if it is invalid or a number exceeds 64 bits.
pub fn release(text: &str) -> Option<Release> {
    // Fast path for the form `4.7.2`.
    let mut numbers = [0_u64; 3];
    let (mut part, mut digits) = (0, 0);
    for byte in text.bytes() {
        match byte {
            b'0'..=b'9' if digits < 18 && (digits == 0 || numbers[part] > 0) => {
                numbers[part] = numbers[part] * 10 + u64::from(byte - b'0');
                digits += 1;
            }
            b'.' if part < 2 && digits > 0 => (part, digits) = (part + 1, 0),
            _ => return release_of(&Version::parse(text)?),
        }
    }
    (part == 2 && digits > 0).then_some(Release { numbers, is_final: true })
}

fn release_of(version: &Version<'_>) -> Option<Release> {
    let [major, minor, patch] = version.numbers.map(|number| number.parse().ok());
    Some(Release { numbers: [major?, minor?, patch?], is_final: version.pre_release.is_none() })
}

fn split_at_char(text: &str, separator: char) -> (&str, Option<&str>) {
    text.split_once(separator).map_or((text, None), |(before, after)| (before, Some(after)))
}

fn is_number(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && (text == "0" || !text.starts_with('0'))
}

/// Whether `text` is identifiers joined by dots. One pass, because a client chooses the text and every
/// condition on it parses it. Those of a pre-release that are digits have no leading zeros.
fn are_identifiers(text: &str, leading_zeros: bool) -> bool {
    let bytes = text.as_bytes();
    let (mut from, mut is_number) = (0, true);
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'0'..=b'9' => {}
            b'.' => {
                if !is_identifier_length(bytes[from], at - from, is_number && !leading_zeros) {
                    return false;
                }
                (from, is_number) = (at + 1, true);
            }
            b'A'..=b'Z' | b'a'..=b'z' | b'-' => is_number = false,
            _ => return false,
        }
    }
    bytes
        .get(from)
        .is_some_and(|first| is_identifier_length(*first, bytes.len() - from, is_number && !leading_zeros))
}

/// Whether an identifier that begins with `first` may have that many bytes.
fn is_identifier_length(first: u8, bytes: usize, is_strict_number: bool) -> bool {
    bytes == 1 || (bytes > 1 && !(is_strict_number && first == b'0'))
}

/// Compares digits without leading zeros, of which the longer is the larger number.
fn compare_numbers(a: &str, b: &str) -> Ordering {
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

fn compare_identifiers(a: &str, b: &str) -> Ordering {
    match (is_number(a), is_number(b)) {
        (true, true) => compare_numbers(a, b),
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => a.cmp(b),
    }
}

/// The number of bytes that both begin with.
fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    // Whole chunks are compared by the library's memcmp.
    const CHUNK: usize = 64;
    let chunks = a.chunks_exact(CHUNK).zip(b.chunks_exact(CHUNK)).take_while(|(a, b)| a == b).count() * CHUNK;
    chunks + a[chunks..].iter().zip(&b[chunks..]).take_while(|(a, b)| a == b).count()
}

/// Identifiers that both begin with are equal: only those from the first difference on are compared.
fn compare_pre_releases(a: &str, b: &str) -> Ordering {
    let same = common_prefix(a.as_bytes(), b.as_bytes());
    let from = a[..same].rfind('.').map_or(0, |dot| dot + 1);
    let (mut a, mut b) = (a[from..].split('.'), b[from..].split('.'));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(a), Some(b)) => match compare_identifiers(a, b) {
                Ordering::Equal => {}
                order => return order,
            },
        }
    }
}

impl Ord for Version<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let numbers = self.numbers.iter().zip(&other.numbers);
        let by_number = numbers
            .map(|(a, b)| compare_numbers(a, b))
            .find(|order| order.is_ne())
            .unwrap_or(Ordering::Equal);
        by_number.then_with(|| match (self.pre_release, other.pre_release) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some(a), Some(b)) => compare_pre_releases(a, b),
        })
    }
}

impl PartialOrd for Version<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Equal precedence: versions that differ only in build metadata are equal.
impl PartialEq for Version<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Version<'_> {}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use crate::python::semver::{
        Version, are_identifiers, compare_identifiers, compare_pre_releases, is_number,
    };

    /// Section 9 and 10 as they are written.
    fn are_by_definition(text: &str, leading_zeros: bool) -> bool {
        text.split('.').all(|part| {
            let is_identifier =
                !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            is_identifier && (leading_zeros || is_number(part) || !part.bytes().all(|b| b.is_ascii_digit()))
        })
    }

    /// Section 11.4 as it is written.
    fn order_by_definition(a: &str, b: &str) -> Ordering {
        let (a, b): (Vec<_>, Vec<_>) = (a.split('.').collect(), b.split('.').collect());
        let by_part = a.iter().zip(&b).map(|(a, b)| compare_identifiers(a, b)).find(|order| order.is_ne());
        by_part.unwrap_or_else(|| a.len().cmp(&b.len()))
    }

    /// Every text of up to five of these characters, and every pair of those of up to four.
    #[test]
    fn one_pass_accepts_and_orders_as_the_definition() {
        let mut texts = vec![String::new()];
        for length in 1..=5 {
            let longer = texts.iter().filter(|text| text.len() == length - 1);
            let longer = longer.flat_map(|text| ["0", "1", "a", "-", ".", "+"].map(|c| format!("{text}{c}")));
            texts.extend(longer.collect::<Vec<_>>());
        }
        for text in &texts {
            for leading_zeros in [false, true] {
                let expected = are_by_definition(text, leading_zeros);
                assert_eq!(are_identifiers(text, leading_zeros), expected, "{text:?}");
            }
        }
        let valid: Vec<&String> =
            texts.iter().filter(|text| text.len() <= 4 && are_identifiers(text, false)).collect();
        assert!(valid.len() > 100);
        for a in &valid {
            for b in &valid {
                assert_eq!(compare_pre_releases(a, b), order_by_definition(a, b), "{a} and {b}");
            }
        }
        for bytes in [1, 62, 63, 64, 65, 127, 200] {
            let same = "a.".repeat(bytes)[..bytes].to_owned();
            let [a, b, c] = ["1a", "0.b", "-"].map(|end| format!("{same}{end}"));
            for (a, b) in [(&a, &b), (&b, &c), (&c, &a), (&a, &same), (&b, &b)] {
                assert_eq!(compare_pre_releases(a, b), order_by_definition(a, b), "{a} and {b}");
            }
        }
    }

    #[test]
    fn text_outside_ascii_is_rejected() {
        for text in ["1.2.3-\u{e9}", "1.2.3+\u{e9}", "1.2.\u{e9}", "1.2.3-a.\u{1f600}.b"] {
            assert!(Version::parse(text).is_none(), "{text}");
        }
    }
}
