//! Evaluations that SDKs report, by environment and label, bounded in bytes.
//!
//! A client-side key is public, so anyone can report. Beyond a limit a count is added to a coarser row: first
//! without its identifier, then without its label. It is lost if that row does not fit either, which can
//! happen only while there is no document that bounds the names of features. Rows with identifiers, rows
//! without, and each label have separate limits, so one client does not use up the capacity of others.
use hashbrown::{Equivalent, HashMap};
use serde::{Deserialize, Serialize};

use crate::limits;

/// The SDK's header fields by which upstream groups counts. An empty string is an absent field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Labels {
    pub application_name: Box<str>,
    pub application_version: Box<str>,
    pub user_agent: Box<str>,
    pub sdk_user_agent: Box<str>,
}

/// The version of the endpoint, and the data that it has besides the feature.
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
    /// Only in version 2 of the endpoint.
    pub identifier: Option<T>,
}

/// Evaluations with their counts.
pub type Rows = Vec<(Evaluation, u64)>;

/// Whether a document bounds the names of features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    Known,
    /// There is no document yet: any name may be valid.
    Unknown,
}

/// The effects of the limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounded {
    /// Lost counts.
    pub lost: u64,
    /// Counts added to a row without their identifier.
    pub identifiers_merged: u64,
    /// Counts added to a row without their label.
    pub labels_merged: u64,
    /// Truncated identifiers (`limits::IDENTIFIER_CHARS_MAX`).
    pub identifiers_cut: u64,
    /// Truncated label fields (`limits::LABEL_BYTES_MAX`).
    pub labels_cut: u64,
}

/// The counts of one environment, label and version of the endpoint: they are uploaded together.
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

/// The first label is the empty one; it also has the counts that exceed the limits of other labels.
#[derive(Debug, Default)]
struct EnvironmentCounts {
    labels: Vec<Label>,
    identified_bytes: usize,
    /// Bytes of rows without an identifier, of all labels except the first.
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
    /// The label has no rows: its counts are added to the first label.
    is_merged: bool,
    plain_bytes_max: usize,
}

impl<T: AsRef<str>> Evaluation<T> {
    fn borrowed(&self) -> Evaluation<&str> {
        let identifier = self.identifier.as_ref().map(AsRef::as_ref);
        Evaluation { feature: self.feature.as_ref(), version: self.version, identifier }
    }

    /// The maximum size of its row, in memory or in the JSON of an upload.
    fn bytes(&self) -> usize {
        let identifier = self.identifier.as_ref().map_or(0, |identifier| json_bytes(identifier.as_ref()));
        limits::COUNT_ROW_BYTES + json_bytes(self.feature.as_ref()) + identifier
    }
}

/// An upper bound of the length of a text in JSON, without its quotes (RFC 8259 7).
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
    /// The index of `labels`, which are added if there are fewer than `COUNT_LABELS_MAX`.
    fn label_index(&mut self, labels: &Labels) -> Option<usize> {
        if self.labels.is_empty() {
            self.labels.push(Label::default());
        }
        let index = self.labels.iter().position(|label| label.labels == *labels);
        if index.is_none() && self.labels.len() <= limits::COUNT_LABELS_MAX {
            self.labels.push(Label::new(labels.clone()));
            return Some(self.labels.len() - 1);
        }
        index
    }

    /// Reserves bytes for one more row. False if a limit would be exceeded.
    fn reserve(&mut self, index: usize, bytes: usize, byte_limits: ByteLimits) -> bool {
        let Some(label) = self.labels.get_mut(index) else { return false };
        let mut own_only = 0;
        let (own, all) = match byte_limits {
            ByteLimits::Identified { .. } => (&mut label.identified_bytes, &mut self.identified_bytes),
            ByteLimits::Plain { .. } if index == 0 => (&mut label.plain_bytes, &mut own_only),
            ByteLimits::Plain { .. } => (&mut label.plain_bytes, &mut self.plain_bytes),
        };
        let (ByteLimits::Identified { own: own_max, all: all_max }
        | ByteLimits::Plain { own: own_max, all: all_max }) = byte_limits;
        if *own + bytes > own_max || *all + bytes > all_max {
            return false;
        }
        *own += bytes;
        *all += bytes;
        true
    }
}

/// Limits of a label (`own`) and of its environment (`all`), in bytes.
#[derive(Clone, Copy, Debug)]
enum ByteLimits {
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
            // Core rejects the whole upload if an identifier is blank or contains a NUL.
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

    fn try_add(&mut self, index: usize, evaluation: &Evaluation<&str>, count: u64) -> bool {
        let row = self.environment.labels.get_mut(index).and_then(|label| label.rows.get_mut(evaluation));
        if let Some(sum) = row {
            *sum = sum.saturating_add(count);
            return true;
        }
        let bytes = evaluation.bytes();
        let is_identified = evaluation.identifier.is_some();
        let byte_limits = if is_identified {
            let is_crowded = *self.all_identified_bytes + bytes > limits::COUNT_BYTES_MAX;
            let all = if is_crowded {
                limits::COUNT_ENVIRONMENT_BYTES_MIN
            } else {
                limits::COUNT_ENVIRONMENT_BYTES_MAX
            };
            ByteLimits::Identified { own: limits::COUNT_LABEL_BYTES_MAX, all }
        } else {
            let all = self.plain_bytes_max;
            ByteLimits::Plain { own: if index == 0 { all } else { all / 2 }, all }
        };
        if !self.environment.reserve(index, bytes, byte_limits) {
            return false;
        }
        if is_identified {
            *self.all_identified_bytes += bytes;
        }
        if let Some(label) = self.environment.labels.get_mut(index) {
            label.rows.insert(evaluation.owned(), count);
        }
        true
    }
}

impl Evaluations {
    pub fn is_empty(&self) -> bool {
        self.environments.is_empty() && self.bounded == Bounded::default()
    }

    /// The sum of all counts.
    pub fn sum(&self) -> u64 {
        let labels = self.environments.values().flat_map(|environment| &environment.labels);
        labels.flat_map(|label| label.rows.values()).fold(0, |sum: u64, count| sum.saturating_add(*count))
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        let labels = self.environments.values().flat_map(|environment| &environment.labels);
        labels.map(|label| label.rows.len()).sum()
    }

    /// A tally for `labels` of an environment.
    pub fn tally(&mut self, client_side_key: &str, labels: &Labels, names: Names) -> Tally<'_> {
        let environment = self.environments.entry(client_side_key.into()).or_default();
        let index = environment.label_index(labels);
        let plain_bytes_max = match names {
            Names::Known => limits::COUNT_PLAIN_BYTES_MAX,
            Names::Unknown => limits::COUNT_UNKNOWN_BYTES_MAX,
        };
        Tally {
            environment,
            all_identified_bytes: &mut self.identified_bytes,
            bounded: &mut self.bounded,
            label: index.unwrap_or_default(),
            is_merged: index.is_none(),
            plain_bytes_max,
        }
    }

    /// Adds the counts of `other`.
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

    /// Adds a group that [`take`](Self::take) has returned.
    pub fn put_back(&mut self, group: &Group) {
        if group.rows.is_empty() {
            return;
        }
        let mut tally = self.tally(&group.client_side_key, &group.labels, Names::Known);
        for (evaluation, count) in &group.rows {
            tally.add(evaluation.borrowed(), *count);
        }
    }

    /// Counts a group that [`take`](Self::take) has returned as lost.
    pub fn lose(&mut self, group: &Group) {
        for (_, count) in &group.rows {
            self.bounded.lost = self.bounded.lost.saturating_add(*count);
        }
    }

    /// Keeps only the counts of environments for which `is_kept` returns true.
    pub fn retain(&mut self, mut is_kept: impl FnMut(&str) -> bool) {
        self.environments.retain(|client_side_key, _| is_kept(client_side_key));
        self.measure();
    }

    /// Removes and returns the groups for which `is_free` returns true. Its arguments are the client-side
    /// key, the labels, and whether the group is of version 2.
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

    /// Removes empty labels and environments, and recomputes the sizes.
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

/// The longest prefix of whole characters of at most `bytes_max` bytes.
pub fn cut_bytes(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests;
