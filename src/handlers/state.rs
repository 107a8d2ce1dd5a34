//! The state that a reactor keeps for its request handlers: buffers, and counts not yet reported.
use std::cell::RefCell;
use std::rc::Rc;

use crate::counts::{Counts, Resource};
use crate::events::{EventFault, EventPost};
use crate::handlers::outcome::{Exceeded, RequestOutcome};
use crate::handlers::result_cache::ResultCacheCounts;
use crate::handlers::scratch::Scratch;
use crate::handlers::sse::StreamSubscription;
use crate::http::Gunzip;
use crate::http::route::Route;
use crate::identity::IdentityReader;
use crate::snapshot::{Environment, Snapshot};
use crate::trait_table::TraitView;

/// Not shared: each reactor has its own.
#[derive(Debug, Default)]
pub struct HandlerState {
    pub(super) readers: BodyReaders,
    pub(super) scratch: Scratch,
    pub(super) counts: Counts,
    pub(super) subscription: Option<StreamSubscription>,
    pub(super) events: ReceivedEvents,
    /// Kept traits; `None` without a store.
    pub(super) traits: Option<SharedView>,
}

/// The view of a reactor, which receives updates between requests.
pub type SharedView = Rc<RefCell<TraitView>>;

/// The experiment events of the last request.
#[derive(Debug, Default)]
pub struct ReceivedEvents {
    /// To be stored. The response, 202, is valid once they are.
    pub post: Option<EventPost>,
    /// Rejected events by their fault.
    pub rejected: [u32; EventFault::ALL.len()],
}

/// What decodes and parses request bodies.
#[derive(Debug, Default)]
pub struct BodyReaders {
    pub gunzip: Gunzip,
    pub identity: IdentityReader,
}

impl HandlerState {
    /// `traits`: the kept traits of the reactor, if there is a store.
    pub fn new(traits: Option<SharedView>) -> Self {
        Self { traits, ..Self::default() }
    }

    /// The counts since the reactor last took them.
    pub fn counts(&mut self) -> &mut Counts {
        &mut self.counts
    }

    /// Replaces all buffers and caches, which a panic in [`handle`](crate::handlers::handle) may have left in
    /// any state. Counts are kept.
    pub fn reset_after_panic(&mut self) {
        self.clear_results();
        let Scratch { flags_cache, ofrep_cache, .. } = std::mem::take(&mut self.scratch);
        let scratch = Scratch { flags_cache, ofrep_cache, ..Scratch::default() };
        let (counts, traits) = (std::mem::take(&mut self.counts), self.traits.take());
        *self = Self { counts, scratch, traits, ..Self::default() };
    }

    /// Frees all cached results. Call it for new settings, which results may depend on.
    pub fn clear_results(&mut self) {
        self.scratch.flags_cache.reset();
        self.scratch.ofrep_cache.reset();
    }

    /// Frees the cached results of documents that this snapshot does not have. Call it for each new one.
    pub fn retain_results(&mut self, snapshot: &Snapshot) {
        self.scratch.flags_cache.retain(snapshot);
        self.scratch.ofrep_cache.retain(snapshot);
    }

    /// Events and memory of the caches of results.
    pub fn result_cache_counts(&self) -> ResultCacheCounts {
        self.scratch.flags_cache.counts() + self.scratch.ofrep_cache.counts()
    }

    /// The budgets that the last request exceeded. Resets them.
    pub fn take_exceeded(&mut self, outcome: &RequestOutcome) -> Exceeded {
        let budget = self.scratch.evaluation.budget();
        let is_rejected = outcome.route == Route::BulkIdentities && outcome.status == 400;
        let (texts, flag_cycles) = (budget.texts.take_exceeded(), budget.flag_cycles.take_exceeded());
        Exceeded {
            jsonpath: budget.jsonpath.take_exceeded(),
            patterns: budget.patterns.take_exceeded(),
            flag_cycles,
            bulk: is_rejected && (texts || flag_cycles),
        }
    }

    /// The property of a condition that the last request did not evaluate, because a budget was exceeded.
    pub fn cut_property<'e>(&self, environment: &'e Environment) -> Option<&'e str> {
        let slot = self.scratch.evaluation.cut_slots().first()?;
        environment.program().property(*slot)
    }

    /// The subscription of the event stream that the last request opened, if it did.
    pub fn take_subscription(&mut self) -> Option<StreamSubscription> {
        self.subscription.take()
    }

    /// The experiment events of the last request. Call it after each request to `Route::Events`.
    pub fn take_events(&mut self) -> ReceivedEvents {
        std::mem::take(&mut self.events)
    }

    /// Counts a successful request by the resources that Flagsmith bills.
    pub(super) fn count_usage(&mut self, outcome: &RequestOutcome) {
        let resource = match outcome.route {
            Route::Flags => Resource::Flags,
            Route::Identities => Resource::Identities,
            Route::EnvironmentDocument => Resource::EnvironmentDocument,
            _ => return,
        };
        if let Some(slot) = outcome.slot {
            self.counts.used(slot, resource);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::program::Role;
    use crate::handlers::result_cache::{ResultKey, ResultLookup};
    use crate::limits::FLAG_CYCLE_STEPS_MAX;

    #[test]
    fn after_a_panic_no_result_is_left_but_all_counts() {
        let mut state = HandlerState::default();
        let key = ResultKey { environment: 1, slot: 0, role: Role::Server, outputs: &[1] };
        assert_eq!(state.scratch.ofrep_cache.lookup(key), ResultLookup::Miss);
        assert_eq!(state.scratch.flags_cache.lookup(key), ResultLookup::Miss);
        let ResultLookup::Admit(hash) = state.scratch.flags_cache.lookup(key) else { panic!("seen twice") };
        let tail = crate::http::compression::CompressedTail::new(&[b'x'; 2000]).unwrap();
        state.scratch.flags_cache.insert(key, hash, tail, 2000).unwrap();
        assert!(matches!(state.scratch.flags_cache.lookup(key), ResultLookup::Hit(_)));
        state.reset_after_panic();
        let counts = state.result_cache_counts();
        assert_eq!((counts.hits, counts.misses, counts.bytes), (1, 3, 0));
        assert!(!matches!(state.scratch.flags_cache.lookup(key), ResultLookup::Hit(_)));
    }

    #[test]
    fn only_a_rejected_bulk_request_counts_as_one() {
        let mut state = HandlerState::default();
        let bulk = RequestOutcome { status: 400, route: Route::BulkIdentities, ..RequestOutcome::NONE };
        for (outcome, spent, exceeded) in [
            (bulk, true, (true, true)),
            (bulk, false, (false, false)),
            (RequestOutcome { status: 200, ..bulk }, true, (true, false)),
            (RequestOutcome { route: Route::Identities, ..bulk }, true, (true, false)),
        ] {
            state.scratch.evaluation = Default::default();
            if spent {
                state.scratch.evaluation.budget().flag_cycles.spend(FLAG_CYCLE_STEPS_MAX as usize + 1);
            }
            let found = state.take_exceeded(&outcome);
            assert_eq!((found.flag_cycles, found.bulk), exceeded, "{outcome:?}");
        }
    }
}
