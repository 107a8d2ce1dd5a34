//! Applies the flags: turns parsed items into a [`RegexNode`] whose character sets and positions are final.
use crate::python::regex::flags::RegexFlags;
use crate::python::regex::set::Set;
use crate::python::regex::syntax::{At, Fold, Position, RegexNode, SetItem};

pub fn resolve(items: Vec<SetItem>, flags: RegexFlags) -> RegexNode {
    let mut nodes: Vec<RegexNode> = items.into_iter().map(|item| node(item, flags)).collect();
    match nodes.pop() {
        Some(only) if nodes.is_empty() => only,
        Some(last) => {
            nodes.push(last);
            RegexNode::Sequence(nodes)
        }
        None => RegexNode::Sequence(nodes),
    }
}

fn boxed(items: Vec<SetItem>, flags: RegexFlags) -> Box<RegexNode> {
    Box::new(resolve(items, flags))
}

fn node(item: SetItem, flags: RegexFlags) -> RegexNode {
    match item {
        SetItem::Literal(code) => RegexNode::Set(Set::literal(code, false, flags)),
        SetItem::NotLiteral(code) => RegexNode::Set(Set::literal(code, true, flags)),
        SetItem::Any => RegexNode::Set(Set::any(flags)),
        SetItem::Set { negated, members } => RegexNode::Set(Set::of_members(&members, negated, flags)),
        SetItem::At(at) => RegexNode::Position(position(at, flags)),
        SetItem::Branch(branches) => {
            RegexNode::Branch(branches.into_iter().map(|items| resolve(items, flags)).collect())
        }
        SetItem::Repeat { greed, min, max, body } => {
            RegexNode::Repeat { greed, min, max, body: boxed(body, flags) }
        }
        SetItem::Group { index, add, remove, body } => {
            let kept = if add.has(RegexFlags::TYPES) { flags.without(RegexFlags::TYPES) } else { flags };
            let body = resolve(body, kept.with(add).without(remove));
            match index {
                Some(index) => RegexNode::Group { index, body: Box::new(body) },
                None => body,
            }
        }
        SetItem::Atomic(body) => RegexNode::Atomic(boxed(body, flags)),
        SetItem::Look { behind, negated, body, width } => {
            // The parser rejects a width over 32 bits.
            let behind = behind.then(|| usize::try_from(width).unwrap_or(usize::MAX));
            RegexNode::Look { behind, negated, body: boxed(body, flags) }
        }
        SetItem::Backreference(group) => RegexNode::Backreference { group, fold: fold(flags) },
        SetItem::Conditional { group, yes, no } => {
            RegexNode::Conditional { group, yes: boxed(yes, flags), no: boxed(no.unwrap_or_default(), flags) }
        }
        SetItem::Failure => RegexNode::Set(Set::default()),
    }
}

fn fold(flags: RegexFlags) -> Fold {
    match (flags.has(RegexFlags::IGNORE_CASE), flags.has(RegexFlags::ASCII)) {
        (false, _) => Fold::Exact,
        (true, true) => Fold::Ascii,
        (true, false) => Fold::Unicode,
    }
}

fn position(at: At, flags: RegexFlags) -> Position {
    let by_line = flags.has(RegexFlags::MULTI_LINE);
    let ascii = flags.has(RegexFlags::ASCII);
    match at {
        At::Begin if by_line => Position::LineBegin,
        At::Begin | At::BeginText => Position::TextBegin,
        At::End if by_line => Position::LineEnd,
        At::End => Position::LastLineEnd,
        At::EndText => Position::TextEnd,
        At::Boundary => Position::Boundary { ascii, negated: false },
        At::NoBoundary => Position::Boundary { ascii, negated: true },
    }
}
