//! The backtracking matcher, for patterns that `linear` does not support.
//!
//! Alternatives are tried in the order of Python's `re`, so that groups capture the same text. A match
//! spends at most [`PATTERN_STEPS_MAX`] steps and then counts as no match, which also bounds its memory.
//! Recursion is as deep as lookaround and atomic groups are nested.
use crate::limits::PATTERN_STEPS_MAX;
use crate::python::regex::program::{Instruction, RegexProgram};
use crate::python::regex::syntax::{Fold, Greed, Position, REPEAT_MAX};
use crate::python::unicode;
use crate::step_budget::StepBudget;

/// An entry of the backtracking stack: state to restore, or an alternative to try.
#[derive(Clone, Copy)]
enum Choice {
    Resume {
        at: usize,
        position: usize,
    },
    RestoreSlot {
        slot: usize,
        old: Option<usize>,
    },
    RestoreLoop {
        index: usize,
        old: LoopState,
    },
    /// A greedy repeat of single characters that can shrink down to offset `low`.
    Shrink {
        at: usize,
        low: usize,
        position: usize,
    },
    /// A lazy repeat that can grow by `left` characters.
    Grow {
        at: usize,
        set: usize,
        left: u32,
        position: usize,
    },
    /// Leave a loop.
    Leave {
        at: usize,
        position: usize,
    },
    /// Start another iteration of a loop.
    Enter {
        index: usize,
        body: usize,
        count: u32,
        position: usize,
    },
}

/// The iterations that a loop has completed, and the start of the last one beyond its minimum.
#[derive(Clone, Copy, Default)]
struct LoopState {
    count: u32,
    last: Option<usize>,
}

/// Why matching stopped: this path failed, or no steps are left.
enum MatchStop {
    Failed,
    OutOfSteps,
}

struct Matcher<'a> {
    program: &'a RegexProgram,
    text: &'a str,
    /// Start and end offset of each group.
    slots: Vec<Option<usize>>,
    loops: Vec<LoopState>,
    choices: Vec<Choice>,
    steps_left: u32,
}

/// Whether `program` matches at the start of `text` within [`PATTERN_STEPS_MAX`] and `budget`.
pub fn is_match(program: &RegexProgram, text: &str, budget: &StepBudget) -> bool {
    // The cost of initializing slots and loops.
    if !budget.spend((program.groups + program.loops) / 8) {
        return false;
    }
    let steps = PATTERN_STEPS_MAX.min(budget.left());
    let mut matcher = Matcher {
        program,
        text,
        slots: vec![None; program.groups * 2],
        loops: vec![LoopState::default(); program.loops],
        choices: Vec::new(),
        steps_left: steps,
    };
    let result = matcher.run(0, 0);
    let is_out_of_budget = matches!(result, Err(MatchStop::OutOfSteps)) && steps < PATTERN_STEPS_MAX;
    let taken = (steps - matcher.steps_left) as usize;
    // Overspend, so that the budget reports that it ended this match.
    budget.spend(if is_out_of_budget { taken.saturating_add(1) } else { taken });
    result.is_ok()
}

impl Matcher<'_> {
    /// Spends additional steps.
    fn spend(&mut self, steps: usize) -> Result<(), MatchStop> {
        let left = u32::try_from(steps).ok().and_then(|steps| self.steps_left.checked_sub(steps));
        self.steps_left = left.unwrap_or(0);
        left.map(drop).ok_or(MatchStop::OutOfSteps)
    }

    /// Matches from an instruction to the next `Done` and returns the offset there. Drops the alternatives
    /// of the matched part, which cannot be backtracked into, but keeps its entries that restore state.
    fn run(&mut self, at: usize, position: usize) -> Result<usize, MatchStop> {
        let base = self.choices.len();
        let (mut at, mut position) = (at, position);
        loop {
            self.steps_left = self.steps_left.checked_sub(1).ok_or(MatchStop::OutOfSteps)?;
            let step = match self.program.instructions.get(at) {
                None | Some(Instruction::Done) => {
                    self.drop_alternatives(base);
                    return Ok(position);
                }
                Some(instruction) => self.step(*instruction, at, position),
            };
            (at, position) = match step {
                Ok(next) => next,
                Err(MatchStop::OutOfSteps) => return Err(MatchStop::OutOfSteps),
                Err(MatchStop::Failed) => self.backtrack(base)?,
            };
        }
    }

    /// Removes the alternatives from `base` on; keeps entries that restore state.
    fn drop_alternatives(&mut self, base: usize) {
        let mut kept = base;
        for at in base..self.choices.len() {
            if let Some(choice @ (Choice::RestoreSlot { .. } | Choice::RestoreLoop { .. })) =
                self.choices.get(at).copied()
            {
                self.choices[kept] = choice;
                kept += 1;
            }
        }
        self.choices.truncate(kept);
    }

    /// Backtracks to the newest alternative above `base`.
    fn backtrack(&mut self, base: usize) -> Result<(usize, usize), MatchStop> {
        loop {
            if self.choices.len() <= base {
                return Err(MatchStop::Failed);
            }
            self.steps_left = self.steps_left.checked_sub(1).ok_or(MatchStop::OutOfSteps)?;
            match self.choices.pop().ok_or(MatchStop::Failed)? {
                Choice::RestoreSlot { slot, old } => self.slots[slot] = old,
                Choice::RestoreLoop { index, old } => self.loops[index] = old,
                Choice::Resume { at, position } | Choice::Leave { at, position } => {
                    return Ok((at, position));
                }
                Choice::Shrink { at, low, position } => {
                    let Some(before) = self.before(position).filter(|before| *before >= low) else {
                        continue;
                    };
                    if before > low {
                        self.choices.push(Choice::Shrink { at, low, position: before });
                    }
                    return Ok((at, before));
                }
                Choice::Grow { at, set, left, position } => {
                    let Some(after) = self.take(set, position) else { continue };
                    if left > 1 {
                        let left = if left == REPEAT_MAX { left } else { left - 1 };
                        self.choices.push(Choice::Grow { at, set, left, position: after });
                    }
                    return Ok((at, after));
                }
                Choice::Enter { index, body, count, position } => {
                    self.set_loop(index, LoopState { count, last: Some(position) });
                    return Ok((body, position));
                }
            }
        }
    }

    /// Executes one instruction; returns the next instruction and offset.
    fn step(
        &mut self,
        instruction: Instruction,
        at: usize,
        position: usize,
    ) -> Result<(usize, usize), MatchStop> {
        let next = at + 1;
        match instruction {
            Instruction::Set(set) => {
                self.take(set, position).map(|after| (next, after)).ok_or(MatchStop::Failed)
            }
            Instruction::Position(expected) if self.is_at(expected, position) => Ok((next, position)),
            Instruction::Save(slot) => {
                self.save(slot, position);
                Ok((next, position))
            }
            Instruction::Try { other } => {
                self.choices.push(Choice::Resume { at: other, position });
                Ok((next, position))
            }
            Instruction::Jump(target) => Ok((target, position)),
            Instruction::RepeatSet { set, min, max, greed } => {
                self.repeat_set(set, min, max, greed, next, position).map(|after| (next, after))
            }
            Instruction::LoopStart { index, until } => {
                self.set_loop(index, LoopState::default());
                self.next_iteration(until, position, 0)
            }
            Instruction::LoopUntil { index, .. } => {
                let count = self.loops.get(index).map_or(0, |state| state.count).saturating_add(1);
                self.next_iteration(at, position, count)
            }
            Instruction::LoopPossessive { body_end, min, max } => {
                self.possessive(next, min, max, position).map(|after| (body_end, after))
            }
            Instruction::Atomic { end } => self.run(next, position).map(|after| (end, after)),
            Instruction::Look { behind, negated, end } => {
                let found = self.look(next, behind, position)?;
                if found == negated { Err(MatchStop::Failed) } else { Ok((end, position)) }
            }
            Instruction::Backreference { group, fold } => {
                self.backreference(group, fold, position).map(|after| (next, after))
            }
            Instruction::Conditional { group, no } => {
                Ok((if self.group(group).is_some() { next } else { no }, position))
            }
            Instruction::Position(_) | Instruction::Done => Err(MatchStop::Failed),
        }
    }

    /// Continues a loop after `count` iterations: starts another one or leaves.
    fn next_iteration(
        &mut self,
        until: usize,
        position: usize,
        count: u32,
    ) -> Result<(usize, usize), MatchStop> {
        let Some(Instruction::LoopUntil { index, body, min, max, lazy }) =
            self.program.instructions.get(until).copied()
        else {
            return Err(MatchStop::Failed);
        };
        let last = self.loops.get(index).and_then(|state| state.last);
        if count < min {
            self.set_loop(index, LoopState { count, last });
            return Ok((body, position));
        }
        // An iteration that consumed nothing is not repeated.
        let may_enter = (count < max || max == REPEAT_MAX) && last != Some(position);
        match (may_enter, lazy) {
            (false, _) => {}
            (true, true) => self.choices.push(Choice::Enter { index, body, count, position }),
            (true, false) => {
                self.choices.push(Choice::Leave { at: until + 1, position });
                self.set_loop(index, LoopState { count, last: Some(position) });
                return Ok((body, position));
            }
        }
        Ok((until + 1, position))
    }

    fn possessive(&mut self, body: usize, min: u32, max: u32, position: usize) -> Result<usize, MatchStop> {
        let mut position = position;
        let mut count = 0;
        while count < min {
            position = self.run(body, position)?;
            count += 1;
        }
        while count < max || max == REPEAT_MAX {
            match self.run(body, position) {
                Ok(after) if after == position => break,
                Ok(after) => position = after,
                Err(MatchStop::Failed) => break,
                Err(MatchStop::OutOfSteps) => return Err(MatchStop::OutOfSteps),
            }
            count = count.saturating_add(1);
        }
        Ok(position)
    }

    fn look(&mut self, body: usize, behind: Option<usize>, position: usize) -> Result<bool, MatchStop> {
        let mut start = position;
        self.spend(behind.unwrap_or(0).min(position))?;
        for _ in 0..behind.unwrap_or(0) {
            match self.before(start) {
                Some(before) => start = before,
                None => return Ok(false),
            }
        }
        let base = self.choices.len();
        match self.run(body, start) {
            Ok(_) => Ok(true),
            Err(MatchStop::Failed) => {
                debug_assert_eq!(self.choices.len(), base, "a failed part leaves no entries");
                Ok(false)
            }
            Err(MatchStop::OutOfSteps) => Err(MatchStop::OutOfSteps),
        }
    }

    /// Matches a repeat of single characters; pushes an entry for its other lengths.
    fn repeat_set(
        &mut self,
        set: usize,
        min: u32,
        max: u32,
        greed: Greed,
        at: usize,
        position: usize,
    ) -> Result<usize, MatchStop> {
        let mut position = position;
        let mut low = position;
        let most = if greed == Greed::Lazy { min } else { max };
        let mut count = 0;
        while count < most {
            let Some(after) = self.take(set, position) else { break };
            self.steps_left = self.steps_left.checked_sub(1).ok_or(MatchStop::OutOfSteps)?;
            position = after;
            count += 1;
            if count == min {
                low = position;
            }
        }
        if count < min {
            return Err(MatchStop::Failed);
        }
        match greed {
            Greed::Greedy if position > low => self.choices.push(Choice::Shrink { at, low, position }),
            Greed::Lazy if max > min => {
                let left = if max == REPEAT_MAX { REPEAT_MAX } else { max - min };
                self.choices.push(Choice::Grow { at, set, left, position });
            }
            Greed::Greedy | Greed::Lazy | Greed::Possessive => {}
        }
        Ok(position)
    }

    fn take(&self, set: usize, position: usize) -> Option<usize> {
        let char = self.after(position)?;
        self.program.sets.get(set)?.contains(char).then(|| position + char.len_utf8())
    }

    fn backreference(&mut self, group: usize, fold: Fold, position: usize) -> Result<usize, MatchStop> {
        let (start, end) = self.group(group).ok_or(MatchStop::Failed)?;
        // An exact comparison reads about eight bytes a step, a folding one a character.
        let cost = if fold == Fold::Exact { (end - start) / 8 } else { end - start };
        self.spend(cost)?;
        self.match_captured(start, end, fold, position).ok_or(MatchStop::Failed)
    }

    fn match_captured(&self, start: usize, end: usize, fold: Fold, position: usize) -> Option<usize> {
        let captured = self.text.get(start..end)?;
        let rest = self.text.get(position..)?;
        if fold == Fold::Exact {
            return rest.starts_with(captured).then(|| position + captured.len());
        }
        let lower = |char: char| match fold {
            Fold::Unicode => unicode::lower(u32::from(char)),
            Fold::Exact | Fold::Ascii => u32::from(char.to_ascii_lowercase()),
        };
        let mut chars = rest.chars();
        let mut after = position;
        for char in captured.chars() {
            let other = chars.next().filter(|other| lower(*other) == lower(char))?;
            after += other.len_utf8();
        }
        Some(after)
    }

    /// The span of a group that has matched.
    fn group(&self, group: usize) -> Option<(usize, usize)> {
        let start = (*self.slots.get(group * 2)?)?;
        let end = (*self.slots.get(group * 2 + 1)?)?;
        (start <= end).then_some((start, end))
    }

    fn save(&mut self, slot: usize, position: usize) {
        if let Some(saved) = self.slots.get_mut(slot) {
            self.choices.push(Choice::RestoreSlot { slot, old: *saved });
            *saved = Some(position);
        }
    }

    fn set_loop(&mut self, index: usize, state: LoopState) {
        if let Some(current) = self.loops.get_mut(index) {
            self.choices.push(Choice::RestoreLoop { index, old: *current });
            *current = state;
        }
    }

    fn after(&self, position: usize) -> Option<char> {
        self.text.get(position..)?.chars().next()
    }

    fn char_before(&self, position: usize) -> Option<char> {
        self.text.get(..position)?.chars().next_back()
    }

    /// The offset one character back.
    fn before(&self, position: usize) -> Option<usize> {
        self.char_before(position).map(|char| position - char.len_utf8())
    }

    fn is_at(&self, expected: Position, position: usize) -> bool {
        let rest = self.text.get(position..).unwrap_or_default();
        match expected {
            Position::TextBegin => position == 0,
            Position::TextEnd => rest.is_empty(),
            Position::LastLineEnd => rest.is_empty() || rest == "\n",
            Position::LineBegin => position == 0 || self.char_before(position) == Some('\n'),
            Position::LineEnd => rest.is_empty() || rest.starts_with('\n'),
            Position::Boundary { ascii, negated } => {
                let is_word = |char: Option<char>| {
                    char.is_some_and(|char| {
                        if ascii { char.is_ascii() && unicode::is_word(char) } else { unicode::is_word(char) }
                    })
                };
                let is_boundary = is_word(self.char_before(position)) != is_word(self.after(position));
                !self.text.is_empty() && is_boundary != negated
            }
        }
    }
}
