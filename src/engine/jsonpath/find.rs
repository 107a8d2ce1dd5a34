//! Walks a path and finds its first node.
//!
//! In: a path and a [`Context`]. Out: the first node in the order of jsonpath-rfc9535, found as
//! lazily as it does: a flag that lies behind the first node is not resolved.
//! Invariant: descent is bounded as there; what raises in a function finds nothing.
use std::borrow::Cow;
use std::cmp::Ordering;
use std::ops::ControlFlow;

use num_bigint::BigInt;
use num_traits::{FromPrimitive as _, ToPrimitive as _};

use crate::engine::evaluate::TraitValue;
use crate::engine::jsonpath::iregexp::Expression;
use crate::engine::jsonpath::syntax::{Comparison, Function, Literal, Path, Segment, Selector, Test};
use crate::engine::jsonpath::tree::{Branch, Context, Node};
use crate::python::value::{Integer, int_from_text};

/// Levels below the root that a descent visits (`max_recursion_depth`). Beyond, the query fails.
const DESCENT_DEPTH_MAX: usize = 100;
/// Bytes of a text that are counted or compared in one step.
const TEXT_BYTES_PER_STEP: usize = 64;
/// Digits of a large integer, squared, that are read in one step.
const LARGE_DIGITS_PER_STEP: usize = 20_000;

/// The walk is over: the consumer has enough, the package raises, or the request's steps are spent.
enum Stop {
    Enough,
    Raised,
    OutOfSteps,
}

/// The request's steps were spent before the query had its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfSteps;

type Flow = ControlFlow<Stop>;

/// The first node, if there is one.
pub fn first<'a>(path: &'a Path, context: &mut Context<'a, '_>) -> Result<Option<Node<'a>>, OutOfSteps> {
    let mut found = None;
    let flow = walk(&path.segments, Node::Root, context, &mut |_, node| {
        found = Some(node);
        ControlFlow::Break(Stop::Enough)
    });
    match flow {
        // Comparisons stop early without saying so.
        _ if context.steps.is_exceeded() => Err(OutOfSteps),
        ControlFlow::Break(Stop::Raised | Stop::OutOfSteps) => Ok(None),
        ControlFlow::Break(Stop::Enough) | ControlFlow::Continue(()) => Ok(found),
    }
}

type Visit<'v, 'a, 'c> = &'v mut dyn FnMut(&mut Context<'a, 'c>, Node<'a>) -> Flow;

/// Spends steps of the request.
fn spend(steps: usize, context: &Context<'_, '_>) -> Flow {
    if context.steps.spend(steps) { ControlFlow::Continue(()) } else { ControlFlow::Break(Stop::OutOfSteps) }
}

fn walk<'a, 'c>(
    segments: &'a [Segment],
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
    segment: &'a Segment,
    rest: &'a [Segment],
    node: Node<'a>,
    depth: usize,
    context: &mut Context<'a, 'c>,
    visit: Visit<'_, 'a, 'c>,
) -> Flow {
    if depth > DESCENT_DEPTH_MAX {
        return ControlFlow::Break(Stop::Raised);
    }
    segment.selectors.iter().try_for_each(|selector| select(selector, rest, node, context, visit))?;
    for child in children(node, context)? {
        if child.is_object() || child.is_list() {
            descend(segment, rest, child, depth + 1, context, visit)?;
        }
    }
    ControlFlow::Continue(())
}

/// All children, a step for each: they are listed before the first of them is looked at.
fn children<'a>(node: Node<'a>, context: &Context<'a, '_>) -> ControlFlow<Stop, Vec<Node<'a>>> {
    let count = context.count(node);
    spend(1 + count, context)?;
    let mut all = Vec::with_capacity(count);
    let _: ControlFlow<()> = context.children(node, &mut |_, child| {
        all.push(child);
        ControlFlow::Continue(())
    });
    ControlFlow::Continue(all)
}

fn select<'a, 'c>(
    selector: &'a Selector,
    rest: &'a [Segment],
    node: Node<'a>,
    context: &mut Context<'a, 'c>,
    visit: Visit<'_, 'a, 'c>,
) -> Flow {
    spend(1, context)?;
    match selector {
        Selector::Name(name) if node.is_object() => match context.child(node, name) {
            Some(child) => walk(rest, child, context, visit),
            None => ControlFlow::Continue(()),
        },
        Selector::Name(_) => ControlFlow::Continue(()),
        Selector::Wild => {
            children(node, context)?.into_iter().try_for_each(|child| walk(rest, child, context, visit))
        }
        Selector::Filter(test) => {
            for child in children(node, context)? {
                let operand = match evaluate(test, child, context) {
                    Ok(operand) => operand,
                    Err(stop) => return ControlFlow::Break(stop),
                };
                if operand.is_truthy() {
                    walk(rest, child, context, visit)?;
                }
            }
            ControlFlow::Continue(())
        }
        Selector::Index(_) | Selector::Slice { .. } => {
            let Node::Branch(Branch::List(items)) = node else { return ControlFlow::Continue(()) };
            let chosen = chosen(selector, items.len());
            spend(chosen.len(), context)?;
            chosen
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
    Integer(Cow<'a, Integer>),
    Float(f64),
    Text(&'a str),
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
                Value::Integer(number) => **number != Integer::Small(0),
                Value::Float(number) => *number != 0.0,
                Value::Text(text) => !text.is_empty(),
            },
        }
    }
}

fn small<'a>(number: i64) -> Value<'a> {
    Value::Integer(Cow::Owned(Integer::Small(number)))
}

/// Reading digits takes time quadratic in their number.
fn large<'a>(digits: &str, context: &Context<'_, '_>) -> Value<'a> {
    if !context.steps.spend(digits.len() * digits.len() / LARGE_DIGITS_PER_STEP) {
        return Value::Null;
    }
    int_from_text(digits).map_or(Value::Null, |number| Value::Integer(Cow::Owned(number)))
}

fn value<'a>(node: Node<'a>, context: &Context<'_, '_>) -> Value<'a> {
    match node {
        Node::Branch(branch) => match branch {
            Branch::Null => Value::Null,
            Branch::Bool(bool) => Value::Bool(*bool),
            Branch::Int(number) => small(*number),
            Branch::Large(digits) => large(digits, context),
            Branch::Float(number) => Value::Float(*number),
            Branch::Text(text) => Value::Text(text),
            Branch::List(_) | Branch::Object(_) => Value::Node(node),
        },
        Node::Scalar(scalar) => match scalar {
            TraitValue::Null => Value::Null,
            TraitValue::Bool(bool) => Value::Bool(bool),
            TraitValue::Int(number) => small(number),
            TraitValue::BigInt(digits) => large(digits, context),
            TraitValue::Float(number) => Value::Float(number),
            TraitValue::Text(text) => Value::Text(text),
        },
        _ => Value::Node(node),
    }
}

/// What a test is worth at a node.
fn evaluate<'a>(
    test: &'a Test,
    current: Node<'a>,
    context: &mut Context<'a, '_>,
) -> Result<Operand<'a>, Stop> {
    if !context.steps.spend(1) {
        return Err(Stop::OutOfSteps);
    }
    Ok(match test {
        Test::Literal(literal) => Operand::Value(match literal {
            Literal::Null => Value::Null,
            Literal::Bool(bool) => Value::Bool(*bool),
            Literal::Integer(number) => Value::Integer(Cow::Borrowed(number)),
            Literal::Float(number) => Value::Float(*number),
            Literal::Text(text) => Value::Text(text),
        }),
        // `@` alone is the value itself, and a falsy one is false.
        Test::Path { from_root: false, path } if !current.is_object() && !current.is_list() => {
            if path.segments.is_empty() {
                Operand::Value(value(current, context))
            } else {
                Operand::Nodes(Vec::new())
            }
        }
        Test::Path { from_root, path } => {
            let mut nodes = Vec::new();
            let start = if *from_root { Node::Root } else { current };
            let flow = walk(&path.segments, start, context, &mut |_, node| {
                nodes.push(node);
                ControlFlow::Continue(())
            });
            if let ControlFlow::Break(stop) = flow {
                return Err(stop);
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
            let left = single(evaluate(left, current, context)?, context);
            let right = single(evaluate(right, current, context)?, context);
            Operand::Value(Value::Bool(compare(left.as_ref(), *operator, right.as_ref(), context)))
        }
    })
}

/// The one value of an operand; what has none is Nothing.
fn single<'a>(operand: Operand<'a>, context: &Context<'_, '_>) -> Option<Value<'a>> {
    match operand {
        Operand::Nothing => None,
        Operand::Nodes(nodes) => nodes.first().map(|node| value(*node, context)),
        Operand::Value(value) => Some(value),
    }
}

fn call<'a>(
    function: Function,
    arguments: &'a [Test],
    pattern: Option<&Expression>,
    current: Node<'a>,
    context: &mut Context<'a, '_>,
) -> Result<Operand<'a>, Stop> {
    let integer = |count: usize| Operand::Value(small(i64::try_from(count).unwrap_or(i64::MAX)));
    if let (Function::Count, [Test::Path { from_root, path }]) = (function, arguments)
        && (*from_root || current.is_object() || current.is_list())
    {
        // Nodes that are only counted are not kept.
        let mut count = 0;
        let start = if *from_root { Node::Root } else { current };
        return match walk(&path.segments, start, context, &mut |_, _| {
            count += 1;
            ControlFlow::Continue(())
        }) {
            ControlFlow::Break(stop) => Err(stop),
            ControlFlow::Continue(()) => Ok(integer(count)),
        };
    }
    let mut operands = Vec::new();
    for argument in arguments {
        operands.push(evaluate(argument, current, context)?);
    }
    let mut operands = operands.into_iter();
    let first = operands.next().ok_or(Stop::Raised)?;
    Ok(match function {
        Function::Count => match first {
            Operand::Nodes(nodes) => integer(nodes.len()),
            Operand::Value(Value::Text(text)) => integer(length(text, context)),
            _ => return Err(Stop::Raised),
        },
        Function::Value => match first {
            Operand::Nodes(nodes) => match nodes.as_slice() {
                [only] => Operand::Value(value(*only, context)),
                _ => Operand::Nothing,
            },
            Operand::Value(Value::Text(text)) if length(text, context) != 1 => Operand::Nothing,
            _ => return Err(Stop::Raised),
        },
        Function::Length => match single(first, context) {
            Some(Value::Text(text)) => integer(length(text, context)),
            Some(Value::Node(node)) => integer(context.count(node)),
            _ => Operand::Nothing,
        },
        Function::Match | Function::Search => {
            let text = single(first, context);
            let source = operands.next().and_then(|operand| single(operand, context));
            let made = match (pattern, source.as_ref().and_then(text_of)) {
                (None, Some(source)) => {
                    Expression::of_request(source, function == Function::Match, context.steps)
                }
                _ => None,
            };
            let text = text.as_ref().and_then(text_of);
            let matched = pattern
                .or(made.as_ref())
                .zip(text)
                .is_some_and(|(pattern, text)| pattern.is_match_within(text, context.steps));
            Operand::Value(Value::Bool(matched))
        }
    })
}

/// Characters of a text; the steps that counting them costs are spent.
fn length(text: &str, context: &Context<'_, '_>) -> usize {
    if context.steps.spend(text.len() / TEXT_BYTES_PER_STEP) { text.chars().count() } else { 0 }
}

fn text_of<'v>(value: &Value<'v>) -> Option<&'v str> {
    match value {
        Value::Text(text) => Some(text),
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
        a.zip(b).is_some_and(|(a, b)| order(a, b, context) == Some(Ordering::Less))
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
            (None, Some(_)) | (Some(_), None) => false,
            _ => order(left, right, context) == Some(Ordering::Equal),
        },
    }
}

fn nodes_equal<'a>(left: Node<'a>, right: Node<'a>, context: &Context<'a, '_>) -> bool {
    let count = context.count(left);
    if left.is_list() != right.is_list() || count != context.count(right) || !context.steps.spend(1 + count) {
        return false;
    }
    let mut at = 0;
    let flow = context.children(left, &mut |name, child| {
        let other = match name {
            Some(name) => context.member(right, name),
            None => context.item(right, at),
        };
        at += 1;
        let is_equal =
            other.is_some_and(|other| python_equals(&value(child, context), &value(other, context), context));
        if is_equal { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    flow.is_continue()
}

/// Texts by code point, numbers exactly, a bool being 0 or 1.
fn order(left: &Value<'_>, right: &Value<'_>, context: &Context<'_, '_>) -> Option<Ordering> {
    if let (Some(left), Some(right)) = (text_of(left), text_of(right)) {
        let bytes = left.len().min(right.len());
        return context.steps.spend(bytes / TEXT_BYTES_PER_STEP).then(|| left.cmp(right));
    }
    match (number(left)?, number(right)?) {
        (Number::Integer(left), Number::Integer(right)) => Some(left.cmp(&right)),
        (Number::Float(left), Number::Float(right)) => left.partial_cmp(&right),
        (Number::Integer(left), Number::Float(right)) => order_mixed(&left, right),
        (Number::Float(left), Number::Integer(right)) => order_mixed(&right, left).map(Ordering::reverse),
    }
}

enum Number<'v> {
    Integer(Cow<'v, Integer>),
    Float(f64),
}

fn number<'v>(value: &'v Value<'_>) -> Option<Number<'v>> {
    match value {
        Value::Bool(bool) => Some(Number::Integer(Cow::Owned(Integer::Small(i64::from(*bool))))),
        Value::Integer(number) => Some(Number::Integer(Cow::Borrowed(number))),
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
