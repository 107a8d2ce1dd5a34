//! The back-tracking matcher, for what an automaton cannot take.
//!
//! In: a [`RegexProgram`] and a text. Out: whether it matches at the text's start. It takes the same
//! choices in the same order as Python's `re`, so groups hold what they hold there.
//! Invariant: a match takes at most [`PATTERN_STEPS_MAX`] steps and then counts as none; memory is bounded
//! by the same number; recursion only goes as deep as look-around and atomic parts are nested.
use crate::limits::PATTERN_STEPS_MAX;
use crate::python::regex::program::{Instruction, RegexProgram};
use crate::python::regex::syntax::{Fold, Greed, Position, REPEAT_MAX};
use crate::python::unicode;
use crate::step_budget::StepBudget;

/// What is undone or tried next when a path fails.
#[derive(Clone, Copy)]
enum Choice {
    Resume {
        at: usize,
        position: usize,
    },
    Mark {
        mark: usize,
        old: Option<usize>,
    },
    Round {
        index: usize,
        old: LoopRound,
    },
    /// A greedy repeat of single characters: it can give back down to `low`.
    GiveBack {
        at: usize,
        low: usize,
        position: usize,
    },
    /// A lazy one: it can take `left` more.
    TakeMore {
        at: usize,
        set: usize,
        left: u32,
        position: usize,
    },
    /// A loop may leave, or enter its body again.
    Leave {
        at: usize,
        position: usize,
    },
    Enter {
        index: usize,
        body: usize,
        count: u32,
        position: usize,
    },
}

/// A loop's state: rounds done, and where its last free round started.
#[derive(Clone, Copy, Default)]
struct LoopRound {
    count: u32,
    last: Option<usize>,
}

/// A path that failed, or a match out of steps.
enum MatchStop {
    Failed,
    OutOfSteps,
}

struct Matcher<'a> {
    program: &'a RegexProgram,
    text: &'a str,
    marks: Vec<Option<usize>>,
    rounds: Vec<LoopRound>,
    choices: Vec<Choice>,
    steps_left: u32,
}

/// Whether `program` matches at the start of `text`, within the steps of a match and of `budget`.
pub fn is_match(program: &RegexProgram, text: &str, budget: &StepBudget) -> bool {
    // What a match clears before it starts; few patterns have many groups.
    if !budget.spend((program.groups + program.loops) / 8) {
        return false;
    }
    let steps = PATTERN_STEPS_MAX.min(budget.left());
    let mut matcher = Matcher {
        program,
        text,
        marks: vec![None; program.groups * 2],
        rounds: vec![LoopRound::default(); program.loops],
        choices: Vec::new(),
        steps_left: steps,
    };
    let result = matcher.run(0, 0);
    let is_out_of_budget = matches!(result, Err(MatchStop::OutOfSteps)) && steps < PATTERN_STEPS_MAX;
    let taken = (steps - matcher.steps_left) as usize;
    // One more than there is: the budget ended this match, not the bound of a single one.
    budget.spend(if is_out_of_budget { taken.saturating_add(1) } else { taken });
    result.is_ok()
}

impl Matcher<'_> {
    /// Takes as many steps as something costs beyond its own.
    fn pay(&mut self, steps: usize) -> Result<(), MatchStop> {
        let left = u32::try_from(steps).ok().and_then(|steps| self.steps_left.checked_sub(steps));
        self.steps_left = left.unwrap_or(0);
        left.map(drop).ok_or(MatchStop::OutOfSteps)
    }

    /// Matches from an instruction to the next `Done`; returns the position there. Choices made
    /// on the way are dropped, so what was matched is final; what they would undo is kept.
    fn run(&mut self, at: usize, position: usize) -> Result<usize, MatchStop> {
        let base = self.choices.len();
        let (mut at, mut position) = (at, position);
        loop {
            self.steps_left = self.steps_left.checked_sub(1).ok_or(MatchStop::OutOfSteps)?;
            let step = match self.program.instructions.get(at) {
                None | Some(Instruction::Done) => {
                    self.keep_undo(base);
                    return Ok(position);
                }
                Some(instruction) => self.step(*instruction, at, position),
            };
            (at, position) = match step {
                Ok(next) => next,
                Err(MatchStop::OutOfSteps) => return Err(MatchStop::OutOfSteps),
                Err(MatchStop::Failed) => self.back(base)?,
            };
        }
    }

    /// Drops the choices from `base` on, but not what undoes marks and rounds.
    fn keep_undo(&mut self, base: usize) {
        let mut kept = base;
        for at in base..self.choices.len() {
            if let Some(choice @ (Choice::Mark { .. } | Choice::Round { .. })) = self.choices.get(at).copied()
            {
                self.choices[kept] = choice;
                kept += 1;
            }
        }
        self.choices.truncate(kept);
    }

    /// The newest path that is still open above `base`.
    fn back(&mut self, base: usize) -> Result<(usize, usize), MatchStop> {
        loop {
            if self.choices.len() <= base {
                return Err(MatchStop::Failed);
            }
            self.steps_left = self.steps_left.checked_sub(1).ok_or(MatchStop::OutOfSteps)?;
            match self.choices.pop().ok_or(MatchStop::Failed)? {
                Choice::Mark { mark, old } => self.marks[mark] = old,
                Choice::Round { index, old } => self.rounds[index] = old,
                Choice::Resume { at, position } | Choice::Leave { at, position } => {
                    return Ok((at, position));
                }
                Choice::GiveBack { at, low, position } => {
                    let Some(before) = self.before(position).filter(|before| *before >= low) else {
                        continue;
                    };
                    if before > low {
                        self.choices.push(Choice::GiveBack { at, low, position: before });
                    }
                    return Ok((at, before));
                }
                Choice::TakeMore { at, set, left, position } => {
                    let Some(after) = self.take(set, position) else { continue };
                    if left > 1 {
                        let left = if left == REPEAT_MAX { left } else { left - 1 };
                        self.choices.push(Choice::TakeMore { at, set, left, position: after });
                    }
                    return Ok((at, after));
                }
                Choice::Enter { index, body, count, position } => {
                    self.set_round(index, LoopRound { count, last: Some(position) });
                    return Ok((body, position));
                }
            }
        }
    }

    /// One instruction: where to go on, and from which position.
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
            Instruction::Place(place) if self.is_at(place, position) => Ok((next, position)),
            Instruction::Mark(mark) => {
                self.set_mark(mark, position);
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
                self.set_round(index, LoopRound::default());
                self.round(until, position, 0)
            }
            Instruction::LoopUntil { index, .. } => {
                let count = self.rounds.get(index).map_or(0, |round| round.count).saturating_add(1);
                self.round(at, position, count)
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
                self.refer(group, fold, position).map(|after| (next, after))
            }
            Instruction::Conditional { group, no } => {
                Ok((if self.group(group).is_some() { next } else { no }, position))
            }
            Instruction::Place(_) | Instruction::Done => Err(MatchStop::Failed),
        }
    }

    /// Decides at the end of a loop's body, `count` rounds being done.
    fn round(&mut self, until: usize, position: usize, count: u32) -> Result<(usize, usize), MatchStop> {
        let Some(Instruction::LoopUntil { index, body, min, max, lazy }) =
            self.program.instructions.get(until).copied()
        else {
            return Err(MatchStop::Failed);
        };
        let last = self.rounds.get(index).and_then(|round| round.last);
        if count < min {
            self.set_round(index, LoopRound { count, last });
            return Ok((body, position));
        }
        // A round that took nothing is not repeated.
        let may_enter = (count < max || max == REPEAT_MAX) && last != Some(position);
        match (may_enter, lazy) {
            (false, _) => {}
            (true, true) => self.choices.push(Choice::Enter { index, body, count, position }),
            (true, false) => {
                self.choices.push(Choice::Leave { at: until + 1, position });
                self.set_round(index, LoopRound { count, last: Some(position) });
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
        self.pay(behind.unwrap_or(0).min(position))?;
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
                debug_assert_eq!(self.choices.len(), base, "a failed part leaves no choice behind");
                Ok(false)
            }
            Err(MatchStop::OutOfSteps) => Err(MatchStop::OutOfSteps),
        }
    }

    /// Takes as many single characters as its greed wants; leaves a choice for the others.
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
            Greed::Greedy if position > low => self.choices.push(Choice::GiveBack { at, low, position }),
            Greed::Lazy if max > min => {
                let left = if max == REPEAT_MAX { REPEAT_MAX } else { max - min };
                self.choices.push(Choice::TakeMore { at, set, left, position });
            }
            Greed::Greedy | Greed::Lazy | Greed::Possessive => {}
        }
        Ok(position)
    }

    fn take(&self, set: usize, position: usize) -> Option<usize> {
        let char = self.after(position)?;
        self.program.sets.get(set)?.contains(char).then(|| position + char.len_utf8())
    }

    fn refer(&mut self, group: usize, fold: Fold, position: usize) -> Result<usize, MatchStop> {
        let (start, end) = self.group(group).ok_or(MatchStop::Failed)?;
        // Compared eight bytes at a time, or character by character.
        let cost = if fold == Fold::Exact { (end - start) / 8 } else { end - start };
        self.pay(cost)?;
        self.refer_to(start, end, fold, position).ok_or(MatchStop::Failed)
    }

    fn refer_to(&self, start: usize, end: usize, fold: Fold, position: usize) -> Option<usize> {
        let wanted = self.text.get(start..end)?;
        let rest = self.text.get(position..)?;
        if fold == Fold::Exact {
            return rest.starts_with(wanted).then(|| position + wanted.len());
        }
        let lower = |char: char| match fold {
            Fold::Unicode => unicode::lower(u32::from(char)),
            Fold::Exact | Fold::Ascii => u32::from(char.to_ascii_lowercase()),
        };
        let mut chars = rest.chars();
        let mut after = position;
        for char in wanted.chars() {
            let other = chars.next().filter(|other| lower(*other) == lower(char))?;
            after += other.len_utf8();
        }
        Some(after)
    }

    /// What a group holds; nothing while it is open for the first time.
    fn group(&self, group: usize) -> Option<(usize, usize)> {
        let start = (*self.marks.get(group * 2)?)?;
        let end = (*self.marks.get(group * 2 + 1)?)?;
        (start <= end).then_some((start, end))
    }

    fn set_mark(&mut self, mark: usize, position: usize) {
        if let Some(slot) = self.marks.get_mut(mark) {
            self.choices.push(Choice::Mark { mark, old: *slot });
            *slot = Some(position);
        }
    }

    fn set_round(&mut self, index: usize, round: LoopRound) {
        if let Some(slot) = self.rounds.get_mut(index) {
            self.choices.push(Choice::Round { index, old: *slot });
            *slot = round;
        }
    }

    fn after(&self, position: usize) -> Option<char> {
        self.text.get(position..)?.chars().next()
    }

    fn char_before(&self, position: usize) -> Option<char> {
        self.text.get(..position)?.chars().next_back()
    }

    /// The position one character back.
    fn before(&self, position: usize) -> Option<usize> {
        self.char_before(position).map(|char| position - char.len_utf8())
    }

    fn is_at(&self, place: Position, position: usize) -> bool {
        let rest = self.text.get(position..).unwrap_or_default();
        match place {
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
