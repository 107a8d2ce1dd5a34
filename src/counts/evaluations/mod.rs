//! Evaluations that SDKs report, by environment and label, bounded in bytes.
//!
//! A client-side key is public, so anyone may report. Beyond a bound a count moves to a coarser row: first
//! without its identifier, then without its label. It is lost only if the row without both does not fit,
//! which takes feature names that no document bounds. Rows with and without identifiers have bounds of
//! their own, and so has each label: a caller at its bound takes nothing from others.
use hashbrown::{Equivalent, HashMap};
use serde::{Deserialize, Serialize};

use crate::limits;

/// Headers of the SDK that upstream keeps counts apart by. Empty is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Labels {
    pub application_name: Box<str>,
    pub application_version: Box<str>,
    pub user_agent: Box<str>,
    pub sdk_user_agent: Box<str>,
}

/// The version of the endpoint, and what it tells besides the feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AnalyticsVersion {
    One,
    Two { is_enabled: bool },
}

/// What is counted within an environment and label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Evaluation<T = Box<str>> {
    pub feature: T,
    pub version: AnalyticsVersion,
    /// Only version 2 of the endpoint tells it.
    pub identifier: Option<T>,
}

/// Evaluations with their counts.
pub type Rows = Vec<(Evaluation, u64)>;

/// Whether a document bounds the names of features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    Known,
    /// There is no document yet, so that any name may be right.
    Unknown,
}

/// What the bounds did to counts and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounded {
    /// Counts without a row.
    pub lost: u64,
    /// Counts that moved to a row without their identifier.
    pub identifiers_merged: u64,
    /// Counts that moved to a row without their label.
    pub labels_merged: u64,
    /// Identifiers longer than `limits::IDENTIFIER_CHARS_MAX`.
    pub identifiers_cut: u64,
    /// Label fields longer than `limits::LABEL_BYTES_MAX`.
    pub labels_cut: u64,
}

/// The counts of one environment, label and version of the endpoint: they travel together.
#[derive(Debug)]
pub struct Group {
    pub client_side_key: Box<str>,
    pub labels: Labels,
    pub is_detailed: bool,
    pub rows: Rows,
}

/// The evaluations of all environments.
#[derive(Debug, Default)]
pub struct Evaluations {
    environments: HashMap<Box<str>, EnvironmentCounts>,
    /// Bytes of all rows with an identifier.
    identified_bytes: usize,
    pub bounded: Bounded,
}

/// The first label is the empty one, which also takes what others have no room for.
#[derive(Debug, Default)]
struct EnvironmentCounts {
    labels: Vec<Label>,
    identified_bytes: usize,
    /// Of all labels but the first.
    plain_bytes: usize,
}

#[derive(Debug, Default)]
struct Label {
    labels: Labels,
    rows: HashMap<Evaluation, u64>,
    identified_bytes: usize,
    plain_bytes: usize,
}

/// Counts into one label of one environment.
#[derive(Debug)]
pub struct Tally<'a> {
    environment: &'a mut EnvironmentCounts,
    all_identified_bytes: &'a mut usize,
    bounded: &'a mut Bounded,
    label: usize,
    /// The label had no place of its own.
    is_merged: bool,
    plain_bytes_max: usize,
}

impl<T: AsRef<str>> Evaluation<T> {
    fn borrowed(&self) -> Evaluation<&str> {
        let identifier = self.identifier.as_ref().map(AsRef::as_ref);
        Evaluation { feature: self.feature.as_ref(), version: self.version, identifier }
    }

    /// What its row takes at most, in memory or in the JSON of an upload.
    fn bytes(&self) -> usize {
        let identifier = self.identifier.as_ref().map_or(0, |identifier| json_bytes(identifier.as_ref()));
        limits::COUNT_ROW_BYTES + json_bytes(self.feature.as_ref()) + identifier
    }
}

/// The length of a text in JSON, without its quotes, or a little more (RFC 8259 7).
fn json_bytes(text: &str) -> usize {
    let bytes = |byte| match byte {
        b'"' | b'\\' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.bytes().map(bytes).sum()
}

impl Equivalent<Evaluation> for Evaluation<&str> {
    fn equivalent(&self, key: &Evaluation) -> bool {
        *self == key.borrowed()
    }
}

impl Evaluation<&str> {
    fn owned(&self) -> Evaluation {
        Evaluation {
            feature: self.feature.into(),
            version: self.version,
            identifier: self.identifier.map(Into::into),
        }
    }
}

impl Bounded {
    pub fn merge(&mut self, other: Self) {
        let pairs = [
            (&mut self.lost, other.lost),
            (&mut self.identifiers_merged, other.identifiers_merged),
            (&mut self.labels_merged, other.labels_merged),
            (&mut self.identifiers_cut, other.identifiers_cut),
            (&mut self.labels_cut, other.labels_cut),
        ];
        for (sum, count) in pairs {
            *sum = sum.saturating_add(count);
        }
    }
}

impl Label {
    fn new(labels: Labels) -> Self {
        Self { labels, ..Self::default() }
    }

    fn measure(&mut self) {
        let bytes = |is_identified: bool| {
            let rows = self.rows.keys().filter(|row| row.identifier.is_some() == is_identified);
            rows.map(Evaluation::bytes).sum()
        };
        (self.identified_bytes, self.plain_bytes) = (bytes(true), bytes(false));
    }
}

impl EnvironmentCounts {
    /// Where `labels` are counted. The first ones of an upload have places of their own.
    fn place(&mut self, labels: &Labels) -> Option<usize> {
        if self.labels.is_empty() {
            self.labels.push(Label::default());
        }
        let place = self.labels.iter().position(|label| label.labels == *labels);
        if place.is_none() && self.labels.len() <= limits::COUNT_LABELS_MAX {
            self.labels.push(Label::new(labels.clone()));
            return Some(self.labels.len() - 1);
        }
        place
    }

    /// Makes room for one more row; false if there is none.
    fn reserve(&mut self, place: usize, bytes: usize, maxima: Maxima) -> bool {
        let Some(label) = self.labels.get_mut(place) else { return false };
        let mut own_only = 0;
        let (own, all) = match maxima {
            Maxima::Identified { .. } => (&mut label.identified_bytes, &mut self.identified_bytes),
            Maxima::Plain { .. } if place == 0 => (&mut label.plain_bytes, &mut own_only),
            Maxima::Plain { .. } => (&mut label.plain_bytes, &mut self.plain_bytes),
        };
        let (Maxima::Identified { own: own_max, all: all_max }
        | Maxima::Plain { own: own_max, all: all_max }) = maxima;
        if *own + bytes > own_max || *all + bytes > all_max {
            return false;
        }
        *own += bytes;
        *all += bytes;
        true
    }
}

/// Bounds of a label and of its environment, bytes.
#[derive(Clone, Copy, Debug)]
enum Maxima {
    Identified { own: usize, all: usize },
    Plain { own: usize, all: usize },
}

impl Tally<'_> {
    /// Counts `count` evaluations.
    pub fn add(&mut self, mut evaluation: Evaluation<&str>, count: u64) {
        if let Some(identifier) = evaluation.identifier {
            let cut = cut_characters(identifier, limits::IDENTIFIER_CHARS_MAX);
            self.bounded.identifiers_cut += u64::from(cut.len() < identifier.len());
            evaluation.identifier = Some(cut);
            // Core refuses an upload that has a blank identifier, or one with a NUL, as a whole.
            if cut.trim().is_empty() || cut.contains('\0') {
                evaluation.identifier = None;
                self.bounded.identifiers_merged = self.bounded.identifiers_merged.saturating_add(count);
            }
        }
        if self.is_merged {
            self.bounded.labels_merged = self.bounded.labels_merged.saturating_add(count);
        }
        if self.try_add(self.label, &evaluation, count) {
            return;
        }
        if evaluation.identifier.take().is_some() {
            self.bounded.identifiers_merged = self.bounded.identifiers_merged.saturating_add(count);
            if self.try_add(self.label, &evaluation, count) {
                return;
            }
        }
        if self.label != 0 {
            self.bounded.labels_merged = self.bounded.labels_merged.saturating_add(count);
            if self.try_add(0, &evaluation, count) {
                return;
            }
        }
        self.bounded.lost = self.bounded.lost.saturating_add(count);
    }

    fn try_add(&mut self, place: usize, evaluation: &Evaluation<&str>, count: u64) -> bool {
        let row = self.environment.labels.get_mut(place).and_then(|label| label.rows.get_mut(evaluation));
        if let Some(sum) = row {
            *sum = sum.saturating_add(count);
            return true;
        }
        let bytes = evaluation.bytes();
        let is_identified = evaluation.identifier.is_some();
        let maxima = if is_identified {
            let is_crowded = *self.all_identified_bytes + bytes > limits::COUNT_BYTES_MAX;
            let all = if is_crowded {
                limits::COUNT_ENVIRONMENT_BYTES_MIN
            } else {
                limits::COUNT_ENVIRONMENT_BYTES_MAX
            };
            Maxima::Identified { own: limits::COUNT_LABEL_BYTES_MAX, all }
        } else {
            let all = self.plain_bytes_max;
            Maxima::Plain { own: if place == 0 { all } else { all / 2 }, all }
        };
        if !self.environment.reserve(place, bytes, maxima) {
            return false;
        }
        if is_identified {
            *self.all_identified_bytes += bytes;
        }
        if let Some(label) = self.environment.labels.get_mut(place) {
            label.rows.insert(evaluation.owned(), count);
        }
        true
    }
}

impl Evaluations {
    pub fn is_empty(&self) -> bool {
        self.environments.is_empty() && self.bounded == Bounded::default()
    }

    /// All counts.
    pub fn sum(&self) -> u64 {
        let labels = self.environments.values().flat_map(|environment| &environment.labels);
        labels.flat_map(|label| label.rows.values()).fold(0, |sum: u64, count| sum.saturating_add(*count))
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        let labels = self.environments.values().flat_map(|environment| &environment.labels);
        labels.map(|label| label.rows.len()).sum()
    }

    /// Counts into `labels` of an environment.
    pub fn tally(&mut self, client_side_key: &str, labels: &Labels, names: Names) -> Tally<'_> {
        let environment = self.environments.entry(client_side_key.into()).or_default();
        let place = environment.place(labels);
        let plain_bytes_max = match names {
            Names::Known => limits::COUNT_PLAIN_BYTES_MAX,
            Names::Unknown => limits::COUNT_UNKNOWN_BYTES_MAX,
        };
        Tally {
            environment,
            all_identified_bytes: &mut self.identified_bytes,
            bounded: &mut self.bounded,
            label: place.unwrap_or_default(),
            is_merged: place.is_none(),
            plain_bytes_max,
        }
    }

    /// Adds what another one counted.
    pub fn merge(&mut self, other: Self) {
        for (client_side_key, environment) in other.environments {
            for label in environment.labels {
                let mut tally = self.tally(&client_side_key, &label.labels, Names::Known);
                for (evaluation, count) in &label.rows {
                    tally.add(evaluation.borrowed(), *count);
                }
            }
        }
        self.bounded.merge(other.bounded);
    }

    /// Takes back what [`take`](Self::take) gave.
    pub fn put_back(&mut self, group: &Group) {
        if group.rows.is_empty() {
            return;
        }
        let mut tally = self.tally(&group.client_side_key, &group.labels, Names::Known);
        for (evaluation, count) in &group.rows {
            tally.add(evaluation.borrowed(), *count);
        }
    }

    /// Gives up what [`take`](Self::take) gave, and counts it as lost.
    pub fn lose(&mut self, group: &Group) {
        for (_, count) in &group.rows {
            self.bounded.lost = self.bounded.lost.saturating_add(*count);
        }
    }

    /// Forgets the environments that are not wanted.
    pub fn retain(&mut self, mut is_wanted: impl FnMut(&str) -> bool) {
        self.environments.retain(|client_side_key, _| is_wanted(client_side_key));
        self.measure();
    }

    /// Takes the groups that `is_free` names by environment, labels and whether they are of version 2.
    pub fn take(&mut self, is_free: impl Fn(&str, &Labels, bool) -> bool) -> Vec<Group> {
        let mut groups = Vec::new();
        for (client_side_key, environment) in &mut self.environments {
            for label in &mut environment.labels {
                for is_detailed in [false, true] {
                    if !is_free(client_side_key, &label.labels, is_detailed) {
                        continue;
                    }
                    let is_in = |row: &Evaluation| (row.version != AnalyticsVersion::One) == is_detailed;
                    let mut rows: Rows = label.rows.extract_if(|row, _| is_in(row)).collect();
                    if rows.is_empty() {
                        continue;
                    }
                    rows.sort_unstable();
                    let (client_side_key, labels) = (client_side_key.clone(), label.labels.clone());
                    groups.push(Group { client_side_key, labels, is_detailed, rows });
                }
            }
        }
        self.measure();
        groups
    }

    /// Forgets what is empty and adds up the bytes of the rest.
    fn measure(&mut self) {
        self.identified_bytes = 0;
        self.environments.retain(|_, environment| {
            environment.labels.iter_mut().for_each(Label::measure);
            let default = Labels::default();
            environment.labels.retain(|label| label.labels == default || !label.rows.is_empty());
            environment.identified_bytes =
                environment.labels.iter().map(|label| label.identified_bytes).sum();
            environment.plain_bytes = environment.labels.iter().skip(1).map(|label| label.plain_bytes).sum();
            self.identified_bytes += environment.identified_bytes;
            environment.labels.iter().any(|label| !label.rows.is_empty())
        });
    }
}

/// The first `count` characters.
fn cut_characters(text: &str, count: usize) -> &str {
    if text.len() <= count {
        return text;
    }
    text.char_indices().nth(count).map_or(text, |(end, _)| &text[..end])
}

/// As many whole characters as fit in `bytes_max` bytes.
pub fn cut_bytes(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests;
