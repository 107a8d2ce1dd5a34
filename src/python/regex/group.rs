//! Parser of groups, assertions, conditionals, comments and inline flags: all that starts with `(`.
use crate::limits::PATTERN_DEPTH_MAX;
use crate::python::regex::error::PatternError;
use crate::python::regex::flags::RegexFlags;
use crate::python::regex::parse::RegexParser;
use crate::python::regex::syntax::SetItem;

const UNTERMINATED: PatternError = PatternError::new("missing ), unterminated subpattern");

/// The kind of a group, from what follows `(`.
enum GroupKind {
    Capture(Option<String>),
    Plain,
    Atomic,
    Flags {
        add: RegexFlags,
        remove: RegexFlags,
    },
    /// Already parsed to its end; without an item for a comment or global flags.
    Done(Option<SetItem>),
}

impl RegexParser {
    /// Parses a group after its `(`. `at_start`: it is the first item of the pattern, where global flags
    /// are allowed.
    pub(super) fn group(
        &mut self,
        verbose: &mut RegexFlags,
        depth: usize,
        at_start: bool,
    ) -> Result<Option<SetItem>, PatternError> {
        let kind = if self.tokens.take_if('?')? {
            self.extension(verbose, depth, at_start)?
        } else {
            GroupKind::Capture(None)
        };
        let (mut add, mut remove) = (RegexFlags::default(), RegexFlags::default());
        let mut index = None;
        let is_atomic = matches!(kind, GroupKind::Atomic);
        match kind {
            GroupKind::Done(item) => return Ok(item),
            GroupKind::Capture(name) => index = Some(self.open(name)?),
            GroupKind::Flags { add: added, remove: removed } => (add, remove) = (added, removed),
            GroupKind::Plain | GroupKind::Atomic => {}
        }
        let body = self.alternation(verbose.with(add).without(remove), depth + 1)?;
        self.close()?;
        if let Some(slot) = index.and_then(|group| self.widths.get(group as usize).map(|_| group as usize)) {
            self.widths[slot] = Some(self.width(&body));
        }
        Ok(Some(if is_atomic { SetItem::Atomic(body) } else { SetItem::Group { index, add, remove, body } }))
    }

    fn close(&mut self) -> Result<(), PatternError> {
        if self.tokens.take_if(')')? { Ok(()) } else { Err(UNTERMINATED) }
    }

    /// Starts a capturing group.
    fn open(&mut self, name: Option<String>) -> Result<u32, PatternError> {
        let group = self.group_count();
        self.widths.push(None);
        if let Some(name) = name {
            if self.named(&name).is_some() {
                return Err(PatternError::new("redefinition of group name"));
            }
            self.names.insert(name, group);
        }
        Ok(group)
    }

    fn named(&self, name: &str) -> Option<u32> {
        self.names.get(name).copied()
    }

    fn extension(
        &mut self,
        verbose: &mut RegexFlags,
        depth: usize,
        at_start: bool,
    ) -> Result<GroupKind, PatternError> {
        let char = self.tokens.take_char("unexpected end of pattern or unknown extension")?;
        match char {
            'P' => self.python_extension(),
            ':' => Ok(GroupKind::Plain),
            '>' => Ok(GroupKind::Atomic),
            '#' => self.comment(),
            '=' | '!' => self.look(verbose, depth, false, char == '!').map(GroupKind::Done),
            '<' => match self.tokens.take_char("unknown extension ?<")? {
                char @ ('=' | '!') => self.look(verbose, depth, true, char == '!').map(GroupKind::Done),
                char => Err(PatternError::of_char("unknown extension ?<", char)),
            },
            '(' => self.conditional(verbose, depth).map(GroupKind::Done),
            '-' | 'a' | 'i' | 'L' | 'm' | 's' | 'u' | 'x' => match self.inline_flags(char)? {
                Some((add, remove)) => Ok(GroupKind::Flags { add, remove }),
                None if at_start => {
                    *verbose = self.flags;
                    Ok(GroupKind::Done(None))
                }
                None => Err(PatternError::new("global flags not at the start of the expression")),
            },
            _ => Err(PatternError::of_char("unknown extension ?", char)),
        }
    }

    /// `(?P<name>...)` and `(?P=name)`.
    fn python_extension(&mut self) -> Result<GroupKind, PatternError> {
        if self.tokens.take_if('<')? {
            let name = self.tokens.take_until('>')?;
            check_name(&name)?;
            return Ok(GroupKind::Capture(Some(name)));
        }
        if self.tokens.take_if('=')? {
            let name = self.tokens.take_until(')')?;
            check_name(&name)?;
            let group = self.named(&name).ok_or_else(|| PatternError::new("unknown group name"))?;
            self.check_reference(group)?;
            return Ok(GroupKind::Done(Some(SetItem::Backreference(group))));
        }
        Err(PatternError::new("unknown extension ?P"))
    }

    fn comment(&mut self) -> Result<GroupKind, PatternError> {
        loop {
            if self.tokens.peek().is_none() {
                return Err(PatternError::new("missing ), unterminated comment"));
            }
            if self.tokens.take_if(')')? {
                return Ok(GroupKind::Done(None));
            }
            self.tokens.take()?;
        }
    }

    fn look(
        &mut self,
        verbose: &RegexFlags,
        depth: usize,
        behind: bool,
        negated: bool,
    ) -> Result<Option<SetItem>, PatternError> {
        let outermost = behind && self.look_behind_groups.is_none();
        if outermost {
            self.look_behind_groups = Some(self.group_count());
        }
        let body = self.alternation(*verbose, depth + 1)?;
        if outermost {
            self.look_behind_groups = None;
        }
        self.close()?;
        let (low, high) = if behind { self.width(&body) } else { (0, 0) };
        if low > u64::from(u32::MAX) {
            return Err(PatternError::new("looks too much behind"));
        }
        // Python's parser replaces a negated empty assertion by a failure without checking its width.
        if negated && body.is_empty() {
            return Ok(Some(SetItem::Failure));
        }
        if low != high {
            return Err(PatternError::new("look-behind requires fixed-width pattern"));
        }
        Ok(Some(SetItem::Look { behind, negated, body, width: low }))
    }

    /// `(?(group)yes|no)`.
    fn conditional(&mut self, verbose: &RegexFlags, depth: usize) -> Result<Option<SetItem>, PatternError> {
        let name = self.tokens.take_until(')')?;
        let group = if name.bytes().all(|byte| byte.is_ascii_digit()) {
            let group: u32 = name.parse().map_err(|_| PatternError::new("invalid group reference"))?;
            if group == 0 {
                return Err(PatternError::new("bad group number"));
            }
            self.conditions.push(group);
            group
        } else {
            check_name(&name)?;
            self.named(&name).ok_or_else(|| PatternError::new("unknown group name"))?
        };
        self.check_look_behind(group)?;
        if depth > PATTERN_DEPTH_MAX {
            return Err(PatternError::new("groups are nested too deeply"));
        }
        let yes = self.sequence(*verbose, depth + 1, false)?;
        let no =
            if self.tokens.take_if('|')? { Some(self.sequence(*verbose, depth + 1, false)?) } else { None };
        self.close()?;
        Ok(Some(SetItem::Conditional { group, yes, no }))
    }

    /// Parses flags after `(?`. Returns those of a group, or `None` for flags of the whole pattern.
    fn inline_flags(&mut self, first: char) -> Result<Option<(RegexFlags, RegexFlags)>, PatternError> {
        const UNKNOWN: &str = "unknown flag, or missing -, : or )";
        let mut char = first;
        let mut add = RegexFlags::default();
        while char != '-' && char != ':' && char != ')' {
            let flag = flag(char)?;
            add = add.with(flag);
            if flag.has(RegexFlags::TYPES) && add.has(RegexFlags::TYPES.without(flag)) {
                return Err(PatternError::new("flags 'a', 'u' and 'L' are incompatible"));
            }
            char = self.tokens.take_char(UNKNOWN)?;
        }
        if char == ')' {
            self.flags = self.flags.with(add);
            return Ok(None);
        }
        let mut remove = RegexFlags::default();
        if char == '-' {
            char = self.tokens.take_char("missing flag")?;
            if char == ':' {
                return Err(PatternError::new("missing flag"));
            }
            while char != ':' {
                let flag = flag(char)?;
                if flag.has(RegexFlags::TYPES) {
                    return Err(PatternError::new("cannot turn off flags 'a', 'u' and 'L'"));
                }
                remove = remove.with(flag);
                char = self.tokens.take_char("missing :")?;
            }
        }
        if add.has(remove) {
            return Err(PatternError::new("flag turned on and off"));
        }
        Ok(Some((add, remove)))
    }
}

fn flag(char: char) -> Result<RegexFlags, PatternError> {
    match char {
        'a' => Ok(RegexFlags::ASCII),
        'i' => Ok(RegexFlags::IGNORE_CASE),
        'm' => Ok(RegexFlags::MULTI_LINE),
        's' => Ok(RegexFlags::DOT_ALL),
        'u' => Ok(RegexFlags::UNICODE),
        'x' => Ok(RegexFlags::VERBOSE),
        'L' => Err(PatternError::new("cannot use 'L' flag with a str pattern")),
        _ => Err(PatternError::of_char("unknown flag ", char)),
    }
}

/// `str.isidentifier`.
fn check_name(name: &str) -> Result<(), PatternError> {
    let mut chars = name.chars();
    let starts = chars.next().is_some_and(|char| char == '_' || unicode_ident::is_xid_start(char));
    if starts && chars.all(unicode_ident::is_xid_continue) {
        Ok(())
    } else {
        Err(PatternError::new("bad character in group name"))
    }
}
