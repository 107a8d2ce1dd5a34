//! An update that the event stream announced and that upstream does not serve yet.
//!
//! An event only makes the next poll earlier. An event that no document confirms within
//! `EVENT_LAG_MAX` is dropped, and ignored if it is sent again.
use std::time::{Duration, Instant};

/// First wait before a document that is older than its event is fetched again; doubled each time.
const EVENT_RETRY_MIN: Duration = Duration::from_millis(50);
/// Longest such wait.
const EVENT_RETRY_MAX: Duration = Duration::from_secs(5);
/// How long a document may be older than its event; core serves environments from a cache for up to 60 s.
/// Beyond: the event is ignored.
const EVENT_LAG_MAX: Duration = Duration::from_secs(120);

/// Times travel as floats: within half a millisecond they are equal.
const TOLERANCE_SECONDS: f64 = 0.0005;

/// What was announced and is waited for.
#[derive(Clone, Copy, Debug)]
struct PendingUpdate {
    updated_at: f64,
    since: Instant,
    retry: Duration,
}

/// The announcements of one environment.
#[derive(Debug, Default)]
pub struct Announcements {
    pending: Option<PendingUpdate>,
    /// The last one that no document confirmed.
    dropped: Option<f64>,
}

/// What to do about an announcement after a poll.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NextStep {
    /// Nothing is pending.
    Nothing,
    /// Make the next regular poll unconditional.
    FetchWhole,
    /// Poll unconditionally at this time.
    FetchWholeAt(Instant),
    /// The announced time was given up.
    Dropped(f64),
}

impl Announcements {
    /// Adds an announcement; `current` is the `updated_at` of the document from upstream that is served. True
    /// if it is news, so that a poll is due.
    pub fn add(&mut self, updated_at: f64, current: Option<f64>, now: Instant) -> bool {
        let is_old = self.pending.is_some_and(|pending| pending.updated_at >= updated_at);
        if is_old || is_confirmed(updated_at, current) || self.dropped == Some(updated_at) {
            return false;
        }
        self.pending = Some(PendingUpdate { updated_at, since: now, retry: EVENT_RETRY_MIN });
        true
    }

    /// To be called after each poll.
    pub fn polled(&mut self, current: Option<f64>, has_failed: bool, now: Instant) -> NextStep {
        let Some(pending) = &mut self.pending else { return NextStep::Nothing };
        let updated_at = pending.updated_at;
        if has_failed {
            // A failed poll says nothing about the announcement, and its backoff counts.
            pending.since = now;
            NextStep::FetchWhole
        } else if is_confirmed(updated_at, current) {
            self.pending = None;
            NextStep::Nothing
        } else if now.duration_since(pending.since) > EVENT_LAG_MAX {
            self.pending = None;
            self.dropped = Some(updated_at);
            NextStep::Dropped(updated_at)
        } else {
            let at = now + pending.retry;
            pending.retry = (pending.retry * 2).min(EVENT_RETRY_MAX);
            NextStep::FetchWholeAt(at)
        }
    }
}

fn is_confirmed(updated_at: f64, current: Option<f64>) -> bool {
    current.is_some_and(|current| current >= updated_at - TOLERANCE_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_with_backoff_until_a_document_confirms_the_announcement() {
        let (mut announcements, start) = (Announcements::default(), Instant::now());
        assert!(announcements.add(10.0, Some(9.0), start));
        assert!(!announcements.add(10.0, Some(9.0), start), "already pending");
        let first = announcements.polled(Some(9.0), false, start);
        assert_eq!(first, NextStep::FetchWholeAt(start + EVENT_RETRY_MIN));
        let second = announcements.polled(Some(9.0), false, start);
        let doubled = (EVENT_RETRY_MIN * 2).min(EVENT_RETRY_MAX);
        assert_eq!(second, NextStep::FetchWholeAt(start + doubled));
        assert_eq!(announcements.polled(Some(9.9999), false, start), NextStep::Nothing);
        assert!(!announcements.add(10.0, Some(9.9999), start), "already served");
    }

    #[test]
    fn drops_an_announcement_that_no_document_confirms() {
        let (mut announcements, start) = (Announcements::default(), Instant::now());
        announcements.add(10.0, None, start);
        let late = start + EVENT_LAG_MAX * 2;
        assert_eq!(
            announcements.polled(None, true, late),
            NextStep::FetchWhole,
            "a failure extends the wait"
        );
        let later = late + EVENT_LAG_MAX * 2;
        assert_eq!(announcements.polled(None, false, later), NextStep::Dropped(10.0));
        assert!(!announcements.add(10.0, None, later), "sent again");
        assert!(announcements.add(11.0, None, later));
    }
}
