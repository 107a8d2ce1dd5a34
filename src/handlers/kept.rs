//! `identities/`, `bulk-identities/`, OFREP and explanations with kept traits: what a request and the store
//! give together, as Flagsmith core has it (docs/traits.md).
//!
//! A lookup in the reactor's view, a merge, the evaluation, and at last the write, which the reactor hands to
//! the store thread. If the request is refused, nothing is written.
use std::borrow::Cow;
use std::cell::RefCell;
use std::time::SystemTime;

use crate::engine::evaluate::{Identity, Trait, TraitValue};
use crate::engine::program::Role;
use crate::handlers::errors::ApiError;
use crate::handlers::exchange::Exchange;
use crate::handlers::identities;
use crate::handlers::identities::Selection;
use crate::identity::sent::{BodyTrait, PlainIdentity, SentBody, SentIdentity};
use crate::identity::{IdentityReader, ParsedIdentity, query, sent, transient};
use crate::limits::TRAIT_IDENTITY_BYTES_MAX;
use crate::snapshot::Environment;
use crate::trait_table::{BodyChanges, Changes, KeyIndex, TraitHead, TraitRecord, TraitView, stored_value};

/// What a small trait takes of a record, bytes; most take more.
const TYPICAL_TRAIT_BYTES: usize = 16;

/// An identity with the traits that count for this answer.
pub struct Merged<'m> {
    pub identifier: Cow<'m, str>,
    pub traits: Vec<Trait<'m>>,
    pub write: Write,
}

/// What the request leaves in the store.
pub enum Write {
    Nothing,
    /// The identity was requested.
    Touch,
    /// These changes; without any, only the identity is made.
    Set(Box<[u8]>),
}

/// The environment and the role of a request.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    pub environment: &'a Environment,
    pub role: Role,
    /// The client-side key, under which traits are kept.
    pub key: &'a str,
    /// Unix seconds.
    pub now: u32,
}

impl<'a> Scope<'a> {
    pub fn new(exchange: &Exchange<'a>, environment: &'a Environment, role: Role) -> Self {
        let slot = exchange.outcome.slot.and_then(|slot| exchange.snapshot.slots.get(slot));
        let since_epoch = exchange.now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = u32::try_from(since_epoch.as_secs()).unwrap_or(u32::MAX);
        Self { environment, role, key: slot.map_or("", |slot| &slot.client_side_key), now }
    }

    /// Whether traits that are sent with this key do not count.
    pub fn drops_traits(&self) -> bool {
        identities::drops_traits(self.environment, self.role)
    }
}

/// `POST identities/`.
pub fn post<'a>(
    exchange: &mut Exchange<'a>,
    body: &[u8],
    reader: &mut IdentityReader,
    view: &RefCell<TraitView>,
) -> Result<(), ApiError<'a>> {
    let content_type = exchange.fields.content_type;
    reader.read_sent(body, content_type, |sent| {
        let sent = sent?;
        let (document, role) = exchange.open()?;
        let environment = &*document.environment;
        let scope = Scope::new(exchange, environment, role);
        if let SentBody::Plain(plain) = &sent
            && let Some(result) = post_plain(exchange, plain, scope, view)
        {
            return result;
        }
        let (sent, kept) = (sent.into_full(), view.borrow());
        let merged = merge(&sent, scope, &kept);
        check_size(&merged, scope, &kept)?;
        identities::respond_merged(exchange, environment, role, &merged.parsed(), Selection::default());
        let Merged { identifier, write, .. } = merged;
        let identifier = identifier.into_owned();
        drop(kept);
        commit(view, scope, &identifier, write);
        Ok(())
    })
}

/// `POST identities/` of a body without deletions. `None`: it must be merged as any other.
fn post_plain<'a>(
    exchange: &mut Exchange<'a>,
    plain: &PlainIdentity<'_>,
    scope: Scope<'a>,
    view: &RefCell<TraitView>,
) -> Option<Result<(), ApiError<'a>>> {
    if scope.drops_traits() || !scope.environment.persist_trait_data() {
        return None;
    }
    let (identifier, kept) = (plain.identifier, view.borrow());
    let before = kept.find(scope.key, identifier, scope.now);
    let head = TraitHead { is_promoted: before.is_some(), is_erased: false, seen: scope.now };
    let (all, merged) = match &before {
        None => (BodyChanges::of_new(identifier, plain.traits, head)?, None),
        Some(record) => match BodyChanges::of_same_keys(record, plain.traits, head) {
            Some(all) => (all, None),
            None => {
                let (all, merged) = BodyChanges::of_other_keys(record, plain.traits, head)?;
                (all, Some(merged))
            }
        },
    };
    if all.record().is_some_and(|record| record.len() > TRAIT_IDENTITY_BYTES_MAX) {
        return Some(Err(ApiError::TraitsTooLarge));
    }
    let needs_touch = before.is_some_and(|record| kept.needs_touch(&record, scope.now));
    // With the keys of the record in their order the traits are echoed as they were sent.
    let (traits, echo) = merged.as_deref().map_or((plain.traits, plain.echo), |merged| (merged, None));
    let parsed = ParsedIdentity { identity: Identity { identifier, traits }, echo, is_anonymous: false };
    identities::respond_merged(exchange, scope.environment, scope.role, &parsed, Selection::default());
    drop(merged);
    drop(kept);
    match all {
        BodyChanges::None if needs_touch => view.borrow_mut().touch(scope.key, identifier),
        BodyChanges::None => {}
        all => view.borrow_mut().set_all(scope.key, identifier, all),
    }
    Some(Ok(()))
}

/// `GET identities/`.
pub fn get<'a>(
    exchange: &mut Exchange<'a>,
    query: &[u8],
    view: &RefCell<TraitView>,
) -> Result<(), ApiError<'a>> {
    let identifier = query::parameter(query, "identifier");
    // As in Flagsmith core, any text means yes, `false` and `0` included.
    let is_transient = query::parameter(query, "transient").is_some_and(|value| !value.is_empty());
    sent::query_identifier(identifier.as_deref(), is_transient)?;
    let identifier = identifier.unwrap_or_default();
    let feature = query::parameter(query, "feature").filter(|feature| !feature.is_empty());
    let (document, role) = exchange.open()?;
    let environment = &*document.environment;
    let scope = Scope::new(exchange, environment, role);
    let kept = view.borrow();
    let record = kept.find(scope.key, &identifier, scope.now).filter(|_| !is_transient);
    let traits = record.map(stored).unwrap_or_default();
    let identity = Identity { identifier: &identifier, traits: &traits };
    let parsed = ParsedIdentity { identity, echo: None, is_anonymous: false };
    let selection = Selection { feature: feature.as_deref(), is_transient, ..Selection::default() };
    identities::respond_merged(exchange, environment, role, &parsed, selection);
    let write = match record {
        _ if is_transient => Write::Nothing,
        Some(record) if kept.needs_touch(&record, scope.now) => Write::Touch,
        Some(_) => Write::Nothing,
        None => Write::Set(Box::default()),
    };
    drop(traits);
    drop(kept);
    commit(view, scope, &identifier, write);
    Ok(())
}

impl Merged<'_> {
    /// The identity as it is evaluated and answered.
    pub fn parsed(&self) -> ParsedIdentity<'_> {
        let identity = Identity { identifier: &self.identifier, traits: &self.traits };
        ParsedIdentity { identity, echo: None, is_anonymous: false }
    }
}

/// Writes what the request leaves. The view counts what it cannot keep.
pub fn commit(view: &RefCell<TraitView>, scope: Scope<'_>, identifier: &str, write: Write) {
    match write {
        Write::Nothing => {}
        Write::Touch => view.borrow_mut().touch(scope.key, identifier),
        Write::Set(changes) => {
            view.borrow_mut().set(scope.key, identifier, &changes, scope.now);
        }
    }
}

/// Checks that the identity stays within its limit.
pub fn check_size<'e>(merged: &Merged<'_>, scope: Scope<'_>, kept: &TraitView) -> Result<(), ApiError<'e>> {
    match &merged.write {
        Write::Set(changes) => check_changes(kept, scope, &merged.identifier, changes),
        Write::Nothing | Write::Touch => Ok(()),
    }
}

/// Checks that an identity stays within its limit with these changes.
pub fn check_changes<'e>(
    kept: &TraitView,
    scope: Scope<'_>,
    identifier: &str,
    changes: &[u8],
) -> Result<(), ApiError<'e>> {
    let record = kept.find(scope.key, identifier, scope.now);
    match TraitView::bytes_after(record, identifier, changes) > TRAIT_IDENTITY_BYTES_MAX {
        true => Err(ApiError::TraitsTooLarge),
        false => Ok(()),
    }
}

/// The kept traits of a record, in their order.
pub fn stored(record: TraitRecord<'_>) -> Vec<Trait<'_>> {
    let mut traits = Vec::with_capacity(record.bytes().len() / TYPICAL_TRAIT_BYTES + 1);
    traits.extend(record.entries().filter_map(|entry| Some(Trait { key: entry.key, value: entry.value? })));
    traits
}

/// What a body and the store give together.
pub fn merge<'m>(sent: &'m SentIdentity<'_>, scope: Scope<'_>, kept: &'m TraitView) -> Merged<'m> {
    let sent_traits = if scope.drops_traits() { &[] } else { &*sent.traits };
    let Some(identifier) = sent.identifier.as_deref() else { return anonymous(sent_traits) };
    let record = kept.find(scope.key, identifier, scope.now);
    // In core an override makes the identity.
    let is_known = record.is_some() || !scope.environment.program().overrides.find(identifier).is_empty();
    let persists = scope.environment.persist_trait_data();
    let before = record.map(stored).unwrap_or_default();
    let mut changes = Changes::default();
    let traits = match () {
        () if sent.is_transient && is_known => overlay(before, sent_traits.iter()),
        () if sent.is_transient => as_sent(sent_traits),
        () if !persists => {
            overlay(before, sent_traits.iter().filter(|item| item.value() != TraitValue::Null))
        }
        () => {
            let after = store(before, sent_traits, &mut changes);
            match is_known {
                true => overlay(after, sent_traits.iter().filter(|item| item.is_transient)),
                false => first_answer(sent_traits, &after),
            }
        }
    };
    let write = match record {
        _ if sent.is_transient => Write::Nothing,
        None => Write::Set(changes.into_bytes()),
        Some(_) if !changes.is_empty() => Write::Set(changes.into_bytes()),
        Some(record) if kept.needs_touch(&record, scope.now) => Write::Touch,
        Some(_) => Write::Nothing,
    };
    Merged { identifier: Cow::Borrowed(identifier), traits, write }
}

/// An identity without an identifier: never stored, its identifier is computed from its traits.
fn anonymous<'m>(sent: &'m [BodyTrait<'_>]) -> Merged<'m> {
    let all: Vec<Trait<'_>> = sent.iter().map(as_trait).collect();
    Merged {
        identifier: Cow::Owned(transient::identifier(&all)),
        traits: as_sent(sent),
        write: Write::Nothing,
    }
}

fn as_trait<'m>(item: &'m BodyTrait<'_>) -> Trait<'m> {
    Trait { key: &item.key, value: item.value() }
}

/// The traits of a body for an identity that core does not know: those that are not null.
fn as_sent<'m>(sent: &'m [BodyTrait<'_>]) -> Vec<Trait<'m>> {
    sent.iter().map(as_trait).filter(|item| item.value != TraitValue::Null).collect()
}

/// The traits after those of the body that are stored; `changes` gets what differs. Of a key that is sent
/// twice the last value counts.
fn store<'m>(before: Vec<Trait<'m>>, sent: &'m [BodyTrait<'_>], changes: &mut Changes) -> Vec<Trait<'m>> {
    let mut after = before;
    let known = after.len();
    let mut index = KeyIndex::new(after.iter().map(|item| item.key));
    let mut originals: Vec<TraitValue<'_>> = after.iter().map(|item| item.value).collect();
    for item in sent.iter().filter(|item| !item.is_transient).map(as_trait) {
        match index.find(item.key).and_then(|position| after.get_mut(position)) {
            Some(known) => known.value = item.value,
            None => {
                index.push(item.key);
                after.push(item);
                originals.push(TraitValue::Null);
            }
        }
    }
    // Updates first, so that the store thread appends new keys in the same order.
    for (item, original) in after.iter().zip(&originals) {
        let value = stored_value(item.value);
        if value != *original {
            changes.push(item.key, Some(value).filter(|value| *value != TraitValue::Null));
        }
    }
    debug_assert!(after.len() >= known);
    after.retain(|item| item.value != TraitValue::Null);
    after
}

/// The traits with transient ones over them: each takes the place of its key, or goes last.
fn overlay<'m, 's: 'm>(
    traits: Vec<Trait<'m>>,
    sent: impl Iterator<Item = &'m BodyTrait<'s>>,
) -> Vec<Trait<'m>> {
    let mut all = traits;
    let mut index: Option<KeyIndex<'_>> = None;
    for item in sent.map(as_trait) {
        let index = index.get_or_insert_with(|| KeyIndex::new(all.iter().map(|item| item.key)));
        match index.find(item.key).and_then(|position| all.get_mut(position)) {
            Some(known) => known.value = item.value,
            None => {
                index.push(item.key);
                all.push(item);
            }
        }
    }
    all
}

/// The answer to the first body of an identity: in the order of the body, transient ones in their place.
fn first_answer<'m>(sent: &'m [BodyTrait<'_>], stored: &[Trait<'m>]) -> Vec<Trait<'m>> {
    let mut rest = stored.iter().copied().peekable();
    let mut all = Vec::with_capacity(sent.len());
    for item in sent {
        if item.is_transient {
            all.extend(Some(as_trait(item)).filter(|item| item.value != TraitValue::Null));
        } else if let Some(next) = rest.next_if(|next| next.key == &*item.key) {
            all.push(next);
        }
    }
    all.extend(rest);
    all
}

/// The traits of an OFREP context over the kept ones. Nothing is kept of a context.
pub fn with_context<'m>(context: &Identity<'m>, scope: Scope<'_>, kept: &'m TraitView) -> Vec<Trait<'m>> {
    let record = kept.find(scope.key, context.identifier, scope.now);
    let mut all = record.map(stored).unwrap_or_default();
    if scope.drops_traits() {
        return all;
    }
    if all.is_empty() {
        return context.traits.to_vec();
    }
    let mut index = KeyIndex::new(all.iter().map(|item| item.key));
    for item in context.traits {
        match index.find(item.key).and_then(|position| all.get_mut(position)) {
            Some(known) => known.value = item.value,
            None => {
                index.push(item.key);
                all.push(*item);
            }
        }
    }
    all
}
