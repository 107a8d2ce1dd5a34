//! The values that conditions read, found once per request and kept without borrowing.
//!
//! In: an identity. Out: for each slot of the program the coerced value of its property.
//! Invariant: slots that nothing was sent for stay [`StoredValue::Unset`], and conditions on those have
//! their result ready; the memory is the caller's and is used again.
use crate::engine::evaluate::{Identity, TraitValue};
use crate::engine::program::{Program, PropertySource, offset};
use crate::python::number::{BigDigits, Value, coerce_text, integer_value};

/// A value without its text, which is found again where it came from.
#[derive(Clone, Copy, Debug)]
enum StoredValue {
    Unset,
    Bool(bool),
    Int(i64),
    Big(ValueSource),
    Float(f64),
    Text(ValueSource),
    Unreadable,
}

#[derive(Clone, Copy, Debug)]
enum ValueSource {
    /// Index into the identity's traits.
    Trait(u32),
    Identifier,
    IdentityKey,
}

/// The values of one request.
#[derive(Debug, Default)]
pub struct ContextValues {
    held: Vec<StoredValue>,
    /// By number of [`Program::aliases`] the last trait of that name, as an index.
    aliased: Vec<Option<u32>>,
    /// The identity's key; empty without an identity.
    pub identity_key: String,
}

impl ContextValues {
    /// Makes the identity's key; `key` stands for it if it is given.
    pub fn begin(&mut self, program: &Program, identity: Option<&Identity<'_>>, key: Option<&str>) {
        self.identity_key.clear();
        match (identity, key) {
            (None, _) => {}
            (Some(_), Some(key)) => self.identity_key.push_str(key),
            (Some(identity), None) => {
                self.identity_key.push_str(&program.identity_key_prefix);
                self.identity_key.push_str(identity.identifier);
            }
        }
    }

    /// Finds every value that `identity` has for the program's slots.
    pub fn fill(&mut self, program: &Program, identity: Option<&Identity<'_>>) {
        self.held.clear();
        self.held.resize(program.slots.len(), StoredValue::Unset);
        let Some(identity) = identity else { return };
        if !program.slots_by_trait.is_empty() {
            for (index, sent) in identity.traits.iter().enumerate() {
                if let Some(slot) = program.slots_by_trait.get(sent.key) {
                    // Of several traits of one name the last one counts, null included.
                    self.held[*slot as usize] = hold_trait(identity, offset(index));
                }
            }
        }
        self.aliased.clear();
        self.aliased.resize(program.aliases.len(), None);
        if !program.aliases.is_empty() {
            for (index, sent) in identity.traits.iter().enumerate() {
                if let Some(alias) = program.aliases.get(sent.key) {
                    self.aliased[*alias as usize] = Some(offset(index));
                }
            }
        }
        for slot in &program.derived_slots {
            let slot = *slot as usize;
            if !matches!(self.held[slot], StoredValue::Unset) {
                continue;
            }
            self.held[slot] = match &program.slots[slot] {
                PropertySource::Identifier => hold(coerce_text(identity.identifier), ValueSource::Identifier),
                PropertySource::IdentityKey => {
                    hold(coerce_text(&self.identity_key), ValueSource::IdentityKey)
                }
                PropertySource::SplitKey => StoredValue::Text(ValueSource::IdentityKey),
                PropertySource::IdentityTrait(alias) => self.aliased[*alias as usize]
                    .map_or(StoredValue::Unset, |index| hold_trait(identity, index)),
                _ => StoredValue::Unset,
            };
        }
    }

    /// The value of a slot; `None` if nothing was sent for it.
    #[inline]
    pub fn of<'v>(&'v self, slot: u32, identity: Option<&Identity<'v>>) -> Option<Value<'v>> {
        Some(match self.held[slot as usize] {
            StoredValue::Unset => return None,
            StoredValue::Bool(bool) => Value::Bool(bool),
            StoredValue::Int(number) => Value::Int(number),
            StoredValue::Big(source) => Value::Big(BigDigits::of(self.text(source, identity?))),
            StoredValue::Float(number) => Value::Float(number),
            StoredValue::Text(source) => Value::Text(self.text(source, identity?)),
            StoredValue::Unreadable => Value::Unreadable,
        })
    }

    fn text<'v>(&'v self, source: ValueSource, identity: &Identity<'v>) -> &'v str {
        match source {
            ValueSource::Trait(index) => match identity.traits[index as usize].value {
                TraitValue::Text(text) | TraitValue::BigInt(text) => text,
                _ => "",
            },
            ValueSource::Identifier => identity.identifier,
            ValueSource::IdentityKey => &self.identity_key,
        }
    }
}

fn hold_trait(identity: &Identity<'_>, index: u32) -> StoredValue {
    hold(coerce(identity.traits[index as usize].value), ValueSource::Trait(index))
}

fn hold(value: Value<'_>, source: ValueSource) -> StoredValue {
    match value {
        Value::Null => StoredValue::Unset,
        Value::Bool(bool) => StoredValue::Bool(bool),
        Value::Int(number) => StoredValue::Int(number),
        Value::Big(_) => StoredValue::Big(source),
        Value::Float(number) => StoredValue::Float(number),
        Value::Text(_) => StoredValue::Text(source),
        Value::Unreadable => StoredValue::Unreadable,
    }
}

/// The value that conditions see: text that looks like a number is one.
pub fn coerce(value: TraitValue<'_>) -> Value<'_> {
    match value {
        TraitValue::Null => Value::Null,
        TraitValue::Bool(bool) => Value::Bool(bool),
        TraitValue::Int(number) => Value::Int(number),
        TraitValue::Float(number) => Value::Float(number),
        TraitValue::BigInt(digits) => integer_value(digits),
        TraitValue::Text(text) => coerce_text(text),
    }
}
