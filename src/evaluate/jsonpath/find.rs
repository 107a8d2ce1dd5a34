//! Walks a path and finds its first node.
//!
//! In: a path and a [`Context`]. Out: the first node in the order of jsonpath-rfc9535, found as
//! lazily as it does: a flag that lies behind the first node is not resolved.
//! Invariant: descent is bounded as there; what raises in a function finds nothing.
use std::cmp::Ordering;
use std::ops::ControlFlow;

use num_bigint::BigInt;
use num_traits::{FromPrimitive as _, ToPrimitive as _};

use super::super::TraitValue;
use super::super::value::{Integer, int_from_text};
use super::iregexp::Expression;
use super::syntax::{Comparison, Function, Literal, Path, Segment, Selector, Test};
use super::tree::{Branch, Context, Node};

/// Levels below the root that a descent visits (`max_recursion_depth`). Beyond, the query fails.
const DESCENT_DEPTH_MAX: usize = 100;

/// The walk is over: the consumer has enough, or the package raises.
pub enum Stop {
    Enough,
    Raised,
}

type Flow = ControlFlow<Stop>;

/// The first node, if there is one.
pub fn first<'a>(path: &Path, context: &mut Context<'a, '_>) -> Option<Node<'a>> {
    let mut found = None;
    let flow = walk(&path.segments, Node::Root, context, &mut |_, node| {
        found = Some(node);
        ControlFlow::Break(Stop::Enough)
    });
    match flow {
        ControlFlow::Break(Stop::Raised) => None,
        ControlFlow::Break(Stop::Enough) | ControlFlow::Continue(()) => found,
    }
}

type Visit<'v, 'a, 'c> = &'v mut dyn FnMut(&mut Context<'a, 'c>, Node<'a>) -> Flow;

fn walk<'a, 'c>(
    segments: &[Segment],
    node: Node<'a>,
    context: &mut Context<'a, 'c>,
    visit: Visit<'_, 'a, 'c>,
) -> Flow {
    let Some((segment, rest)) = segments.split_first() else { return visit(context, node) };
    if segment.descendant {
        return descend(segment, rest, node, 1, context, visit);
    }
    segment.selectors.iter().try_for_each(|selector| select(selector, rest, node, context, visit))
}

fn descend<'a, 'c>(
    segment: &Segment,
    rest: &[Segment],
    node: Node<'a>,
    depth: usize,
    context: &mut Context<'a, 'c>,
    visit: Visit<'_, 'a, 'c>,
) -> Flow {
    if depth > DESCENT_DEPTH_MAX {
        return ControlFlow::Break(Stop::Raised);
    }
    segment.selectors.iter().try_for_each(|selector| select(selector, rest, node, context, visit))?;
    for child in children(node, context) {
        if child.is_object() || child.is_list() {
            descend(segment, rest, child, depth + 1, context, visit)?;
        }
    }
    ControlFlow::Continue(())
}

fn children<'a>(node: Node<'a>, context: &Context<'a, '_>) -> Vec<Node<'a>> {
    let mut all = Vec::new();
    let _: ControlFlow<()> = context.children(node, &mut |_, child| {
        all.push(child);
        ControlFlow::Continue(())
    });
    all
}

fn select<'a, 'c>(
    selector: &Selector,
    rest: &[Segment],
    node: Node<'a>,
    context: &mut Context<'a, 'c>,
    visit: Visit<'_, 'a, 'c>,
) -> Flow {
    match selector {
        Selector::Name(name) if node.is_object() => match context.child(node, name) {
            Some(child) => walk(rest, child, context, visit),
            None => ControlFlow::Continue(()),
        },
        Selector::Name(_) => ControlFlow::Continue(()),
        Selector::Wild => {
            children(node, context).into_iter().try_for_each(|child| walk(rest, child, context, visit))
        }
        Selector::Filter(test) => {
            for child in children(node, context) {
                let Some(operand) = evaluate(test, child, context) else {
                    return ControlFlow::Break(Stop::Raised);
                };
                if operand.is_truthy() {
                    walk(rest, child, context, visit)?;
                }
            }
            ControlFlow::Continue(())
        }
        Selector::Index(_) | Selector::Slice { .. } => {
            let Node::Branch(Branch::List(items)) = node else { return ControlFlow::Continue(()) };
            chosen(selector, items.len())
                .into_iter()
                .filter_map(|at| items.get(at))
                .try_for_each(|item| walk(rest, Node::Branch(item), context, visit))
        }
    }
}

/// The positions that an index or a slice chooses, as Python's `slice.indices` has them.
fn chosen(selector: &Selector, count: usize) -> Vec<usize> {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let from_end = |index: i64| if index < 0 { index + count } else { index };
    match *selector {
        Selector::Index(index) => usize::try_from(from_end(index)).into_iter().collect(),
        Selector::Slice { start, stop, step } => {
            let step = step.unwrap_or(1);
            let (lowest, highest) = if step < 0 { (-1, count - 1) } else { (0, count) };
            let bound = |index: Option<i64>, absent| {
                index.map_or(absent, |index| from_end(index).clamp(lowest, highest))
            };
            let (mut at, stop) = if step < 0 {
                (bound(start, highest), bound(stop, lowest))
            } else {
                (bound(start, lowest), bound(stop, highest))
            };
            let mut positions = Vec::new();
            while step != 0 && if step < 0 { at > stop } else { at < stop } {
                positions.extend(usize::try_from(at));
                at = at.saturating_add(step);
            }
            positions
        }
        _ => Vec::new(),
    }
}

/// What an expression is worth.
enum Operand<'a> {
    Nothing,
    Nodes(Vec<Node<'a>>),
    Value(Value<'a>),
}

/// A single value.
enum Value<'a> {
    Null,
    Bool(bool),
    Integer(Integer),
    Float(f64),
    Text(&'a str),
    Owned(Box<str>),
    /// A list or an object.
    Node(Node<'a>),
}

impl Operand<'_> {
    fn is_truthy(&self) -> bool {
        match self {
            Operand::Nothing => false,
            Operand::Nodes(nodes) => !nodes.is_empty(),
            Operand::Value(value) => match value {
                Value::Null | Value::Node(_) => true,
                Value::Bool(bool) => *bool,
                Value::Integer(number) => *number != Integer::Small(0),
                Value::Float(number) => *number != 0.0,
                Value::Text(text) => !text.is_empty(),
                Value::Owned(text) => !text.is_empty(),
            },
        }
    }
}

fn value(node: Node<'_>) -> Value<'_> {
    match node {
        Node::Branch(branch) => match branch {
            Branch::Null => Value::Null,
            Branch::Bool(bool) => Value::Bool(*bool),
            Branch::Int(number) => Value::Integer(Integer::Small(*number)),
            Branch::Large(digits) => int_from_text(digits).map_or(Value::Null, Value::Integer),
            Branch::Float(number) => Value::Float(*number),
            Branch::Text(text) => Value::Text(text),
            Branch::List(_) | Branch::Object(_) => Value::Node(node),
        },
        Node::Scalar(scalar) => match scalar {
            TraitValue::Null => Value::Null,
            TraitValue::Bool(bool) => Value::Bool(bool),
            TraitValue::Int(number) => Value::Integer(Integer::Small(number)),
            TraitValue::BigInt(digits) => int_from_text(digits).map_or(Value::Null, Value::Integer),
            TraitValue::Float(number) => Value::Float(number),
            TraitValue::Text(text) => Value::Text(text),
        },
        _ => Value::Node(node),
    }
}

/// `None` where Python raises.
fn evaluate<'a>(test: &Test, current: Node<'a>, context: &mut Context<'a, '_>) -> Option<Operand<'a>> {
    Some(match test {
        Test::Literal(literal) => Operand::Value(match literal {
            Literal::Null => Value::Null,
            Literal::Bool(bool) => Value::Bool(*bool),
            Literal::Integer(number) => Value::Integer(number.clone()),
            Literal::Float(number) => Value::Float(*number),
            Literal::Text(text) => Value::Owned(text.clone()),
        }),
        // `@` alone is the value itself, and a falsy one is false.
        Test::Path { from_root: false, path } if !current.is_object() && !current.is_list() => {
            if path.segments.is_empty() { Operand::Value(value(current)) } else { Operand::Nodes(Vec::new()) }
        }
        Test::Path { from_root, path } => {
            let mut nodes = Vec::new();
            let start = if *from_root { Node::Root } else { current };
            let flow = walk(&path.segments, start, context, &mut |_, node| {
                nodes.push(node);
                ControlFlow::Continue(())
            });
            if flow.is_break() {
                return None;
            }
            Operand::Nodes(nodes)
        }
        Test::Function { function, arguments, pattern } => {
            call(*function, arguments, pattern.as_deref(), current, context)?
        }
        Test::Not(test) => Operand::Value(Value::Bool(!evaluate(test, current, context)?.is_truthy())),
        // Both sides are evaluated, whatever the first one is.
        Test::And(left, right) | Test::Or(left, right) => {
            let left = evaluate(left, current, context)?.is_truthy();
            let right = evaluate(right, current, context)?.is_truthy();
            Operand::Value(Value::Bool(if matches!(test, Test::And(..)) {
                left && right
            } else {
                left || right
            }))
        }
        Test::Compare { left, operator, right } => {
            let left = single(evaluate(left, current, context)?);
            let right = single(evaluate(right, current, context)?);
            Operand::Value(Value::Bool(compare(left.as_ref(), *operator, right.as_ref(), context)))
        }
    })
}

/// The one value of an operand; what has none is Nothing.
fn single(operand: Operand<'_>) -> Option<Value<'_>> {
    match operand {
        Operand::Nothing => None,
        Operand::Nodes(nodes) => nodes.first().copied().map(value),
        Operand::Value(value) => Some(value),
    }
}

fn call<'a>(
    function: Function,
    arguments: &[Test],
    pattern: Option<&Expression>,
    current: Node<'a>,
    context: &mut Context<'a, '_>,
) -> Option<Operand<'a>> {
    let integer = |count: usize| {
        Operand::Value(Value::Integer(Integer::Small(i64::try_from(count).unwrap_or(i64::MAX))))
    };
    let mut operands = Vec::new();
    for argument in arguments {
        operands.push(evaluate(argument, current, context)?);
    }
    let mut operands = operands.into_iter();
    let first = operands.next()?;
    Some(match function {
        Function::Count => match first {
            Operand::Nodes(nodes) => integer(nodes.len()),
            Operand::Value(Value::Text(text)) => integer(text.chars().count()),
            _ => return None,
        },
        Function::Value => match first {
            Operand::Nodes(nodes) => match nodes.as_slice() {
                [only] => Operand::Value(value(*only)),
                _ => Operand::Nothing,
            },
            Operand::Value(Value::Text(text)) if text.chars().count() != 1 => Operand::Nothing,
            _ => return None,
        },
        Function::Length => match single(first) {
            Some(Value::Text(text)) => integer(text.chars().count()),
            Some(Value::Owned(text)) => integer(text.chars().count()),
            Some(Value::Node(node)) => integer(children(node, context).len()),
            _ => Operand::Nothing,
        },
        Function::Match | Function::Search => {
            let (text, source) = (single(first), operands.next().and_then(single));
            let made = match (pattern, source.as_ref().and_then(text_of)) {
                (None, Some(source)) => Expression::new(source, function == Function::Match),
                _ => None,
            };
            let text = text.as_ref().and_then(text_of);
            let matched =
                pattern.or(made.as_ref()).zip(text).is_some_and(|(pattern, text)| pattern.is_match(text));
            Operand::Value(Value::Bool(matched))
        }
    })
}

fn text_of<'v>(value: &'v Value<'_>) -> Option<&'v str> {
    match value {
        Value::Text(text) => Some(text),
        Value::Owned(text) => Some(text),
        _ => None,
    }
}

fn compare<'a>(
    left: Option<&Value<'a>>,
    operator: Comparison,
    right: Option<&Value<'a>>,
    context: &Context<'a, '_>,
) -> bool {
    let equal = || match (left, right) {
        (None, None) => true,
        (Some(left), Some(right)) => equals(left, right, context),
        _ => false,
    };
    let less = |a: Option<&Value<'a>>, b: Option<&Value<'a>>| {
        a.zip(b).is_some_and(|(a, b)| order(a, b) == Some(Ordering::Less))
    };
    match operator {
        Comparison::Equal => equal(),
        Comparison::NotEqual => !equal(),
        Comparison::Less => less(left, right),
        Comparison::LessEqual => less(left, right) || equal(),
        Comparison::Greater => less(right, left),
        Comparison::GreaterEqual => less(right, left) || equal(),
    }
}

/// A bool only equals a bool, but inside a container `True` equals `1`, as Python has it.
fn equals<'a>(left: &Value<'a>, right: &Value<'a>, context: &Context<'a, '_>) -> bool {
    match (left, right) {
        (Value::Bool(left), Value::Bool(right)) => left == right,
        (Value::Bool(_), _) | (_, Value::Bool(_)) => false,
        _ => python_equals(left, right, context),
    }
}

fn python_equals<'a>(left: &Value<'a>, right: &Value<'a>, context: &Context<'a, '_>) -> bool {
    match (left, right) {
        (Value::Null, Value::Null) => true,
        (Value::Node(left), Value::Node(right)) => nodes_equal(*left, *right, context),
        _ => match (text_of(left), text_of(right)) {
            (Some(left), Some(right)) => left == right,
            (None, None) => order(left, right) == Some(Ordering::Equal),
            _ => false,
        },
    }
}

fn nodes_equal<'a>(left: Node<'a>, right: Node<'a>, context: &Context<'a, '_>) -> bool {
    let named = |node: Node<'a>| {
        let mut members: Vec<(Option<Box<str>>, Node<'a>)> = Vec::new();
        let _: ControlFlow<()> = context.children(node, &mut |name, child| {
            members.push((name.map(Into::into), child));
            ControlFlow::Continue(())
        });
        members
    };
    let (left_members, right_members) = (named(left), named(right));
    let pair = |at: usize, name: &Option<Box<str>>| match name {
        Some(_) => right_members.iter().find(|(other, _)| other == name),
        None => right_members.get(at),
    };
    left.is_list() == right.is_list()
        && left_members.len() == right_members.len()
        && left_members.iter().enumerate().all(|(at, (name, child))| {
            pair(at, name).is_some_and(|(_, other)| python_equals(&value(*child), &value(*other), context))
        })
}

/// Texts by code point, numbers exactly, a bool being 0 or 1.
fn order(left: &Value<'_>, right: &Value<'_>) -> Option<Ordering> {
    if let (Some(left), Some(right)) = (text_of(left), text_of(right)) {
        return Some(left.cmp(right));
    }
    match (number(left)?, number(right)?) {
        (Number::Integer(left), Number::Integer(right)) => Some(left.cmp(&right)),
        (Number::Float(left), Number::Float(right)) => left.partial_cmp(&right),
        (Number::Integer(left), Number::Float(right)) => order_mixed(&left, right),
        (Number::Float(left), Number::Integer(right)) => order_mixed(&right, left).map(Ordering::reverse),
    }
}

enum Number {
    Integer(Integer),
    Float(f64),
}

fn number(value: &Value<'_>) -> Option<Number> {
    match value {
        Value::Bool(bool) => Some(Number::Integer(Integer::Small(i64::from(*bool)))),
        Value::Integer(number) => Some(Number::Integer(number.clone())),
        Value::Float(number) => Some(Number::Float(*number)),
        _ => None,
    }
}

fn order_mixed(left: &Integer, right: f64) -> Option<Ordering> {
    let left = match left {
        Integer::Small(number) => BigInt::from(*number),
        Integer::Big(number) => number.clone(),
    };
    match BigInt::from_f64(right) {
        Some(floor) => {
            let by_whole = left.cmp(&floor);
            // `from_f64` cuts towards zero: the rest decides where the whole parts are equal.
            let rest = right - floor.to_f64().unwrap_or(right);
            Some(by_whole.then(0.0_f64.partial_cmp(&rest)?))
        }
        None if right.is_nan() => None,
        None => Some(if right > 0.0 { Ordering::Less } else { Ordering::Greater }),
    }
}
