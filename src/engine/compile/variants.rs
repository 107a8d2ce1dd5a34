//! The shares of a feature's variants as intervals of hashes.
use crate::engine::document::Variant;
use crate::engine::document::raw_json::is_number;

/// The hashes that select a variant: from `from` (inclusive) to `to` (exclusive).
pub struct Interval<'v, 'a> {
    pub from: f64,
    pub to: f64,
    pub variant: &'v Variant<'a>,
}

/// The intervals of a state's variants, in order of rank. Bounds are sums of doubles, as in Python
/// (compatibility.md 5.3).
pub fn intervals<'v, 'a>(variants: &'v [Variant<'a>]) -> Vec<Interval<'v, 'a>> {
    let mut ranked: Vec<&Variant<'_>> = variants.iter().collect();
    let is_sortable = ranked.iter().all(|variant| variant.rank.compare(&ranked[0].rank).is_some());
    if ranked.len() > 1 && !is_sortable {
        // Python raises for every identity: no identity gets a variant (differences.md 5).
        return Vec::new();
    }
    ranked.sort_by(|a, b| a.rank.compare(&b.rank).unwrap_or(std::cmp::Ordering::Equal));
    let mut intervals = Vec::with_capacity(ranked.len());
    let mut from = 0.0;
    for variant in ranked {
        let weight = match variant.weight {
            "true" => 1.0,
            "false" => 0.0,
            raw if is_number(raw) => raw.parse().unwrap_or(f64::NAN),
            // Python raises at this variant.
            _ => break,
        };
        let to = weight + from;
        intervals.push(Interval { from, to, variant });
        from = to;
    }
    intervals
}
