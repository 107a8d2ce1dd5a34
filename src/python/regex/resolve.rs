//! Gives every flag its effect.
//!
//! In: items as read and the flags of the whole pattern. Out: one [`Node`] whose sets and places
//! are final. Invariant: flags of a group hold inside of it alone.
use crate::python::regex::set::Set;
use crate::python::regex::syntax::{At, Flags, Fold, Item, Node, Place};

pub fn resolve(items: Vec<Item>, flags: Flags) -> Node {
    let mut nodes: Vec<Node> = items.into_iter().map(|item| node(item, flags)).collect();
    match nodes.pop() {
        Some(only) if nodes.is_empty() => only,
        Some(last) => {
            nodes.push(last);
            Node::Sequence(nodes)
        }
        None => Node::Sequence(nodes),
    }
}

fn boxed(items: Vec<Item>, flags: Flags) -> Box<Node> {
    Box::new(resolve(items, flags))
}

fn node(item: Item, flags: Flags) -> Node {
    match item {
        Item::Literal(code) => Node::Set(Set::literal(code, false, flags)),
        Item::NotLiteral(code) => Node::Set(Set::literal(code, true, flags)),
        Item::Any => Node::Set(Set::any(flags)),
        Item::Set { negated, members } => Node::Set(Set::of_members(&members, negated, flags)),
        Item::At(at) => Node::Place(place(at, flags)),
        Item::Branch(branches) => {
            Node::Branch(branches.into_iter().map(|items| resolve(items, flags)).collect())
        }
        Item::Repeat { greed, min, max, body } => Node::Repeat { greed, min, max, body: boxed(body, flags) },
        Item::Group { index, add, remove, body } => {
            let kept = if add.has(Flags::TYPES) { flags.without(Flags::TYPES) } else { flags };
            let body = resolve(body, kept.with(add).without(remove));
            match index {
                Some(index) => Node::Group { index, body: Box::new(body) },
                None => body,
            }
        }
        Item::Atomic(body) => Node::Atomic(boxed(body, flags)),
        Item::Look { behind, negated, body, width } => {
            // The parser refuses a width that is over 32 bits.
            let behind = behind.then(|| usize::try_from(width).unwrap_or(usize::MAX));
            Node::Look { behind, negated, body: boxed(body, flags) }
        }
        Item::Backreference(group) => Node::Backreference { group, fold: fold(flags) },
        Item::Conditional { group, yes, no } => {
            Node::Conditional { group, yes: boxed(yes, flags), no: boxed(no.unwrap_or_default(), flags) }
        }
        Item::Failure => Node::Set(Set::default()),
    }
}

fn fold(flags: Flags) -> Fold {
    match (flags.has(Flags::IGNORE_CASE), flags.has(Flags::ASCII)) {
        (false, _) => Fold::Exact,
        (true, true) => Fold::Ascii,
        (true, false) => Fold::Unicode,
    }
}

fn place(at: At, flags: Flags) -> Place {
    let by_line = flags.has(Flags::MULTI_LINE);
    let ascii = flags.has(Flags::ASCII);
    match at {
        At::Begin if by_line => Place::LineBegin,
        At::Begin | At::BeginText => Place::TextBegin,
        At::End if by_line => Place::LineEnd,
        At::End => Place::LastLineEnd,
        At::EndText => Place::TextEnd,
        At::Boundary => Place::Boundary { ascii, negated: false },
        At::NoBoundary => Place::Boundary { ascii, negated: true },
    }
}
