//! The values that conditions read, found once per request and kept without borrowing.
//!
//! In: an identity. Out: for each slot of the program the coerced value of its property.
//! Invariant: slots that nothing was sent for stay [`Held::Unset`], and conditions on those have
//! their result ready; the memory is the caller's and is used again.
use num_bigint::BigInt;

use super::value::{Value, coerce, coerce_text};
use super::{Identity, TraitValue};
use crate::snapshot::rule::{Origin, Program, offset};

/// A value without its text, which is found again where it came from.
#[derive(Clone, Copy, Debug)]
enum Held {
    Unset,
    Bool(bool),
    Int(i64),
    /// Index into [`Values::bigs`].
    Big(u32),
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
    bigs: Vec<BigInt>,
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
        self.bigs.clear();
        let Some(identity) = identity else { return };
        if !program.slots_by_trait.is_empty() {
            for (index, sent) in identity.traits.iter().enumerate() {
                if let Some(slot) = program.slots_by_trait.get(sent.key) {
                    // Of several traits of one name the last one counts, null included.
                    self.held[*slot as usize] = self.hold_trait(identity, index);
                }
            }
        }
        for slot in &program.derived_slots {
            let slot = *slot as usize;
            if !matches!(self.held[slot], Held::Unset) {
                continue;
            }
            self.held[slot] = match &program.slots[slot] {
                Origin::Identifier => {
                    let value = coerce_text(identity.identifier);
                    self.hold(value, Source::Identifier)
                }
                Origin::IdentityKey => {
                    // Taken out for a moment: a number in it goes to `bigs`.
                    let key = std::mem::take(&mut self.identity_key);
                    let held = self.hold(coerce_text(&key), Source::IdentityKey);
                    self.identity_key = key;
                    held
                }
                Origin::SplitKey => Held::Text(Source::IdentityKey),
                Origin::IdentityTrait(name) => {
                    let index = identity.traits.iter().rposition(|sent| sent.key == &**name);
                    index.map_or(Held::Unset, |index| self.hold_trait(identity, index))
                }
                _ => Held::Unset,
            };
        }
    }

    fn hold_trait(&mut self, identity: &Identity<'_>, index: usize) -> Held {
        self.hold(coerce(identity.traits[index].value), Source::Trait(offset(index)))
    }

    fn hold(&mut self, value: Value<'_>, source: Source) -> Held {
        match value {
            Value::Null => Held::Unset,
            Value::Bool(bool) => Held::Bool(bool),
            Value::Int(number) => Held::Int(number),
            Value::Big(number) => {
                self.bigs.push(number);
                Held::Big(offset(self.bigs.len() - 1))
            }
            Value::Float(number) => Held::Float(number),
            Value::Text(_) => Held::Text(source),
            Value::Unreadable => Held::Unreadable,
        }
    }

    /// The value of a slot; `None` if nothing was sent for it.
    #[inline]
    pub fn of<'v>(&'v self, slot: u32, identity: Option<&Identity<'v>>) -> Option<Value<'v>> {
        Some(match self.held[slot as usize] {
            Held::Unset => return None,
            Held::Bool(bool) => Value::Bool(bool),
            Held::Int(number) => Value::Int(number),
            Held::Big(index) => Value::Big(self.bigs[index as usize].clone()),
            Held::Float(number) => Value::Float(number),
            Held::Text(source) => Value::Text(self.text(source, identity?)),
            Held::Unreadable => Value::Unreadable,
        })
    }

    fn text<'v>(&'v self, source: Source, identity: &Identity<'v>) -> &'v str {
        match source {
            Source::Trait(index) => match identity.traits[index as usize].value {
                TraitValue::Text(text) => text,
                _ => "",
            },
            Source::Identifier => identity.identifier,
            Source::IdentityKey => &self.identity_key,
        }
    }
}
