//! The values that conditions read, found once per request and kept without borrowing.
//!
//! In: an identity. Out: for each slot of the program the coerced value of its property.
//! Invariant: slots that nothing was sent for stay [`Held::Unset`], and conditions on those have
//! their result ready; the memory is the caller's and is used again.
use crate::engine::evaluate::{Identity, TraitValue};
use crate::engine::program::{Origin, Program, offset};
use crate::python::value::{BigDigits, Value, coerce, coerce_text};

/// A value without its text, which is found again where it came from.
#[derive(Clone, Copy, Debug)]
enum Held {
    Unset,
    Bool(bool),
    Int(i64),
    Big(Source),
    Float(f64),
    Text(Source),
    Unreadable,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    /// Index into the identity's traits.
    Trait(u32),
    Identifier,
    IdentityKey,
}

/// The values of one request.
#[derive(Debug, Default)]
pub struct Values {
    held: Vec<Held>,
    /// By number of [`Program::aliases`] the last trait of that name, as an index.
    aliased: Vec<Option<u32>>,
    /// The identity's key; empty without an identity.
    pub identity_key: String,
}

impl Values {
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
        self.held.resize(program.slots.len(), Held::Unset);
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
            if !matches!(self.held[slot], Held::Unset) {
                continue;
            }
            self.held[slot] = match &program.slots[slot] {
                Origin::Identifier => hold(coerce_text(identity.identifier), Source::Identifier),
                Origin::IdentityKey => hold(coerce_text(&self.identity_key), Source::IdentityKey),
                Origin::SplitKey => Held::Text(Source::IdentityKey),
                Origin::IdentityTrait(alias) => {
                    self.aliased[*alias as usize].map_or(Held::Unset, |index| hold_trait(identity, index))
                }
                _ => Held::Unset,
            };
        }
    }

    /// The value of a slot; `None` if nothing was sent for it.
    #[inline]
    pub fn of<'v>(&'v self, slot: u32, identity: Option<&Identity<'v>>) -> Option<Value<'v>> {
        Some(match self.held[slot as usize] {
            Held::Unset => return None,
            Held::Bool(bool) => Value::Bool(bool),
            Held::Int(number) => Value::Int(number),
            Held::Big(source) => Value::Big(BigDigits::of(self.text(source, identity?))),
            Held::Float(number) => Value::Float(number),
            Held::Text(source) => Value::Text(self.text(source, identity?)),
            Held::Unreadable => Value::Unreadable,
        })
    }

    fn text<'v>(&'v self, source: Source, identity: &Identity<'v>) -> &'v str {
        match source {
            Source::Trait(index) => match identity.traits[index as usize].value {
                TraitValue::Text(text) | TraitValue::BigInt(text) => text,
                _ => "",
            },
            Source::Identifier => identity.identifier,
            Source::IdentityKey => &self.identity_key,
        }
    }
}

fn hold_trait(identity: &Identity<'_>, index: u32) -> Held {
    hold(coerce(identity.traits[index as usize].value), Source::Trait(index))
}

fn hold(value: Value<'_>, source: Source) -> Held {
    match value {
        Value::Null => Held::Unset,
        Value::Bool(bool) => Held::Bool(bool),
        Value::Int(number) => Held::Int(number),
        Value::Big(_) => Held::Big(source),
        Value::Float(number) => Held::Float(number),
        Value::Text(_) => Held::Text(source),
        Value::Unreadable => Held::Unreadable,
    }
}
