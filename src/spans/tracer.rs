//! Spans of the control plane. A thread is in at most one span at a time: what it calls finds it in a
//! thread-local and adds children, so that functions in between need no parameter.
use std::cell::RefCell;
use std::sync::Arc;

use crate::clock;
use crate::config::Sampler;
use crate::spans::context::{SpanId, TraceId, TraceParent};
use crate::spans::queue::SpanSender;
use crate::spans::span::{SpanAttribute, SpanKind, SpanValue, TraceSpan, shorten};

/// Begins traces, or none without an exporter. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<Traces>>);

#[derive(Debug)]
struct Traces {
    sender: SpanSender,
    /// `None`: every trace is recorded.
    sampler: Option<Sampler>,
}

/// The span that a thread is in, for another thread that does a part of its work.
#[derive(Clone, Debug, Default)]
pub struct ParentSpan(Option<Parent>);

#[derive(Clone, Debug)]
struct Parent {
    traces: Arc<Traces>,
    trace_id: TraceId,
    span_id: SpanId,
}

thread_local! {
    static CURRENT: RefCell<ParentSpan> = const { RefCell::new(ParentSpan(None)) };
}

/// The span of a piece of work that is being done. Without an exporter it takes no notes.
#[derive(Debug)]
pub struct ActiveSpan(Option<Notes>);

#[derive(Debug)]
struct Notes {
    parent: Parent,
    notes: RefCell<(Vec<SpanAttribute>, bool, Option<String>)>,
}

impl Tracer {
    /// `sender` of `None`: nothing is recorded. `sampler` of `None`: everything is.
    pub fn of(sender: Option<SpanSender>, sampler: Option<Sampler>) -> Self {
        Self(sender.map(|sender| Arc::new(Traces { sender, sampler })))
    }

    /// Does a piece of work in the first span of a new trace.
    pub fn trace<T>(&self, name: &'static str, work: impl FnOnce(&ActiveSpan) -> T) -> T {
        let begun = self.0.as_ref().and_then(|traces| Some((traces, clock::random_bytes().ok()?)));
        let Some((traces, trace_id)) = begun else { return work(&ActiveSpan(None)) };
        let [.., a, b, c, d, e, f, g, h] = trace_id;
        let end = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        if traces.sampler.is_some_and(|sampler| !sampler.root.samples(end)) {
            return work(&ActiveSpan(None));
        }
        run(traces, trace_id, None, name, SpanKind::Internal, work)
    }
}

/// The span that this thread is in.
pub fn current() -> ParentSpan {
    CURRENT.with_borrow(ParentSpan::clone)
}

/// Does a piece of work in a child of the span that this thread is in, if it is in one.
pub fn child<T>(name: &'static str, kind: SpanKind, work: impl FnOnce(&ActiveSpan) -> T) -> T {
    current().child(name, kind, work)
}

impl ParentSpan {
    /// Does a piece of work in a child, on any thread.
    pub fn child<T>(self, name: &'static str, kind: SpanKind, work: impl FnOnce(&ActiveSpan) -> T) -> T {
        match self.0 {
            None => work(&ActiveSpan(None)),
            Some(parent) => run(&parent.traces, parent.trace_id, Some(parent.span_id), name, kind, work),
        }
    }
}

/// Restores the span that the thread was in, also after a panic.
struct Restore(ParentSpan);

impl Drop for Restore {
    fn drop(&mut self) {
        CURRENT.set(std::mem::take(&mut self.0));
    }
}

fn run<T>(
    traces: &Arc<Traces>,
    trace_id: TraceId,
    parent: Option<SpanId>,
    name: &'static str,
    kind: SpanKind,
    work: impl FnOnce(&ActiveSpan) -> T,
) -> T {
    let span_id = clock::random().unwrap_or(1).max(1).to_be_bytes();
    let own = Parent { traces: Arc::clone(traces), trace_id, span_id };
    let restore = Restore(CURRENT.replace(ParentSpan(Some(own.clone()))));
    let active = ActiveSpan(Some(Notes { parent: own, notes: RefCell::default() }));
    let start = clock::wall();
    let result = work(&active);
    drop(restore);
    let (attributes, is_error, message) = active.0.map(|notes| notes.notes.into_inner()).unwrap_or_default();
    let end = clock::wall().max(start);
    let name = name.into();
    let span = TraceSpan { trace_id, span_id, parent, kind, name, start, end, attributes, is_error, message };
    traces.sender.send(vec![span]);
    result
}

impl ActiveSpan {
    /// Sets an attribute. `value` is called only if the span is recorded.
    pub fn set<V: Into<SpanValue>>(&self, name: &'static str, value: impl FnOnce() -> V) {
        if let Some(notes) = &self.0 {
            notes.notes.borrow_mut().0.push((name, value().into()));
        }
    }

    /// The work has failed. `kind` is a name from a small set, `message` one line without secrets.
    pub fn fail(&self, kind: &str, message: &str) {
        if let Some(notes) = &self.0 {
            let mut notes = notes.notes.borrow_mut();
            notes.0.push(("error.type", kind.to_owned().into()));
            notes.1 = true;
            notes.2 = (!message.is_empty()).then(|| shorten(message.to_owned()));
        }
    }

    /// The `traceparent` for a request that belongs to this span.
    pub fn traceparent(&self) -> Option<String> {
        let Parent { trace_id, span_id, .. } = self.0.as_ref()?.parent;
        Some(TraceParent { trace_id, span_id, is_sampled: true }.header())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::RootSampler;
    use crate::metrics::{SpanLoss, TelemetryMetrics};
    use crate::spans::queue::{SpanMessage, SpanReceiver, queue};

    fn take(receiver: &SpanReceiver) -> Vec<TraceSpan> {
        let mut spans = Vec::new();
        while let Ok(Some(SpanMessage::Spans(more))) = receiver.next(Duration::ZERO) {
            receiver.release(more.len());
            spans.extend(more);
        }
        spans
    }

    #[test]
    fn a_child_belongs_to_the_span_that_its_thread_is_in() {
        let (sender, receiver) = queue(8, Arc::default());
        Tracer::of(Some(sender), None).trace("poll", |poll| {
            poll.set("edge_proxy.result", || "changed");
            child("GET", SpanKind::Client, |get| {
                assert!(
                    get.traceparent().is_some_and(|header| TraceParent::parse(header.as_bytes()).is_some())
                );
                get.fail("timeout", "no data");
            });
            let here = current();
            let there = std::thread::spawn(move || here.child("compile", SpanKind::Internal, |_| ()));
            there.join().unwrap();
        });
        assert!(current().0.is_none(), "the span has ended");
        let spans = take(&receiver);
        let [get, compile, poll] = spans.try_into().expect("three spans");
        assert_eq!([&get.name, &compile.name, &poll.name], ["GET", "compile", "poll"]);
        assert!(get.parent == Some(poll.span_id) && compile.parent == Some(poll.span_id));
        assert!(poll.parent.is_none() && get.trace_id == poll.trace_id && compile.trace_id == poll.trace_id);
        assert_eq!(poll.attributes, [("edge_proxy.result", "changed".into())]);
        assert!(get.is_error && get.message.as_deref() == Some("no data") && !poll.is_error);
    }

    #[test]
    fn a_panic_ends_the_span_and_without_an_exporter_nothing_is_recorded() {
        let (sender, receiver) = queue(8, Arc::default());
        let tracer = Tracer::of(Some(sender), None);
        let work = std::panic::AssertUnwindSafe(|| tracer.trace("poll", |_| panic!("on purpose")));
        assert!(std::panic::catch_unwind(work).is_err());
        assert!(current().0.is_none());
        Tracer::default().trace("poll", |span| {
            span.set("a", || -> &str { unreachable!("it is not recorded") });
            assert!(span.traceparent().is_none() && current().0.is_none());
        });
        assert!(take(&receiver).is_empty());
    }

    #[test]
    fn the_sampler_decides_and_spans_beyond_the_queue_are_counted() {
        let metrics = Arc::<TelemetryMetrics>::default();
        let (sender, receiver) = queue(2, metrics.clone());
        let off = Some(Sampler { is_parent_based: true, root: RootSampler::Off });
        Tracer::of(Some(sender.clone()), off).trace("poll", |_| ());
        assert!(take(&receiver).is_empty());
        let on =
            Tracer::of(Some(sender.clone()), Some(Sampler { is_parent_based: true, root: RootSampler::On }));
        (0..5).for_each(|_| on.trace("poll", |_| ()));
        assert!(!sender.has_space());
        assert_eq!(metrics.lost_of(SpanLoss::Full as usize), 3);
        assert_eq!(take(&receiver).len(), 2);
        on.trace("poll", |_| ());
        assert_eq!(take(&receiver).len(), 1, "there is space again");
    }
}
