//! Which requests have a span, and their ids.
use std::cell::Cell;

use crate::clock;
use crate::config::Sampler;
use crate::spans::context::{SpanId, TraceId, TraceParent};

/// The ids of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestTrace {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    /// The span of the caller.
    pub parent: Option<SpanId>,
}

/// The sampler of one reactor, with its own random numbers.
#[derive(Debug)]
pub struct RequestSampler {
    sampler: Sampler,
    random: Cell<u64>,
}

impl RequestSampler {
    pub fn new(sampler: Sampler) -> Self {
        // Without the system's generator the ids depend on the time.
        let seed = clock::random().unwrap_or_else(|_| {
            let since = clock::wall().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            u64::from(since.subsec_nanos()) << 32 | since.as_secs()
        });
        Self { sampler, random: Cell::new(seed) }
    }

    /// Decides about a request with this `traceparent`; `None`: it has no span.
    #[inline]
    pub fn sample(&self, traceparent: Option<&[u8]>) -> Option<RequestTrace> {
        match traceparent {
            None => {
                let end = self.next();
                if self.sampler.root.samples(end) { Some(self.root(end)) } else { None }
            }
            Some(value) => self.sample_joined(value),
        }
    }

    /// An invalid `traceparent` is as none (W3C Trace Context, 4.3).
    fn sample_joined(&self, traceparent: &[u8]) -> Option<RequestTrace> {
        let Some(parent) = TraceParent::parse(traceparent) else { return self.sample(None) };
        let [.., a, b, c, d, e, f, g, h] = parent.trace_id;
        let is_sampled = match self.sampler.is_parent_based {
            true => parent.is_sampled,
            false => self.sampler.root.samples(u64::from_be_bytes([a, b, c, d, e, f, g, h])),
        };
        let (trace_id, span_id) = (parent.trace_id, self.span_id());
        is_sampled.then_some(RequestTrace { trace_id, span_id, parent: Some(parent.span_id) })
    }

    #[cold]
    fn root(&self, end: u64) -> RequestTrace {
        let trace_id = u128::from(self.next()) << 64 | u128::from(end);
        RequestTrace { trace_id: trace_id.max(1).to_be_bytes(), span_id: self.span_id(), parent: None }
    }

    fn span_id(&self) -> SpanId {
        self.next().max(1).to_be_bytes()
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn next(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RootSampler;

    fn sampler(is_parent_based: bool, root: RootSampler) -> RequestSampler {
        RequestSampler::new(Sampler { is_parent_based, root })
    }

    const SAMPLED: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const UNSAMPLED: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    const INVALID: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01";

    #[test]
    fn the_callers_decision_is_followed_if_the_sampler_is_parent_based() {
        for (is_parent_based, root, traceparent, expected) in [
            (true, RootSampler::Off, Some(SAMPLED), true),
            (true, RootSampler::On, Some(UNSAMPLED), false),
            (true, RootSampler::On, Some(INVALID), true),
            (true, RootSampler::Off, Some(INVALID), false),
            (true, RootSampler::Off, None, false),
            (true, RootSampler::On, None, true),
            (false, RootSampler::On, Some(UNSAMPLED), true),
            (false, RootSampler::Off, Some(SAMPLED), false),
            (false, RootSampler::of_ratio(1.0), None, true),
            (false, RootSampler::of_ratio(0.0), None, false),
        ] {
            let found = sampler(is_parent_based, root).sample(traceparent);
            assert_eq!(found.is_some(), expected, "{is_parent_based} {root:?} {traceparent:?}");
        }
    }

    #[test]
    fn a_span_joins_the_callers_trace_also_if_the_sampler_decides_itself() {
        for is_parent_based in [false, true] {
            let found = sampler(is_parent_based, RootSampler::On).sample(Some(SAMPLED)).unwrap();
            let parent = TraceParent::parse(SAMPLED).unwrap();
            assert_eq!((found.trace_id, found.parent), (parent.trace_id, Some(parent.span_id)));
            assert_ne!(found.span_id, parent.span_id);
        }
    }

    #[test]
    fn a_ratio_decides_by_the_trace_id() {
        // The same trace has the same decision in every process (OpenTelemetry, TraceIdRatioBased).
        let end = u64::from_str_radix("a3ce929d0e0e4736", 16).unwrap() & (u64::MAX >> 1);
        let share = end as f64 / (1u64 << 63) as f64;
        for (ratio, expected) in [(share - 0.001, false), (share + 0.001, true)] {
            let found = sampler(false, RootSampler::of_ratio(ratio)).sample(Some(UNSAMPLED));
            assert_eq!(found.is_some(), expected, "{ratio}");
        }
        let thousandth = sampler(true, RootSampler::of_ratio(0.001));
        let count = (0..1_000_000).filter(|_| thousandth.sample(None).is_some()).count();
        assert!((800..1200).contains(&count), "{count}");
    }

    #[test]
    fn ids_differ() {
        let on = sampler(true, RootSampler::On);
        let (one, other) = (on.sample(None).unwrap(), on.sample(None).unwrap());
        assert_ne!(one.trace_id, other.trace_id);
        assert_ne!(one.span_id, other.span_id);
        assert_ne!(sampler(true, RootSampler::On).sample(None).unwrap().trace_id, one.trace_id);
    }
}
