//! What became of a delta of the document.
use std::fmt::Display;

use crate::config::Level;
use crate::supervisor::context::EventContext;
use crate::upstream::DeltaOutcome;

/// Counts it, and logs why it was not usable. `name` is that of the environment in logs.
pub fn record(delta: &DeltaOutcome, name: &str, context: &mut EventContext<'_>) {
    match delta {
        DeltaOutcome::None => {}
        DeltaOutcome::Applied => context.metrics.supervisor.deltas_applied.add(1),
        DeltaOutcome::Refused(reason) => {
            context.metrics.supervisor.deltas_refused.add(1);
            let hint = "the whole document was fetched instead";
            let fields: [(_, &dyn Display); 3] =
                [("client_side_key", &name), ("reason", reason), ("hint", &hint)];
            context.actions.log(Level::Warning, "document_delta_refused", &fields);
        }
    }
}
