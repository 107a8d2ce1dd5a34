//! One round of uploads: each waiting parcel is sent once, and what is refused is divided.
//!
//! Environments take turns and small parcels go first, so that the flood of one environment or label
//! does not delay the others. A refusal that may be the fault of one row (400, 422) or of the size
//! (413) divides the parcel, so that it costs that row alone; the number of divisions is bounded. A
//! parcel that upstream keeps answering 500 to, while it takes others, is divided as well.
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::analytics::outbox::ReportKind;
use crate::analytics::parcel::Parcel;
use crate::limits;
use crate::upstream::{PollError, PollErrorKind, PostOutcome};

/// A parcel that was not accepted yet.
#[derive(Clone, Debug)]
pub struct Waiting {
    pub parcel: Arc<Parcel>,
    /// How often it failed.
    pub failures: u32,
    /// How often upstream answered 500 to it and took others in the same round.
    pub faults: u32,
    /// Not before this; from `Retry-After`.
    pub retry_at: Option<Instant>,
}

impl Waiting {
    pub fn new(parcel: Parcel) -> Self {
        Self { parcel: Arc::new(parcel), failures: 0, faults: 0, retry_at: None }
    }
}

/// What came of a round.
#[derive(Debug)]
pub struct Posted {
    pub kind: ReportKind,
    pub started: Instant,
    /// To be tried again.
    pub kept: Vec<Waiting>,
    /// Counts accepted, and whether any parcel was.
    pub sent: u64,
    pub is_any_accepted: bool,
    /// Counts refused for good, and why.
    pub lost: u64,
    pub refused: Option<String>,
    /// Parcels divided.
    pub divided: u64,
    pub failure: Option<PollError>,
}

impl Posted {
    pub fn new(kind: ReportKind) -> Self {
        Self {
            kind,
            started: Instant::now(),
            kept: Vec::new(),
            sent: 0,
            is_any_accepted: false,
            lost: 0,
            refused: None,
            divided: 0,
            failure: None,
        }
    }

    /// All of it lost.
    pub fn lost(kind: ReportKind, waiting: &[Waiting], why: &str) -> Self {
        let lost = waiting.iter().map(|waiting| waiting.parcel.count).sum();
        Self { lost, refused: Some(why.into()), ..Self::new(kind) }
    }
}

/// The order of a round: the first parcel of each environment, the second of each, and so on. Within an
/// environment those that did not fail yet come first, and of these the smallest.
fn interleaved(mut waiting: Vec<Waiting>) -> VecDeque<Waiting> {
    waiting.sort_by_key(|one| (one.failures.min(1), one.parcel.body.len()));
    let mut turns: HashMap<String, usize> = HashMap::new();
    let mut keyed: Vec<(usize, Waiting)> = Vec::with_capacity(waiting.len());
    for one in waiting {
        let turn = turns.entry(one.parcel.client_side_key.clone()).or_default();
        keyed.push((*turn, one));
        *turn += 1;
    }
    keyed.sort_by_key(|(turn, _)| *turn);
    keyed.into_iter().map(|(_, one)| one).collect()
}

struct Round {
    posted: Posted,
    queue: VecDeque<Waiting>,
    /// Environments whose parcel did not reach upstream: their others wait for the next round.
    unreached: HashSet<String>,
    /// Divisions by environment.
    divisions: HashMap<String, u32>,
    refusals: u32,
    /// Places in `posted.kept` of parcels that were answered 500.
    faulty: Vec<usize>,
}

/// Sends each of `waiting` by `send`; none is begun after `until`.
pub fn post(
    kind: ReportKind,
    waiting: Vec<Waiting>,
    until: Instant,
    send: impl Fn(&Parcel) -> PostOutcome,
) -> Posted {
    let mut round = Round {
        posted: Posted::new(kind),
        queue: interleaved(waiting),
        unreached: HashSet::new(),
        divisions: HashMap::new(),
        refusals: 0,
        faulty: Vec::new(),
    };
    while let Some(waiting) = round.queue.pop_front() {
        let is_over = Instant::now() >= until;
        let is_unreached = round.unreached.len() >= limits::UNREACHED_MAX
            || round.unreached.contains(&waiting.parcel.client_side_key);
        if is_over || is_unreached {
            round.posted.kept.push(waiting);
            continue;
        }
        match send(&waiting.parcel) {
            PostOutcome::Accepted => {
                round.posted.sent += waiting.parcel.count;
                round.posted.is_any_accepted = true;
            }
            PostOutcome::Refused { why, may_divide } => round.refused(&waiting, why, may_divide),
            PostOutcome::Failed(failure) => round.failed(waiting, failure),
        }
    }
    round.divide_faulty();
    round.posted
}

impl Round {
    fn refused(&mut self, waiting: &Waiting, why: String, may_divide: bool) {
        self.refusals += 1;
        // Upstream that refuses everything is not asked about every row.
        let is_hopeless = !self.posted.is_any_accepted && self.refusals > limits::REFUSALS_MAX;
        let halves = if may_divide && !is_hopeless { self.divide(&waiting.parcel) } else { None };
        match halves {
            Some(halves) => self.queue.extend(halves.map(Waiting::new)),
            None => self.lose(&waiting.parcel, why),
        }
    }

    fn lose(&mut self, parcel: &Parcel, why: String) {
        self.posted.lost += parcel.count;
        self.posted.refused = Some(why);
    }

    /// Halves a parcel, unless its environment's divisions are used up.
    fn divide(&mut self, parcel: &Parcel) -> Option<[Parcel; 2]> {
        let divisions = self.divisions.entry(parcel.client_side_key.clone()).or_default();
        if *divisions >= limits::DIVISIONS_MAX {
            return None;
        }
        let halves = parcel.halves()?;
        *divisions += 1;
        self.posted.divided += 1;
        Some(halves)
    }

    fn failed(&mut self, mut waiting: Waiting, failure: PollError) {
        match failure.kind {
            PollErrorKind::Status(500) => self.faulty.push(self.posted.kept.len()),
            PollErrorKind::Status(_) => {}
            _ => drop(self.unreached.insert(waiting.parcel.client_side_key.clone())),
        }
        waiting.failures = waiting.failures.saturating_add(1);
        let wait = failure.retry_after.map(|wait| wait.min(limits::RETRY_AFTER_MAX));
        waiting.retry_at = wait.and_then(|wait| Instant::now().checked_add(wait));
        self.posted.failure = Some(failure);
        self.posted.kept.push(waiting);
    }

    /// One row that upstream cannot store fails the whole upload each time. An outage does not look
    /// like this, for then nothing is accepted.
    fn divide_faulty(&mut self) {
        if !self.posted.is_any_accepted {
            return;
        }
        for place in std::mem::take(&mut self.faulty) {
            self.posted.kept[place].faults += 1;
            if self.posted.kept[place].faults < limits::FAULTS_MAX {
                continue;
            }
            let parcel = Arc::clone(&self.posted.kept[place].parcel);
            match self.divide(&parcel) {
                Some([first, second]) => {
                    let again = |parcel| Waiting { faults: limits::FAULTS_MAX - 1, ..Waiting::new(parcel) };
                    self.posted.kept[place] = again(first);
                    self.posted.kept.push(again(second));
                }
                // Divisions may be used up in this round; a single row is given up.
                None if parcel.halves().is_none() => {
                    self.posted.kept[place].parcel = Arc::new(Parcel { count: 0, ..(*parcel).clone() });
                    self.lose(&parcel, "a single row that upstream answers 500 to".to_owned());
                }
                None => {}
            }
        }
        self.posted.kept.retain(|waiting| waiting.parcel.count > 0);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::time::Duration;

    use serde_json::Value;

    use super::*;
    use crate::counts::Labels;

    fn plain(key: &str, rows: usize) -> Waiting {
        let body: Vec<String> = (0..rows).map(|number| format!("\"f{number:05}\":1")).collect();
        let body = format!("{{{}}}", body.join(","));
        Waiting::new(Parcel::new("analytics/flags/", key.into(), Labels::default(), body, rows as u64))
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    fn refused() -> PostOutcome {
        PostOutcome::Refused { why: "400".into(), may_divide: true }
    }

    fn failed(status: u16) -> PostOutcome {
        PostOutcome::Failed(PollError::new(PollErrorKind::Status(status), "x"))
    }

    fn has(parcel: &Parcel, row: &str) -> bool {
        parcel.body.contains(row)
    }

    #[test]
    fn one_bad_row_costs_that_row_alone() {
        let calls = RefCell::new(0);
        let posted = post(ReportKind::Analytics, vec![plain("a", 10_000)], later(), |parcel| {
            *calls.borrow_mut() += 1;
            if has(parcel, "\"f04321\"") { refused() } else { PostOutcome::Accepted }
        });
        assert_eq!((posted.sent, posted.lost, posted.kept.len()), (9_999, 1, 0));
        assert!(*calls.borrow() <= 2 * 14 + 1, "{}", calls.borrow());
    }

    #[test]
    fn too_large_a_parcel_is_halved_until_it_is_taken() {
        let posted = post(ReportKind::Analytics, vec![plain("a", 10_000)], later(), |parcel| {
            if parcel.body.len() > 10_000 { refused() } else { PostOutcome::Accepted }
        });
        assert_eq!((posted.sent, posted.lost), (10_000, 0));
        assert_eq!(posted.divided, 15);
    }

    #[test]
    fn divisions_are_bounded_and_each_environment_has_its_own() {
        let calls = RefCell::new(0);
        // Every row of "a" is bad, and one of "b".
        let posted = post(
            ReportKind::Analytics,
            vec![plain("a", 10_000), plain("b", 100), plain("c", 1)],
            later(),
            |parcel| {
                *calls.borrow_mut() += 1;
                let is_bad = parcel.client_side_key == "a"
                    || (parcel.client_side_key == "b" && has(parcel, "\"f00007\""));
                if is_bad { refused() } else { PostOutcome::Accepted }
            },
        );
        assert_eq!((posted.sent, posted.lost), (100, 10_001));
        assert!(*calls.borrow() <= 2 * limits::DIVISIONS_MAX + 20, "{}", calls.borrow());
        let calls = RefCell::new(0);
        let posted = post(
            ReportKind::Analytics,
            (0..100).map(|n| plain(&n.to_string(), 100)).collect(),
            later(),
            |_| {
                *calls.borrow_mut() += 1;
                refused()
            },
        );
        assert_eq!((posted.sent, posted.lost), (0, 10_000));
        assert!(*calls.borrow() <= 100 + 2 * limits::REFUSALS_MAX, "{}", calls.borrow());
    }

    #[test]
    fn environments_take_turns_and_small_parcels_go_first() {
        let order = RefCell::new(Vec::new());
        let mut waiting: Vec<Waiting> = (0..50).map(|number| plain("flood", 1000 - number)).collect();
        waiting.extend([plain("flood", 1), plain("b", 5), plain("c", 7)]);
        let posted = post(ReportKind::Analytics, waiting, later(), |parcel| {
            order.borrow_mut().push((parcel.client_side_key.clone(), parcel.count));
            PostOutcome::Accepted
        });
        let first: Vec<_> = order.borrow().iter().take(4).map(|(key, count)| (key.clone(), *count)).collect();
        let expected = [("flood", 1), ("b", 5), ("c", 7), ("flood", 951)];
        assert_eq!(first, expected.map(|(key, count)| (key.to_owned(), count)));
        assert!(posted.kept.is_empty() && posted.failure.is_none());
    }

    #[test]
    fn a_parcel_that_does_not_arrive_delays_its_environment_alone() {
        let waiting = || vec![plain("a", 2), plain("a", 3), plain("b", 4), plain("c", 5)];
        let lost = || PostOutcome::Failed(PollError::new(PollErrorKind::Timeout, "x"));
        let calls = RefCell::new(0);
        let posted = post(ReportKind::Analytics, waiting(), later(), |parcel| {
            *calls.borrow_mut() += 1;
            if parcel.client_side_key == "a" { lost() } else { PostOutcome::Accepted }
        });
        assert_eq!((posted.sent, posted.kept.len(), *calls.borrow()), (9, 2, 3));
        // Upstream that nobody reaches is not tried for every environment.
        let calls = RefCell::new(0);
        let many = (0..100).map(|number| plain(&number.to_string(), 1)).collect();
        let posted = post(ReportKind::Analytics, many, later(), |_| {
            *calls.borrow_mut() += 1;
            lost()
        });
        assert_eq!((posted.kept.len(), *calls.borrow()), (100, limits::UNREACHED_MAX));
    }

    #[test]
    fn nothing_is_sent_after_the_time() {
        let posted = post(ReportKind::Analytics, vec![plain("a", 2)], Instant::now(), |_| unreachable!());
        assert_eq!(posted.kept.len(), 1);
    }

    #[test]
    fn a_row_that_upstream_answers_500_to_is_found_while_others_are_taken() {
        let mut waiting = vec![plain("a", 1000)];
        let (mut sent, mut lost, mut rounds) = (0, 0, 0);
        while !waiting.is_empty() {
            waiting.push(plain("b", 1));
            let posted = post(ReportKind::Analytics, waiting, later(), |parcel| {
                if has(parcel, "\"f00321\"") { failed(500) } else { PostOutcome::Accepted }
            });
            (sent, lost, rounds) = (sent + posted.sent, lost + posted.lost, rounds + 1);
            waiting = posted.kept;
        }
        assert_eq!((sent, lost), (999 + rounds, 1));
        assert!(rounds <= 2 + 11, "{rounds}");
        // In an outage nothing is divided or given up, however long it lasts.
        let mut waiting = vec![plain("a", 1000)];
        for _ in 0..50 {
            let posted = post(ReportKind::Analytics, waiting, later(), |_| failed(500));
            assert_eq!((posted.divided, posted.lost), (0, 0));
            waiting = posted.kept;
        }
        assert_eq!((waiting.len(), waiting[0].failures), (1, 50));
        let body: Value = serde_json::from_str(&waiting[0].parcel.body).unwrap();
        assert_eq!(body.as_object().unwrap().len(), 1000);
    }

    #[test]
    fn retry_after_is_kept_for_the_parcel() {
        let wait = Duration::from_secs(30);
        let posted = post(ReportKind::Analytics, vec![plain("a", 1)], later(), |_| {
            let mut failure = PollError::new(PollErrorKind::Status(429), "x");
            failure.retry_after = Some(wait);
            PostOutcome::Failed(failure)
        });
        assert!(posted.kept[0].retry_at.unwrap() > posted.started + wait / 2);
    }
}
