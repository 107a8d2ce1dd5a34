//! Evaluates a query: walks a path over the context and returns the first node.
//!
//! Nodes are visited in the order of jsonpath-rfc9535 and as lazily: a flag after the first node is not
//! resolved. Descent is bounded as there. Every node visited is a step of the request's budget.
use std::borrow::Cow;
use std::ops::ControlFlow;

use crate::engine::jsonpath::iregexp::IRegexp;
use crate::engine::jsonpath::syntax::{FilterTest, Function, Literal, Path, PathSegment, Selector};
use crate::engine::jsonpath::tree::{Branch, Context, TreeNode};
use crate::engine::jsonpath::value::{
    PathOperand, PathValue, compare, length, single, small, text_of, value,
};

/// Levels below the root that a descent visits (`max_recursion_depth`). Beyond, the query finds nothing.
const DESCENT_DEPTH_MAX: usize = 100;

/// Why a walk ended early.
enum PathStop {
    /// The visitor has what it needs.
    Enough,
    /// The Python package raises an error.
    Raised,
    OutOfSteps,
}

/// The steps of the request's budget did not suffice for the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfSteps;

type Flow = ControlFlow<PathStop>;

/// The first node that `path` finds.
pub fn first<'a>(path: &'a Path, context: &mut Context<'a, '_>) -> Result<Option<TreeNode<'a>>, OutOfSteps> {
    let mut found = None;
    let flow = walk(&path.segments, TreeNode::Root, context, &mut |_, node| {
        found = Some(node);
        ControlFlow::Break(PathStop::Enough)
    });
    match flow {
        // Comparisons end early without an error.
        _ if context.steps.is_exceeded() => Err(OutOfSteps),
        ControlFlow::Break(PathStop::Raised | PathStop::OutOfSteps) => Ok(None),
        ControlFlow::Break(PathStop::Enough) | ControlFlow::Continue(()) => Ok(found),
    }
}

type Visit<'v, 'a, 'c> = &'v mut dyn FnMut(&mut Context<'a, 'c>, TreeNode<'a>) -> Flow;

/// Spends steps of the request's budget.
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
    each_child(node, context, &mut |context, child| {
        if child.is_object() || child.is_list() {
            descend(segment, rest, child, depth + 1, context, visit)?;
        }
        ControlFlow::Continue(())
    })
}

/// Calls `visit` with each child, a step each. Python lists them before it visits the first, so flags that
/// are resolved in the meantime, which follow the others, are not among them.
fn each_child<'a, 'c>(
    node: TreeNode<'a>,
    context: &mut Context<'a, 'c>,
    visit: &mut dyn FnMut(&mut Context<'a, 'c>, TreeNode<'a>) -> Flow,
) -> Flow {
    let count = context.count(node);
    spend(1 + count, context)?;
    for at in 0..count {
        let Some(child) = context.child_at(node, at) else { break };
        visit(context, child)?;
    }
    ControlFlow::Continue(())
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
        Selector::Wild => each_child(node, context, &mut |context, child| walk(rest, child, context, visit)),
        Selector::Filter(test) => each_child(node, context, &mut |context, child| {
            let operand = match evaluate(test, child, context) {
                Ok(operand) => operand,
                Err(stop) => return ControlFlow::Break(stop),
            };
            if operand.is_truthy() { walk(rest, child, context, visit) } else { ControlFlow::Continue(()) }
        }),
        Selector::Index(_) | Selector::Slice { .. } => {
            let TreeNode::Branch(Branch::List(items)) = node else { return ControlFlow::Continue(()) };
            let positions = positions(selector, items.len());
            spend(positions.len(), context)?;
            positions
                .into_iter()
                .filter_map(|at| items.get(at))
                .try_for_each(|item| walk(rest, TreeNode::Branch(item), context, visit))
        }
    }
}

/// The positions that an index or a slice selects, as Python's `slice.indices`.
fn positions(selector: &Selector, count: usize) -> Vec<usize> {
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

/// Evaluates a filter expression at a node.
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
        // `@` is the value itself, and its truth is that of the value.
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
        // Both sides are evaluated, without a short circuit.
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
        // Nodes that are only counted are not collected.
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
            let compiled = match (pattern, source.as_ref().and_then(text_of)) {
                (None, Some(source)) => {
                    IRegexp::of_request(source, function == Function::Match, context.steps)
                }
                _ => None,
            };
            let text = text.as_ref().and_then(text_of);
            let matched = pattern
                .or(compiled.as_ref())
                .zip(text)
                .is_some_and(|(pattern, text)| pattern.is_match_within(text, context.steps));
            PathOperand::Value(PathValue::Bool(matched))
        }
    })
}
