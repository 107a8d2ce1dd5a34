//! Durations in buckets of an exponential width.
use std::time::Duration;

use crate::metrics::counter::Counter;

/// A histogram of durations with four buckets per octave, like HdrHistogram: at most 25 % wide, from 1 µs to
/// 17 s.
#[derive(Debug)]
pub struct Histogram {
    buckets: [Counter; Histogram::BUCKETS],
    pub sum_ns: Counter,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| Counter::default()), sum_ns: Counter::default() }
    }
}

impl Histogram {
    pub const OCTAVES: usize = 24;
    /// One bucket below 1 µs, four per octave, one above.
    pub const BUCKETS: usize = 1 + 4 * Self::OCTAVES + 1;

    /// Adds `count` values of `duration`.
    pub fn add(&self, count: u64, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[Self::bucket(ns)].add(count);
        self.sum_ns.add(ns.saturating_mul(count));
    }

    fn bucket(ns: u64) -> usize {
        let quarters = ns / 250;
        if quarters < 4 {
            return 0;
        }
        let octave = quarters.ilog2() as usize - 2;
        let quarter = (quarters >> octave) as usize & 3;
        (1 + 4 * octave + quarter).min(Self::BUCKETS - 1)
    }

    /// The upper bound of a bucket in seconds; infinite for the last one.
    pub fn upper_seconds(bucket: usize) -> f64 {
        match bucket {
            0 => 1e-6,
            last if last >= Self::BUCKETS - 1 => f64::INFINITY,
            other => {
                let (octave, quarter) = ((other - 1) / 4, (other - 1) % 4);
                ((250u64 << octave) * (quarter as u64 + 5)) as f64 / 1e9
            }
        }
    }

    /// The count of each bucket.
    pub fn counts(&self) -> [u64; Self::BUCKETS] {
        std::array::from_fn(|bucket| self.buckets[bucket].value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_contain_durations_within_their_bounds() {
        let mut ns = 100u64;
        while ns < 60_000_000_000 {
            let bucket = Histogram::bucket(ns);
            let seconds = ns as f64 / 1e9;
            assert!(seconds <= Histogram::upper_seconds(bucket) + 250e-9, "{ns} in {bucket}");
            if bucket > 0 {
                assert!(seconds >= Histogram::upper_seconds(bucket - 1), "{ns} in {bucket}");
            }
            ns += ns / 7;
        }
        assert_eq!(Histogram::bucket(u64::MAX), Histogram::BUCKETS - 1);
    }
}
