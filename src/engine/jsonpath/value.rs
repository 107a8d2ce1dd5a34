//! Values of filter expressions: conversion, comparison and truth, as jsonpath-rfc9535 defines them.
use std::borrow::Cow;
use std::cmp::Ordering;
use std::ops::ControlFlow;

use num_bigint::BigInt;
use num_traits::{FromPrimitive as _, ToPrimitive as _};

use crate::engine::identity::TraitValue;
use crate::engine::jsonpath::syntax::FilterComparison;
use crate::engine::jsonpath::tree::{Branch, Context, TreeNode};
use crate::python::number::{Integer, int_from_text};

/// Bytes of a text that are counted or compared in one step.
const TEXT_BYTES_PER_STEP: usize = 64;
/// Digits of a large integer, squared, that are parsed in one step.
const LARGE_DIGITS_PER_STEP: usize = 20_000;

/// The result of an expression.
pub enum PathOperand<'a> {
    Nothing,
    Nodes(Vec<TreeNode<'a>>),
    Value(PathValue<'a>),
}

/// A single value.
pub enum PathValue<'a> {
    Null,
    Bool(bool),
    Integer(Cow<'a, Integer>),
    Float(f64),
    Text(&'a str),
    /// A list or an object.
    Node(TreeNode<'a>),
}

impl PathOperand<'_> {
    pub fn is_truthy(&self) -> bool {
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

pub fn small<'a>(number: i64) -> PathValue<'a> {
    PathValue::Integer(Cow::Owned(Integer::Small(number)))
}

/// Parses the digits of a large integer, which takes time quadratic in their number.
fn large<'a>(digits: &str, context: &Context<'_, '_>) -> PathValue<'a> {
    if !context.steps.spend(digits.len() * digits.len() / LARGE_DIGITS_PER_STEP) {
        return PathValue::Null;
    }
    int_from_text(digits).map_or(PathValue::Null, |number| PathValue::Integer(Cow::Owned(number)))
}

pub fn value<'a>(node: TreeNode<'a>, context: &Context<'_, '_>) -> PathValue<'a> {
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

/// The single value of an operand, if it has one.
pub fn single<'a>(operand: PathOperand<'a>, context: &Context<'_, '_>) -> Option<PathValue<'a>> {
    match operand {
        PathOperand::Nothing => None,
        PathOperand::Nodes(nodes) => nodes.first().map(|node| value(*node, context)),
        PathOperand::Value(value) => Some(value),
    }
}

/// The number of characters of a text; 0 if there are not enough steps left to count them.
pub fn length(text: &str, context: &Context<'_, '_>) -> usize {
    if context.steps.spend(text.len() / TEXT_BYTES_PER_STEP) { text.chars().count() } else { 0 }
}

pub fn text_of<'v>(value: &PathValue<'v>) -> Option<&'v str> {
    match value {
        PathValue::Text(text) => Some(text),
        _ => None,
    }
}

pub fn compare<'a>(
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

/// A boolean equals only a boolean, but inside a list or an object `True` equals `1`, as in Python.
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

/// Compares text by code point and numbers exactly; a boolean is 0 or 1.
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
        Some(whole) => {
            let by_whole = left.cmp(&whole);
            // `from_f64` truncates towards zero: if the whole parts are equal, the fraction decides.
            let fraction = right - whole.to_f64().unwrap_or(right);
            Some(by_whole.then(0.0_f64.partial_cmp(&fraction)?))
        }
        None if right.is_nan() => None,
        None => Some(if right > 0.0 { Ordering::Less } else { Ordering::Greater }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::jsonpath::flag::{FlagLookup, FlagResult};
    use crate::engine::jsonpath::tree::Tree;
    use crate::step_budget::StepBudget;

    struct NoFlags;

    impl<'a> FlagLookup<'a> for NoFlags {
        fn resolve(&mut self, _name: &str) -> Option<FlagResult<'a>> {
            None
        }
        fn resolved(&self, _at: usize) -> Option<FlagResult<'a>> {
            None
        }
        fn resolved_count(&self) -> usize {
            0
        }
    }

    /// 2,000 digits take 200 steps.
    #[test]
    fn a_large_integer_is_charged_by_the_square_of_its_digits() {
        let (tree, digits) = (Tree::new("{}"), "9".repeat(2000));
        for (steps, is_parsed) in [(199, false), (200, true)] {
            let steps = StepBudget::new(steps);
            let context = Context { tree: &tree, subject: None, flags: &mut NoFlags, steps: &steps };
            let number = value(TreeNode::Scalar(TraitValue::BigInt(&digits)), &context);
            assert_eq!(matches!(number, PathValue::Integer(_)), is_parsed);
            assert_eq!((steps.left(), steps.is_exceeded()), (0, !is_parsed));
        }
    }
}
