//! The evaluation context: for each slot of a program, the coerced value of its property for one identity.
//!
//! Values are found once per evaluation. They do not borrow from the request, so that their memory is reused.
use crate::engine::identity::{Identity, TraitValue};
use crate::engine::program::{Program, PropertySource};
use crate::engine::table::offset;
use crate::python::number::{BigDigits, Value, coerce_text, integer_value};
use crate::work;

/// A value; text is stored as the source to read it from.
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
    /// By its index in the identity's traits.
    Trait(u32),
    Identifier,
    IdentityKey,
}

/// The values of one evaluation.
#[derive(Debug, Default)]
pub struct ContextValues {
    /// By slot; [`StoredValue::Unset`] if the identity has no value for it.
    stored: Vec<StoredValue>,
    /// By index of [`Program::aliases`], the index of the last trait with that name.
    aliased: Vec<Option<u32>>,
    /// The identity key; empty without an identity.
    pub identity_key: String,
}

impl ContextValues {
    /// Sets the identity key: `key` if it is given, else the composite key.
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

    /// Sets the values of all slots that do not depend on flags or queries.
    pub fn fill(&mut self, program: &Program, identity: Option<&Identity<'_>>) {
        self.stored.clear();
        self.stored.resize(program.slots.len(), StoredValue::Unset);
        work::count(program.slots.len());
        let Some(identity) = identity else { return };
        work::count(identity.traits.len());
        if !program.slots_by_trait.is_empty() {
            for (index, sent) in identity.traits.iter().enumerate() {
                if let Some(slot) = program.slots_by_trait.get(sent.key) {
                    // Of several traits with one name the last one counts, even if it is null.
                    self.stored[*slot as usize] = store_trait(identity, offset(index));
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
            if !matches!(self.stored[slot], StoredValue::Unset) {
                continue;
            }
            self.stored[slot] = match &program.slots[slot] {
                PropertySource::Identifier => {
                    store(coerce_text(identity.identifier), ValueSource::Identifier)
                }
                PropertySource::IdentityKey => {
                    store(coerce_text(&self.identity_key), ValueSource::IdentityKey)
                }
                PropertySource::SplitKey => StoredValue::Text(ValueSource::IdentityKey),
                PropertySource::IdentityTrait(alias) => self.aliased[*alias as usize]
                    .map_or(StoredValue::Unset, |index| store_trait(identity, index)),
                _ => StoredValue::Unset,
            };
        }
    }

    /// The value of a slot; `None` if the identity has none.
    #[inline]
    pub fn get<'v>(&'v self, slot: u32, identity: Option<&Identity<'v>>) -> Option<Value<'v>> {
        Some(match self.stored[slot as usize] {
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

fn store_trait(identity: &Identity<'_>, index: u32) -> StoredValue {
    store(coerce(identity.traits[index as usize].value), ValueSource::Trait(index))
}

fn store(value: Value<'_>, source: ValueSource) -> StoredValue {
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

/// The value that conditions read: text that looks like a number is that number.
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
