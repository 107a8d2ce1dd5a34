//! Instructions of the backtracking matcher.
//!
//! Repetitions are not unrolled, so the length of a program is proportional to that of its pattern. Every
//! jump target is an instruction of the same program.
use std::collections::HashMap;

use crate::python::regex::set::Set;
use crate::python::regex::syntax::{Fold, Greed, Position, RegexNode};

/// Instructions, sets, and the number of loops and groups whose state a match stores.
#[derive(Clone, Debug)]
pub struct RegexProgram {
    pub instructions: Vec<Instruction>,
    pub sets: Vec<Set>,
    pub loops: usize,
    pub groups: usize,
}

/// One step. Targets are indices of instructions.
#[derive(Clone, Copy, Debug)]
pub enum Instruction {
    /// One character of a set.
    Set(usize),
    Position(Position),
    /// Stores the current offset in a slot: two slots for each group.
    Save(usize),
    /// Continues with the next instruction; backtracks to `other`.
    Try {
        other: usize,
    },
    Jump(usize),
    /// A repeated single character.
    RepeatSet {
        set: usize,
        min: u32,
        max: u32,
        greed: Greed,
    },
    /// Starts a loop, whose body follows and ends at `until`.
    LoopStart {
        index: usize,
        until: usize,
    },
    /// Ends the body of a loop: starts another iteration or leaves the loop.
    LoopUntil {
        index: usize,
        body: usize,
        min: u32,
        max: u32,
        lazy: bool,
    },
    /// A loop without backtracking into it; its body ends with `Done`.
    LoopPossessive {
        body_end: usize,
        min: u32,
        max: u32,
    },
    /// Matches what follows up to `end` without backtracking into it.
    Atomic {
        end: usize,
    },
    Look {
        behind: Option<usize>,
        negated: bool,
        end: usize,
    },
    Backreference {
        group: usize,
        fold: Fold,
    },
    /// Continues with the next instruction if the group has matched, else with `no`.
    Conditional {
        group: usize,
        no: usize,
    },
    /// Ends the pattern, or a part that is matched without backtracking into it.
    Done,
}

impl RegexProgram {
    pub fn new(node: &RegexNode, groups: u32) -> Self {
        let program = Self { instructions: Vec::new(), sets: Vec::new(), loops: 0, groups: groups as usize };
        let mut emitter = Emitter { program, set_indices: HashMap::new() };
        emitter.emit(node);
        emitter.push(Instruction::Done);
        emitter.program
    }
}

/// Appends instructions to a program.
struct Emitter<'n> {
    program: RegexProgram,
    set_indices: HashMap<&'n Set, usize>,
}

impl<'n> Emitter<'n> {
    fn push(&mut self, instruction: Instruction) -> usize {
        self.program.instructions.push(instruction);
        self.program.instructions.len() - 1
    }

    fn here(&self) -> usize {
        self.program.instructions.len()
    }

    /// Replaces an instruction once its target is known.
    fn set(&mut self, at: usize, instruction: Instruction) {
        if let Some(slot) = self.program.instructions.get_mut(at) {
            *slot = instruction;
        }
    }

    fn set_index(&mut self, set: &'n Set) -> usize {
        let sets = &mut self.program.sets;
        *self.set_indices.entry(set).or_insert_with(|| {
            sets.push(set.clone());
            sets.len() - 1
        })
    }

    fn emit(&mut self, node: &'n RegexNode) {
        match node {
            RegexNode::Set(set) => {
                let set = self.set_index(set);
                self.push(Instruction::Set(set));
            }
            RegexNode::Position(position) => {
                self.push(Instruction::Position(*position));
            }
            RegexNode::Sequence(nodes) => nodes.iter().for_each(|node| self.emit(node)),
            RegexNode::Branch(nodes) => self.branch(nodes),
            RegexNode::Repeat { greed, min, max, body } => self.repeat(*greed, *min, *max, body),
            RegexNode::Group { index, body } => {
                let slot = *index as usize * 2;
                self.push(Instruction::Save(slot));
                self.emit(body);
                self.push(Instruction::Save(slot + 1));
            }
            RegexNode::Atomic(body) => {
                let start = self.push(Instruction::Done);
                let end = self.part(body);
                self.set(start, Instruction::Atomic { end });
            }
            RegexNode::Look { behind, negated, body } => {
                let start = self.push(Instruction::Done);
                let end = self.part(body);
                self.set(start, Instruction::Look { behind: *behind, negated: *negated, end });
            }
            RegexNode::Backreference { group, fold } => {
                self.push(Instruction::Backreference { group: *group as usize, fold: *fold });
            }
            RegexNode::Conditional { group, yes, no } => {
                let start = self.push(Instruction::Done);
                self.emit(yes);
                let jump = self.push(Instruction::Done);
                let no_at = self.here();
                self.set(start, Instruction::Conditional { group: *group as usize, no: no_at });
                self.emit(no);
                let end = self.here();
                self.set(jump, Instruction::Jump(end));
            }
        }
    }

    /// Emits a part that ends with `Done`; returns the index of the instruction after it.
    fn part(&mut self, body: &'n RegexNode) -> usize {
        self.emit(body);
        self.push(Instruction::Done);
        self.here()
    }

    fn branch(&mut self, nodes: &'n [RegexNode]) {
        let mut jumps = Vec::new();
        for (at, node) in nodes.iter().enumerate() {
            if at + 1 == nodes.len() {
                self.emit(node);
                break;
            }
            let start = self.push(Instruction::Done);
            self.emit(node);
            jumps.push(self.push(Instruction::Done));
            let other = self.here();
            self.set(start, Instruction::Try { other });
        }
        let end = self.here();
        jumps.into_iter().for_each(|jump| self.set(jump, Instruction::Jump(end)));
    }

    fn repeat(&mut self, greed: Greed, min: u32, max: u32, body: &'n RegexNode) {
        if let RegexNode::Set(set) = body {
            let set = self.set_index(set);
            self.push(Instruction::RepeatSet { set, min, max, greed });
            return;
        }
        let start = self.push(Instruction::Done);
        if greed == Greed::Possessive {
            let body_end = self.part(body);
            self.set(start, Instruction::LoopPossessive { body_end, min, max });
            return;
        }
        let index = self.program.loops;
        self.program.loops += 1;
        let body_at = self.here();
        self.emit(body);
        let lazy = greed == Greed::Lazy;
        let until = self.push(Instruction::LoopUntil { index, body: body_at, min, max, lazy });
        self.set(start, Instruction::LoopStart { index, until });
    }
}
