//! Kept traits: what callers ask of them, and what must hold.
//!
//! The model has no store: of each environment, identity and key it has the values that may be kept, one
//! after each write. A reactor has its own writes immediately, those of others within [`LAG`]; a kill may
//! lose those of the last moments.
use std::collections::BTreeMap;
use std::time::Duration;

use edge_proxy::config::{Config, TraitsStore};
use serde_json::{Value, json};

use crate::caller::Answer;
use crate::model::{LAG, Moment};

/// What a kill may lose of the file of traits, and of the journal of what is forwarded (docs/traits.md).
pub const STORE_LOSS: Duration = Duration::from_secs(1);
pub const JOURNAL_LOSS: Duration = Duration::from_secs(2);

/// A request about kept traits.
#[derive(Clone, Debug, PartialEq)]
pub enum TraitAsk {
    /// `POST identities/`; null deletes.
    Evaluate { identifier: String, sent: Vec<(String, Value)>, is_transient: bool },
    /// `GET identities/`.
    Get { identifier: String },
    /// `POST traits/`.
    Set { identifier: String, key: String, value: Value },
    /// `PUT traits/bulk/`; null deletes.
    Bulk { items: Vec<(String, String, Value)> },
    /// `POST traits/increment-value/` of the key `n`.
    Add { identifier: String, amount: i64 },
    /// `DELETE /proxy/traits/`, with a server-side key.
    Erase { identifier: String },
    /// `GET /proxy/traits/`, with a server-side key.
    Export { identifier: String },
}

impl TraitAsk {
    /// Whether only a server-side key may do it.
    pub fn is_of_servers(&self) -> bool {
        matches!(self, Self::Erase { .. } | Self::Export { .. })
    }

    /// Whether it counts as usage, which is of flags, identities and documents only (docs/compatibility.md 4.3).
    pub fn is_of_identities(&self) -> bool {
        matches!(self, Self::Evaluate { .. } | Self::Get { .. })
    }

    /// Method, target and body.
    pub fn request(&self) -> (&'static str, String, String) {
        let item = |identifier: &str, key: &str, value: &Value| json!({"identity": {"identifier": identifier}, "trait_key": key, "trait_value": value});
        match self {
            Self::Evaluate { identifier, sent, is_transient } => {
                let traits = sent.iter().map(|(key, value)| json!({"trait_key": key, "trait_value": value}));
                let traits: Vec<Value> = traits.collect();
                let body = json!({"identifier": identifier, "traits": traits, "transient": is_transient});
                ("POST", "/api/v1/identities/".into(), body.to_string())
            }
            Self::Get { identifier } => {
                ("GET", format!("/api/v1/identities/?identifier={identifier}"), String::new())
            }
            Self::Set { identifier, key, value } => {
                ("POST", "/api/v1/traits/".into(), item(identifier, key, value).to_string())
            }
            Self::Bulk { items } => {
                let items = items.iter().map(|(identifier, key, value)| item(identifier, key, value));
                ("PUT", "/api/v1/traits/bulk/".into(), Value::from(items.collect::<Vec<_>>()).to_string())
            }
            Self::Add { identifier, amount } => {
                let body = json!({"identifier": identifier, "trait_key": "n", "increment_by": amount});
                ("POST", "/api/v1/traits/increment-value/".into(), body.to_string())
            }
            Self::Erase { identifier } => {
                ("DELETE", format!("/proxy/traits/?identifier={identifier}"), String::new())
            }
            Self::Export { identifier } => {
                ("GET", format!("/proxy/traits/?identifier={identifier}"), String::new())
            }
        }
    }
}

/// The values that a key may have after a write; null: none.
#[derive(Clone, Debug)]
struct Written {
    at: Duration,
    /// `None`: an earlier process.
    reactor: Option<usize>,
    values: Vec<Value>,
}

/// A key of an identity.
#[derive(Debug)]
struct KeptTrait {
    /// In the order in which they were handled; never empty.
    writes: Vec<Written>,
    /// Of these, those that are to be forwarded.
    forwarded: Vec<Written>,
    /// What an earlier process wrote to the journal and has replaced since: a loss of power may bring it back.
    replaced: Vec<Value>,
}

impl Default for KeptTrait {
    fn default() -> Self {
        let first = Written { at: Duration::ZERO, reactor: None, values: vec![Value::Null] };
        Self { writes: vec![first.clone()], forwarded: vec![first], replaced: Vec::new() }
    }
}

/// All values from the last write that this is true of.
fn values_from(writes: &[Written], is_settled: impl Fn(&Written) -> bool) -> Vec<Value> {
    let start = writes.iter().rposition(is_settled).unwrap_or(0);
    let mut values: Vec<Value> = Vec::new();
    for value in writes[start..].iter().flat_map(|write| &write.values) {
        if !values.contains(value) {
            values.push(value.clone());
        }
    }
    values
}

impl KeptTrait {
    /// What a reactor may have.
    fn visible(&self, reactor: usize, now: Duration) -> Vec<Value> {
        values_from(&self.writes, |write| {
            write.at + LAG <= now || write.reactor.is_none() || write.reactor == Some(reactor)
        })
    }

    /// Whether all reactors have the same.
    fn is_settled(&self, reactor: usize, now: Duration) -> bool {
        self.writes
            .iter()
            .all(|write| write.at + LAG <= now || write.reactor.is_none() || write.reactor == Some(reactor))
    }

    fn write(&mut self, moment: Moment, values: Vec<Value>) {
        let write = Written { at: moment.now, reactor: Some(moment.reactor), values };
        // Nothing before a settled write is visible any more, unless a kill may lose the later ones.
        if self.writes.len() > 64 {
            let settled = self.writes.iter().rposition(|write| write.at + LAG * 4 <= moment.now);
            self.writes.drain(..settled.unwrap_or(0));
        }
        self.writes.push(write);
    }

    fn forward(&mut self, moment: Moment, values: Vec<Value>) {
        if values.len() == 1 && self.forwarded.len() > 64 {
            let settled = self.forwarded.iter().rposition(|write| write.at + LAG * 4 <= moment.now);
            self.forwarded.drain(..settled.unwrap_or(0));
        }
        self.forwarded.push(Written { at: moment.now, reactor: None, values });
    }

    /// The value is set, or was the same before.
    fn set(&mut self, moment: Moment, value: &Value) {
        let visible = self.visible(moment.reactor, moment.now);
        match visible.contains(value) {
            // The same as before: nothing is written, nor forwarded.
            true if visible.len() == 1 => self.forward_perhaps(moment, value),
            true => {
                self.write(moment, visible);
                self.forward_perhaps(moment, value);
            }
            false => self.put(moment, value),
        }
    }

    fn put(&mut self, moment: Moment, value: &Value) {
        self.write(moment, vec![value.clone()]);
        self.forward(moment, vec![value.clone()]);
    }

    /// What waits may be lost: upstream keeps what it has, or what was replaced is sent.
    fn perhaps_not_sent(&mut self, sent: &Value) {
        let mut values = values_from(&self.forwarded, |_| false);
        self.replaced.push(sent.clone());
        for value in &self.replaced {
            if !values.contains(value) {
                values.push(value.clone());
            }
        }
        self.forwarded = vec![Written { at: Duration::ZERO, reactor: None, values }];
    }

    fn forward_perhaps(&mut self, moment: Moment, value: &Value) {
        let mut values = self.forwarded.last().map(|last| last.values.clone()).unwrap_or_default();
        if !values.contains(value) {
            values.push(value.clone());
        }
        self.forward(moment, values);
    }
}

fn sum(value: &Value, amount: i64) -> Value {
    Value::from(value.as_i64().unwrap_or(0) + amount)
}

type Name = (String, String);

/// What is kept, and what is forwarded.
#[derive(Debug)]
pub struct TraitModel {
    store: TraitsStore,
    pub forwards: bool,
    has_journal: bool,
    /// By environment and identifier, then by key.
    kept: BTreeMap<Name, BTreeMap<String, KeptTrait>>,
    /// What has arrived upstream: by environment, identifier and key.
    core: BTreeMap<(String, String, String), Value>,
    erased: BTreeMap<Name, Duration>,
    /// When each text was written.
    texts: BTreeMap<String, Duration>,
}

impl TraitModel {
    pub fn new() -> Self {
        Self {
            store: TraitsStore::None,
            forwards: false,
            has_journal: false,
            kept: BTreeMap::new(),
            core: BTreeMap::new(),
            erased: BTreeMap::new(),
            texts: BTreeMap::new(),
        }
    }

    pub fn has_store(&self) -> bool {
        self.store != TraitsStore::None
    }

    /// A process starts. `is_well`: its file can be read.
    pub fn begin(&mut self, config: &Config, is_well: bool) {
        self.store = config.traits.store;
        self.forwards = config.traits.forward;
        self.has_journal = config.cache_dir.is_some();
        if !is_well {
            // What is kept is merged later.
            for kept in self.kept.values_mut().flat_map(BTreeMap::values_mut) {
                let last = kept.writes.last_mut().expect("never empty");
                if !last.values.contains(&Value::Null) {
                    last.values.push(Value::Null);
                }
            }
        }
    }

    /// The process has ended. What was written up to these times survives; `None`: everything. `was_synced`: it
    /// had written on the disk itself what the one before had left.
    pub fn ended(
        &mut self,
        stored_until: Option<Duration>,
        journaled_until: Option<Duration>,
        was_synced: bool,
    ) {
        let is_kept =
            |until: Option<Duration>| move |write: &Written| until.is_none_or(|until| write.at <= until);
        for kept in self.kept.values_mut().flat_map(BTreeMap::values_mut) {
            let values = match self.store {
                TraitsStore::Disk => values_from(&kept.writes, is_kept(stored_until)),
                _ => vec![Value::Null],
            };
            kept.writes = vec![Written { at: Duration::ZERO, reactor: None, values }];
            if self.has_journal {
                if was_synced {
                    kept.replaced.clear();
                }
                kept.replaced.extend(values_from(&kept.forwarded, |_| false));
                let values = values_from(&kept.forwarded, is_kept(journaled_until));
                kept.forwarded = vec![Written { at: Duration::ZERO, reactor: None, values }];
            }
        }
        if !self.has_journal {
            self.forget_waiting();
        }
        if let Some(until) = journaled_until {
            self.erased.retain(|_, at| *at <= until);
        }
    }

    /// The power was lost: the journal is not synced.
    pub fn lost_power(&mut self) {
        self.forget_waiting();
        self.erased.clear();
    }

    /// What waits to be forwarded may be lost: what upstream has may stay.
    fn forget_waiting(&mut self) {
        for ((environment, identifier), kept) in &mut self.kept {
            for (key, kept) in kept {
                let name = (environment.clone(), identifier.clone(), key.clone());
                kept.perhaps_not_sent(self.core.get(&name).unwrap_or(&Value::Null));
            }
        }
    }

    fn entry(&mut self, environment: &str, identifier: &str, key: &str) -> &mut KeptTrait {
        let kept = self.kept.entry((environment.to_owned(), identifier.to_owned())).or_default();
        kept.entry(key.to_owned()).or_default()
    }

    /// The answer to a request, which was handled now. Returns what is wrong.
    pub fn check(
        &mut self,
        environment: &str,
        ask: &TraitAsk,
        answer: &Answer,
        moment: Moment,
    ) -> Result<(), String> {
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        match ask {
            TraitAsk::Evaluate { identifier, sent, is_transient } => {
                let traits = read_traits(&body["traits"]);
                for (key, value) in sent {
                    if traits.get(key).unwrap_or(&Value::Null) != value {
                        return Err(format!("{key} of {identifier} was sent as {value}: {body}"));
                    }
                }
                if !is_transient {
                    self.evaluated(environment, identifier, sent, moment);
                }
                let rest = |key: &str| sent.iter().all(|(other, _)| other != key);
                self.check_read(environment, identifier, &traits, moment, rest)
            }
            TraitAsk::Get { identifier } => {
                self.check_read(environment, identifier, &read_traits(&body["traits"]), moment, |_| true)
            }
            TraitAsk::Export { identifier } => {
                let traits =
                    if answer.status == 404 { BTreeMap::new() } else { read_traits(&body["traits"]) };
                self.check_read(environment, identifier, &traits, moment, |_| true)
            }
            TraitAsk::Set { identifier, key, value } => {
                self.texts(value, moment.now);
                self.entry(environment, identifier, key).put(moment, value);
                Ok(())
            }
            TraitAsk::Bulk { items } => {
                let (deleted, set): (Vec<_>, Vec<_>) = items.iter().partition(|(.., value)| value.is_null());
                for (identifier, key, value) in deleted.into_iter().chain(set) {
                    self.texts(value, moment.now);
                    let entry = self.entry(environment, identifier, key);
                    if value.is_null() { entry.set(moment, value) } else { entry.put(moment, value) }
                }
                Ok(())
            }
            TraitAsk::Add { identifier, amount } => {
                let entry = self.entry(environment, identifier, "n");
                let visible = entry.visible(moment.reactor, moment.now);
                let is_settled = entry.is_settled(moment.reactor, moment.now);
                let sums: Vec<Value> = visible.iter().map(|value| sum(value, *amount)).collect();
                let all = entry.writes.last().map(|last| last.values.clone()).unwrap_or_default();
                let all: Vec<Value> = all.iter().map(|value| sum(value, *amount)).collect();
                entry.write(moment, all.clone());
                entry.forward(moment, all);
                match is_settled && !sums.contains(&body["trait_value"]) {
                    true => Err(format!("{identifier}: n is {body} after + {amount}, not of {sums:?}")),
                    false => Ok(()),
                }
            }
            TraitAsk::Erase { identifier } => {
                let name = (environment.to_owned(), identifier.clone());
                self.erased.insert(name.clone(), moment.now);
                for (key, kept) in self.kept.entry(name.clone()).or_default() {
                    kept.write(moment, vec![Value::Null]);
                    let name = (name.0.clone(), name.1.clone(), key.clone());
                    kept.perhaps_not_sent(self.core.get(&name).unwrap_or(&Value::Null));
                }
                Ok(())
            }
        }
    }

    /// An identity was evaluated with these traits, which are kept.
    pub fn evaluated(
        &mut self,
        environment: &str,
        identifier: &str,
        sent: &[(String, Value)],
        moment: Moment,
    ) {
        for (key, value) in sent {
            self.texts(value, moment.now);
            self.entry(environment, identifier, key).set(moment, value);
        }
    }

    fn texts(&mut self, value: &Value, now: Duration) {
        if let Some(text) = value.as_str() {
            self.texts.insert(text.to_owned(), now);
        }
    }

    /// A request without an answer: it was handled, or it was not.
    pub fn unanswered(&mut self, environment: &str, ask: &TraitAsk, moment: Moment) {
        let mut perhaps = |identifier: &str, key: &str, change: &dyn Fn(&Value) -> Value| {
            let entry = self.entry(environment, identifier, key);
            for writes in [&mut entry.writes, &mut entry.forwarded] {
                let before = writes.last().map(|last| last.values.clone()).unwrap_or_default();
                let mut values: Vec<Value> = before.iter().map(change).collect();
                values.extend(before);
                writes.push(Written { at: moment.now, reactor: Some(moment.reactor), values });
            }
        };
        match ask {
            TraitAsk::Evaluate { identifier, sent, is_transient: false } => {
                sent.iter().for_each(|(key, value)| perhaps(identifier, key, &|_| value.clone()));
            }
            TraitAsk::Set { identifier, key, value } => perhaps(identifier, key, &|_| value.clone()),
            TraitAsk::Bulk { items } => {
                items.iter().for_each(|(identifier, key, value)| {
                    perhaps(identifier, key, &|_| value.clone());
                });
            }
            TraitAsk::Add { identifier, amount } => perhaps(identifier, "n", &|value| sum(value, *amount)),
            TraitAsk::Erase { identifier } => {
                for key in ["age", "plan", "n"] {
                    perhaps(identifier, key, &|_| Value::Null);
                }
            }
            TraitAsk::Evaluate { .. } | TraitAsk::Get { .. } | TraitAsk::Export { .. } => {}
        }
    }

    /// The traits of an answer, except those that `is_read` leaves out, are those that are kept.
    fn check_read(
        &self,
        environment: &str,
        identifier: &str,
        traits: &BTreeMap<String, Value>,
        moment: Moment,
        is_read: impl Fn(&str) -> bool,
    ) -> Result<(), String> {
        let Some(kept) = self.kept.get(&(environment.to_owned(), identifier.to_owned())) else {
            return match traits.keys().find(|key| is_read(key)) {
                Some(key) => Err(format!("{identifier} has {key}, which was never written")),
                None => Ok(()),
            };
        };
        for (key, entry) in kept.iter().filter(|(key, _)| is_read(key)) {
            let found = traits.get(key).unwrap_or(&Value::Null);
            let may_be = entry.visible(moment.reactor, moment.now);
            let is_checked = key != "n" || entry.is_settled(moment.reactor, moment.now);
            if is_checked && !may_be.contains(found) {
                let (reactor, at) = (moment.reactor, moment.now.as_secs_f64());
                return Err(format!(
                    "{key} of {identifier} in {environment} is {found} on reactor {reactor} at {at:.3}, not of {may_be:?}"
                ));
            }
        }
        Ok(())
    }

    /// A trait arrives at upstream.
    pub fn arrived(
        &mut self,
        (environment, identifier, key, value): (String, String, String, Value),
        now: Duration,
    ) -> Result<(), String> {
        let name = (environment.clone(), identifier.clone(), key.clone());
        self.core.insert(name, value.clone());
        let Some(erased) = self.erased.get(&(environment.clone(), identifier.clone())) else { return Ok(()) };
        let written = value.as_str().and_then(|text| self.texts.get(text));
        match written.is_some_and(|written| written < erased) && *erased + LAG < now {
            true => Err(format!("{key} of {identifier} in {environment} was erased, and {value} is sent")),
            false => Ok(()),
        }
    }

    /// At the end of a quiet time: upstream has the last values, except those written after `settled`.
    pub fn check_end(
        &self,
        settled: Duration,
        sent: &BTreeMap<(String, String, String), Value>,
        is_known: impl Fn(&str) -> bool,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        if !self.forwards || !self.has_store() {
            return wrong;
        }
        for ((environment, identifier), kept) in
            self.kept.iter().filter(|((environment, _), _)| is_known(environment))
        {
            for (key, entry) in kept {
                let name = (environment.clone(), identifier.clone(), key.clone());
                let found = sent.get(&name).unwrap_or(&Value::Null);
                let may_be = values_from(&entry.forwarded, |write| write.at <= settled);
                if !may_be.contains(found) {
                    wrong.push(format!(
                        "upstream has {found} as {key} of {identifier} in {environment}, not {may_be:?}"
                    ));
                }
            }
        }
        wrong
    }
}

/// The traits of an answer by key.
fn read_traits(list: &Value) -> BTreeMap<String, Value> {
    let items = list.as_array().into_iter().flatten();
    let item = |item: &Value| {
        (item["trait_key"].as_str().unwrap_or_default().to_owned(), item["trait_value"].clone())
    };
    items.map(item).collect()
}

/// The age of an answer, which decides its segment.
pub fn age_of(body: &Value) -> u64 {
    read_traits(&body["traits"]).get("age").and_then(Value::as_u64).unwrap_or(0)
}
