//! `traits/`, `traits/bulk/` and `traits/increment-value/` with a store, and `/proxy/traits/`, which exports
//! and erases what is kept of one identity.
use std::borrow::Cow;
use std::cell::RefCell;
use std::time::{Duration, SystemTime};

use crate::engine::evaluate::{Trait, TraitValue};
use crate::engine::program::Role;
use crate::handlers::errors::ApiError;
use crate::handlers::exchange::{Exchange, NO_STORE};
use crate::handlers::kept::{Scope, Write, check_changes, commit, stored};
use crate::handlers::state::SharedView;
use crate::http::route::Route;
use crate::http::{Body, ContentType, Method, Status};
use crate::identity::sent::SentValue;
use crate::identity::trait_items::{Increment, SentItem};
use crate::identity::{echo, is_json, query, sent, trait_items, validation_errors};
use crate::json::write;
use crate::limits::TRAIT_BULK_IDENTITIES_MAX;
use crate::python::json::JsonDocument;
use crate::trait_table::{Changes, KeyIndex, TraitView, stored_value};

const NOT_PERSISTED: &str = "Organisation is not authorised to store traits.";
const CLIENT_REFUSED: &str = "Setting traits not allowed with client key.";
const NOT_AN_INTEGER: &str = "Trait is not an integer.";
const TOO_LARGE_SUM: &str = "the sum is beyond 64 bits";

/// Calls the handler of a route that needs a store.
pub fn dispatch<'a>(
    exchange: &mut Exchange<'a>,
    route: (Route, Method),
    query: &[u8],
    body: &[u8],
    view: Option<&SharedView>,
) -> Result<(), ApiError<'a>> {
    let view = view.ok_or(ApiError::PathNotFound)?;
    match route {
        (Route::TraitsBulk, _) => put_bulk(exchange, body, view),
        (Route::TraitsIncrement, _) => increment(exchange, body, view),
        (_, Method::Delete) => erase(exchange, query, view),
        _ => export(exchange, query, view),
    }
}

/// `POST traits/`: stores one trait.
pub fn post<'a>(
    exchange: &mut Exchange<'a>,
    body: &[u8],
    view: &RefCell<TraitView>,
) -> Result<(), ApiError<'a>> {
    let parsed = document(exchange, body)?;
    let item = trait_items::item(parsed.root())?;
    let scope = open_to_write(exchange)?;
    let items: Vec<SentItem<'_>> = item.into_iter().collect();
    store(scope, &items, view)?;
    let mut answer = Vec::new();
    items.iter().for_each(|item| write_item(item, &mut answer));
    send(exchange, &answer);
    Ok(())
}

/// `PUT traits/bulk/`: stores and deletes traits of several identities. Deletions come first.
fn put_bulk<'a>(
    exchange: &mut Exchange<'a>,
    body: &[u8],
    view: &RefCell<TraitView>,
) -> Result<(), ApiError<'a>> {
    let parsed = match body {
        b"" => validation_errors::body_value(b"[]", true)?,
        body => document(exchange, body)?,
    };
    let items = trait_items::items(parsed.root())?;
    let scope = open_to_write(exchange)?;
    store(scope, &items, view)?;
    let mut answer = vec![b'['];
    for item in items.iter().filter(|item| item.value.is_some()) {
        if answer.len() > 1 {
            answer.push(b',');
        }
        write_item(item, &mut answer);
    }
    answer.push(b']');
    send(exchange, &answer);
    Ok(())
}

/// `POST traits/increment-value/`: adds to an integer, which starts at 0.
fn increment<'a>(
    exchange: &mut Exchange<'a>,
    body: &[u8],
    view: &RefCell<TraitView>,
) -> Result<(), ApiError<'a>> {
    let parsed = document(exchange, body)?;
    let found = trait_items::increment(parsed.root())?;
    let scope = open_to_write(exchange)?;
    let Some(Increment { identifier, key, amount }) = found else { return Ok(()) };
    let before = {
        let kept = view.borrow();
        let record = kept.find(scope.key, &identifier, scope.now);
        let entry = record.and_then(|record| record.entries().find(|entry| entry.key == &*key));
        match entry.and_then(|entry| entry.value) {
            None => 0,
            Some(TraitValue::Int(number)) => number,
            Some(_) => return Err(ApiError::BadRequest(NOT_AN_INTEGER.into())),
        }
    };
    let sum = before.checked_add(amount).ok_or(ApiError::Unprocessable(TOO_LARGE_SUM))?;
    let mut changes = Changes::default();
    changes.push(&key, Some(TraitValue::Int(sum)));
    check_changes(&view.borrow(), scope, &identifier, &changes.into_bytes())?;
    if !view.borrow_mut().add(scope.key, &identifier, &key, (amount, sum), scope.now) {
        return Err(ApiError::TraitsBusy);
    }
    let mut answer = b"{\"trait_key\":".to_vec();
    write::string(&key, &mut answer);
    answer.extend_from_slice(b",\"trait_value\":");
    echo::write_value(TraitValue::Int(sum), &mut answer);
    answer.extend_from_slice(b",\"identifier\":");
    write::string(&identifier, &mut answer);
    answer.push(b'}');
    send(exchange, &answer);
    Ok(())
}

/// The identity that the query names, and the environment of a server-side key.
fn open_identity<'q, 'a>(
    exchange: &mut Exchange<'a>,
    query: &'q [u8],
) -> Result<(Cow<'q, str>, Scope<'a>), ApiError<'a>> {
    let identifier = query::parameter(query, "identifier");
    sent::query_identifier(identifier.as_deref(), false)?;
    let environment = &*exchange.open_as_server()?.environment;
    Ok((identifier.unwrap_or_default(), Scope::new(exchange, environment, Role::Server)))
}

/// `GET /proxy/traits/?identifier=`: everything that is kept of an identity.
fn export<'a>(
    exchange: &mut Exchange<'a>,
    query: &[u8],
    view: &RefCell<TraitView>,
) -> Result<(), ApiError<'a>> {
    let (identifier, scope) = open_identity(exchange, query)?;
    let kept = view.borrow();
    let record = kept.find(scope.key, &identifier, scope.now).ok_or(ApiError::IdentityNotFound)?;
    let mut answer = b"{\"identifier\":".to_vec();
    write::string(&identifier, &mut answer);
    answer.extend_from_slice(b",\"seen_at\":");
    let seen = SystemTime::UNIX_EPOCH + Duration::from_secs(record.head().seen.into());
    write::string(&crate::timestamp::rfc3339(seen), &mut answer);
    answer.extend_from_slice(b",\"traits\":[");
    echo::write_all(&stored(record), &mut answer);
    answer.extend_from_slice(b"]}");
    send(exchange, &answer);
    Ok(())
}

/// `DELETE /proxy/traits/?identifier=`: erases everything that is kept of an identity, known or not.
fn erase<'a>(
    exchange: &mut Exchange<'a>,
    query: &[u8],
    view: &RefCell<TraitView>,
) -> Result<(), ApiError<'a>> {
    let (identifier, scope) = open_identity(exchange, query)?;
    if !view.borrow_mut().erase(scope.key, &identifier) {
        return Err(ApiError::TraitsBusy);
    }
    exchange.vary();
    exchange.add_headers(NO_STORE);
    exchange.send(Status(204), None, Body::Empty);
    Ok(())
}

fn document<'b, 'a>(exchange: &Exchange<'a>, body: &'b [u8]) -> Result<JsonDocument<'b>, ApiError<'a>> {
    Ok(validation_errors::body_value(body, is_json(exchange.fields.content_type))?)
}

/// The environment, if the key may store traits in it.
fn open_to_write<'a>(exchange: &mut Exchange<'a>) -> Result<Scope<'a>, ApiError<'a>> {
    let (document, role) = exchange.open()?;
    let environment = &*document.environment;
    let scope = Scope::new(exchange, environment, role);
    if !environment.persist_trait_data() {
        return Err(ApiError::Forbidden(NOT_PERSISTED));
    }
    match scope.drops_traits() {
        true => Err(ApiError::BadRequest(CLIENT_REFUSED.into())),
        false => Ok(scope),
    }
}

/// The items of one identity, as indices, with those that delete first.
struct IdentityItems<'i> {
    identifier: &'i str,
    items: Vec<&'i SentItem<'i>>,
    stores: bool,
}

/// Stores and deletes: all items or, if one identity becomes too large, none.
fn store<'e>(
    scope: Scope<'_>,
    items: &[SentItem<'_>],
    view: &RefCell<TraitView>,
) -> Result<(), ApiError<'e>> {
    let mut groups: Vec<IdentityItems<'_>> = Vec::new();
    let mut positions: std::collections::HashMap<&str, usize> = std::collections::HashMap::new();
    // A deletion counts before a value, wherever it is in the list.
    let (deleted, set): (Vec<_>, Vec<_>) = items.iter().partition(|item| item.value.is_none());
    for item in deleted.into_iter().chain(set) {
        let position = *positions.entry(&item.identifier).or_insert(groups.len());
        if position == groups.len() {
            groups.push(IdentityItems { identifier: &item.identifier, items: Vec::new(), stores: false });
        }
        if let Some(group) = groups.get_mut(position) {
            group.items.push(item);
            group.stores |= item.value.is_some();
        }
    }
    if groups.len() > TRAIT_BULK_IDENTITIES_MAX {
        let count = groups.len();
        let message =
            format!("the body has {count} identities, at most {TRAIT_BULK_IDENTITIES_MAX} are stored");
        return Err(ApiError::BadRequest(message.into()));
    }
    let mut writes = Vec::with_capacity(groups.len());
    let kept = view.borrow();
    for group in &groups {
        // A deletion does not make an identity.
        if !group.stores && kept.find(scope.key, group.identifier, scope.now).is_none() {
            continue;
        }
        let changes = last_values(&group.items);
        check_changes(&kept, scope, group.identifier, &changes)?;
        writes.push((group.identifier, changes));
    }
    drop(kept);
    for (identifier, changes) in writes {
        commit(view, scope, identifier, Write::Set(changes));
    }
    Ok(())
}

/// The changes of an identity, with those that delete first: a key that is deleted and set goes last. Of a
/// key that is set twice the last value counts.
fn last_values(items: &[&SentItem<'_>]) -> Box<[u8]> {
    let mut index = KeyIndex::default();
    let mut last: Vec<Trait<'_>> = Vec::with_capacity(items.len());
    let mut changes = Changes::default();
    for item in items {
        let Some(value) = item.value.as_ref().map(value_of) else {
            changes.push(&item.key, None);
            continue;
        };
        match index.find(item.key.as_bytes()).and_then(|position| last.get_mut(position)) {
            Some(known) => known.value = value,
            None => {
                index.push(item.key.as_bytes());
                last.push(Trait { key: &item.key, value });
            }
        }
    }
    for item in last {
        // A typed value may be null.
        changes.push(item.key, Some(stored_value(item.value)).filter(|value| *value != TraitValue::Null));
    }
    changes.into_bytes()
}

fn value_of<'v>(value: &'v SentValue<'_>) -> TraitValue<'v> {
    match value {
        SentValue::Plain(value) => *value,
        SentValue::Printed(text) => TraitValue::Text(text),
    }
}

/// Appends an item as it was stored.
fn write_item(item: &SentItem<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"identity\":{\"identifier\":");
    write::string(&item.identifier, out);
    out.extend_from_slice(b"},\"trait_value\":");
    echo::write_value(item.value.as_ref().map_or(TraitValue::Null, value_of), out);
    out.extend_from_slice(b",\"trait_key\":");
    write::string(&item.key, out);
    out.push(b'}');
}

fn send(exchange: &mut Exchange<'_>, answer: &[u8]) {
    exchange.vary();
    exchange.add_headers(NO_STORE);
    exchange.send(Status(200), Some(ContentType::Json), Body::Copy(answer));
}
