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
use crate::engine::jsonpath::iregexp::IRegexp;
use crate::engine::jsonpath::syntax::{
    FilterComparison, FilterTest, Function, Literal, Path, PathSegment, Selector,
};
use crate::engine::jsonpath::tree::{Branch, Context, TreeNode};
use crate::python::number::{Integer, int_from_text};

/// Levels below the root that a descent visits (`max_recursion_depth`). Beyond, the query fails.
const DESCENT_DEPTH_MAX: usize = 100;
/// Bytes of a text that are counted or compared in one step.
const TEXT_BYTES_PER_STEP: usize = 64;
/// Digits of a large integer, squared, that are read in one step.
const LARGE_DIGITS_PER_STEP: usize = 20_000;

/// The walk is over: the consumer has enough, the package raises, or the request's steps are spent.
enum PathStop {
    Enough,
    Raised,
    OutOfSteps,
}

/// The request's steps were spent before the query had its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfSteps;

type Flow = ControlFlow<PathStop>;

/// The first node, if there is one.
pub fn first<'a>(path: &'a Path, context: &mut Context<'a, '_>) -> Result<Option<TreeNode<'a>>, OutOfSteps> {
    let mut found = None;
    let flow = walk(&path.segments, TreeNode::Root, context, &mut |_, node| {
        found = Some(node);
        ControlFlow::Break(PathStop::Enough)
    });
    match flow {
        // Comparisons stop early without saying so.
        _ if context.steps.is_exceeded() => Err(OutOfSteps),
        ControlFlow::Break(PathStop::Raised | PathStop::OutOfSteps) => Ok(None),
        ControlFlow::Break(PathStop::Enough) | ControlFlow::Continue(()) => Ok(found),
    }
}

type Visit<'v, 'a, 'c> = &'v mut dyn FnMut(&mut Context<'a, 'c>, TreeNode<'a>) -> Flow;

/// Spends steps of the request.
fn spend(steps: usize, context: &Context<'_, '_>) -> Flow {
    if context.steps.spend(steps) {
        ControlFlow::Continue(())
    } else {
        ControlFlow::Break(PathStop::OutOfSteps)
    }
}

fn walk<'a, 'c>(
    segments: &'a [PathSegment],
    node: TreeNode<'a>,
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
    segment: &'a PathSegment,
    rest: &'a [PathSegment],
    node: TreeNode<'a>,
    depth: usize,
    context: &mut Context<'a, 'c>,
    visit: Visit<'_, 'a, 'c>,
) -> Flow {
    if depth > DESCENT_DEPTH_MAX {
        return ControlFlow::Break(PathStop::Raised);
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
fn children<'a>(node: TreeNode<'a>, context: &Context<'a, '_>) -> ControlFlow<PathStop, Vec<TreeNode<'a>>> {
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
    rest: &'a [PathSegment],
    node: TreeNode<'a>,
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
            let TreeNode::Branch(Branch::List(items)) = node else { return ControlFlow::Continue(()) };
            let chosen = chosen(selector, items.len());
            spend(chosen.len(), context)?;
            chosen
                .into_iter()
                .filter_map(|at| items.get(at))
                .try_for_each(|item| walk(rest, TreeNode::Branch(item), context, visit))
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
enum PathOperand<'a> {
    Nothing,
    Nodes(Vec<TreeNode<'a>>),
    Value(PathValue<'a>),
}

/// A single value.
enum PathValue<'a> {
    Null,
    Bool(bool),
    Integer(Cow<'a, Integer>),
    Float(f64),
    Text(&'a str),
    /// A list or an object.
    Node(TreeNode<'a>),
}

impl PathOperand<'_> {
    fn is_truthy(&self) -> bool {
        match self {
            PathOperand::Nothing => false,
            PathOperand::Nodes(nodes) => !nodes.is_empty(),
            PathOperand::Value(value) => match value {
                PathValue::Null | PathValue::Node(_) => true,
                PathValue::Bool(bool) => *bool,
                PathValue::Integer(number) => **number != Integer::Small(0),
                PathValue::Float(number) => *number != 0.0,
                PathValue::Text(text) => !text.is_empty(),
            },
        }
    }
}

fn small<'a>(number: i64) -> PathValue<'a> {
    PathValue::Integer(Cow::Owned(Integer::Small(number)))
}

/// Reading digits takes time quadratic in their number.
fn large<'a>(digits: &str, context: &Context<'_, '_>) -> PathValue<'a> {
    if !context.steps.spend(digits.len() * digits.len() / LARGE_DIGITS_PER_STEP) {
        return PathValue::Null;
    }
    int_from_text(digits).map_or(PathValue::Null, |number| PathValue::Integer(Cow::Owned(number)))
}

fn value<'a>(node: TreeNode<'a>, context: &Context<'_, '_>) -> PathValue<'a> {
    match node {
        TreeNode::Branch(branch) => match branch {
            Branch::Null => PathValue::Null,
            Branch::Bool(bool) => PathValue::Bool(*bool),
            Branch::Int(number) => small(*number),
            Branch::Large(digits) => large(digits, context),
            Branch::Float(number) => PathValue::Float(*number),
            Branch::Text(text) => PathValue::Text(text),
            Branch::List(_) | Branch::Object(_) => PathValue::Node(node),
        },
        TreeNode::Scalar(scalar) => match scalar {
            TraitValue::Null => PathValue::Null,
            TraitValue::Bool(bool) => PathValue::Bool(bool),
            TraitValue::Int(number) => small(number),
            TraitValue::BigInt(digits) => large(digits, context),
            TraitValue::Float(number) => PathValue::Float(number),
            TraitValue::Text(text) => PathValue::Text(text),
        },
        _ => PathValue::Node(node),
    }
}

/// What a test is worth at a node.
fn evaluate<'a>(
    test: &'a FilterTest,
    current: TreeNode<'a>,
    context: &mut Context<'a, '_>,
) -> Result<PathOperand<'a>, PathStop> {
    if !context.steps.spend(1) {
        return Err(PathStop::OutOfSteps);
    }
    Ok(match test {
        FilterTest::Literal(literal) => PathOperand::Value(match literal {
            Literal::Null => PathValue::Null,
            Literal::Bool(bool) => PathValue::Bool(*bool),
            Literal::Integer(number) => PathValue::Integer(Cow::Borrowed(number)),
            Literal::Float(number) => PathValue::Float(*number),
            Literal::Text(text) => PathValue::Text(text),
        }),
        // `@` alone is the value itself, and a falsy one is false.
        FilterTest::Path { from_root: false, path } if !current.is_object() && !current.is_list() => {
            if path.segments.is_empty() {
                PathOperand::Value(value(current, context))
            } else {
                PathOperand::Nodes(Vec::new())
            }
        }
        FilterTest::Path { from_root, path } => {
            let mut nodes = Vec::new();
            let start = if *from_root { TreeNode::Root } else { current };
            let flow = walk(&path.segments, start, context, &mut |_, node| {
                nodes.push(node);
                ControlFlow::Continue(())
            });
            if let ControlFlow::Break(stop) = flow {
                return Err(stop);
            }
            PathOperand::Nodes(nodes)
        }
        FilterTest::Function { function, arguments, pattern } => {
            call(*function, arguments, pattern.as_deref(), current, context)?
        }
        FilterTest::Not(test) => {
            PathOperand::Value(PathValue::Bool(!evaluate(test, current, context)?.is_truthy()))
        }
        // Both sides are evaluated, whatever the first one is.
        FilterTest::And(left, right) | FilterTest::Or(left, right) => {
            let left = evaluate(left, current, context)?.is_truthy();
            let right = evaluate(right, current, context)?.is_truthy();
            PathOperand::Value(PathValue::Bool(if matches!(test, FilterTest::And(..)) {
                left && right
            } else {
                left || right
            }))
        }
        FilterTest::Compare { left, operator, right } => {
            let left = single(evaluate(left, current, context)?, context);
            let right = single(evaluate(right, current, context)?, context);
            PathOperand::Value(PathValue::Bool(compare(left.as_ref(), *operator, right.as_ref(), context)))
        }
    })
}

/// The one value of an operand; what has none is Nothing.
fn single<'a>(operand: PathOperand<'a>, context: &Context<'_, '_>) -> Option<PathValue<'a>> {
    match operand {
        PathOperand::Nothing => None,
        PathOperand::Nodes(nodes) => nodes.first().map(|node| value(*node, context)),
        PathOperand::Value(value) => Some(value),
    }
}

fn call<'a>(
    function: Function,
    arguments: &'a [FilterTest],
    pattern: Option<&IRegexp>,
    current: TreeNode<'a>,
    context: &mut Context<'a, '_>,
) -> Result<PathOperand<'a>, PathStop> {
    let integer = |count: usize| PathOperand::Value(small(i64::try_from(count).unwrap_or(i64::MAX)));
    if let (Function::Count, [FilterTest::Path { from_root, path }]) = (function, arguments)
        && (*from_root || current.is_object() || current.is_list())
    {
        // Nodes that are only counted are not kept.
        let mut count = 0;
        let start = if *from_root { TreeNode::Root } else { current };
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
    let first = operands.next().ok_or(PathStop::Raised)?;
    Ok(match function {
        Function::Count => match first {
            PathOperand::Nodes(nodes) => integer(nodes.len()),
            PathOperand::Value(PathValue::Text(text)) => integer(length(text, context)),
            _ => return Err(PathStop::Raised),
        },
        Function::Value => match first {
            PathOperand::Nodes(nodes) => match nodes.as_slice() {
                [only] => PathOperand::Value(value(*only, context)),
                _ => PathOperand::Nothing,
            },
            PathOperand::Value(PathValue::Text(text)) if length(text, context) != 1 => PathOperand::Nothing,
            _ => return Err(PathStop::Raised),
        },
        Function::Length => match single(first, context) {
            Some(PathValue::Text(text)) => integer(length(text, context)),
            Some(PathValue::Node(node)) => integer(context.count(node)),
            _ => PathOperand::Nothing,
        },
        Function::Match | Function::Search => {
            let text = single(first, context);
            let source = operands.next().and_then(|operand| single(operand, context));
            let made = match (pattern, source.as_ref().and_then(text_of)) {
                (None, Some(source)) => {
                    IRegexp::of_request(source, function == Function::Match, context.steps)
                }
                _ => None,
            };
            let text = text.as_ref().and_then(text_of);
            let matched = pattern
                .or(made.as_ref())
                .zip(text)
                .is_some_and(|(pattern, text)| pattern.is_match_within(text, context.steps));
            PathOperand::Value(PathValue::Bool(matched))
        }
    })
}

/// Characters of a text; the steps that counting them costs are spent.
fn length(text: &str, context: &Context<'_, '_>) -> usize {
    if context.steps.spend(text.len() / TEXT_BYTES_PER_STEP) { text.chars().count() } else { 0 }
}

fn text_of<'v>(value: &PathValue<'v>) -> Option<&'v str> {
    match value {
        PathValue::Text(text) => Some(text),
        _ => None,
    }
}

fn compare<'a>(
    left: Option<&PathValue<'a>>,
    operator: FilterComparison,
    right: Option<&PathValue<'a>>,
    context: &Context<'a, '_>,
) -> bool {
    let equal = || match (left, right) {
        (None, None) => true,
        (Some(left), Some(right)) => equals(left, right, context),
        _ => false,
    };
    let less = |a: Option<&PathValue<'a>>, b: Option<&PathValue<'a>>| {
        a.zip(b).is_some_and(|(a, b)| order(a, b, context) == Some(Ordering::Less))
    };
    match operator {
        FilterComparison::Equal => equal(),
        FilterComparison::NotEqual => !equal(),
        FilterComparison::Less => less(left, right),
        FilterComparison::LessEqual => less(left, right) || equal(),
        FilterComparison::Greater => less(right, left),
        FilterComparison::GreaterEqual => less(right, left) || equal(),
    }
}

/// A bool only equals a bool, but inside a container `True` equals `1`, as Python has it.
fn equals<'a>(left: &PathValue<'a>, right: &PathValue<'a>, context: &Context<'a, '_>) -> bool {
    match (left, right) {
        (PathValue::Bool(left), PathValue::Bool(right)) => left == right,
        (PathValue::Bool(_), _) | (_, PathValue::Bool(_)) => false,
        _ => python_equals(left, right, context),
    }
}

fn python_equals<'a>(left: &PathValue<'a>, right: &PathValue<'a>, context: &Context<'a, '_>) -> bool {
    match (left, right) {
        (PathValue::Null, PathValue::Null) => true,
        (PathValue::Node(left), PathValue::Node(right)) => nodes_equal(*left, *right, context),
        _ => match (text_of(left), text_of(right)) {
            (None, Some(_)) | (Some(_), None) => false,
            _ => order(left, right, context) == Some(Ordering::Equal),
        },
    }
}

fn nodes_equal<'a>(left: TreeNode<'a>, right: TreeNode<'a>, context: &Context<'a, '_>) -> bool {
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
fn order(left: &PathValue<'_>, right: &PathValue<'_>, context: &Context<'_, '_>) -> Option<Ordering> {
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

fn number<'v>(value: &'v PathValue<'_>) -> Option<Number<'v>> {
    match value {
        PathValue::Bool(bool) => Some(Number::Integer(Cow::Owned(Integer::Small(i64::from(*bool))))),
        PathValue::Integer(number) => Some(Number::Integer(Cow::Borrowed(number))),
        PathValue::Float(number) => Some(Number::Float(*number)),
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
