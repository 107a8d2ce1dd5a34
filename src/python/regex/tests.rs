use crate::python::regex::{AutomataBudget, Pattern, PatternError};
use crate::step_budget::RequestBudget;

fn compile(pattern: &str) -> Result<Pattern, PatternError> {
    Pattern::compile(pattern, &mut AutomataBudget::default())
}

fn matches(pattern: &str, text: &str) -> bool {
    compile(pattern)
        .unwrap_or_else(|error| panic!("{pattern}: {error}"))
        .is_match(text, &RequestBudget::default().patterns)
}

#[test]
fn matches_at_the_start_only() {
    assert!(matches(r"\bfoo\b", "foo bar"));
    assert!(!matches("b", "abc"));
    assert!(!matches("foo|bar", "zbar"));
    assert!(!matches("(?m)^y", "x\ny"));
}

#[test]
fn dollar_matches_before_a_final_line_feed() {
    assert!(matches("abc$", "abc\n"));
    assert!(matches("abc$\\n", "abc\n"));
    assert!(!matches("abc$", "abc\n\n"));
    assert!(!matches(r"abc\Z", "abc\n"));
}

#[test]
fn matches_backreferences_and_conditionals() {
    assert!(matches(r"(a)\1", "aa"));
    assert!(matches(r"(?P<n>ab)(?P=n)$", "abab"));
    assert!(!matches(r"(a|b)\1$", "ab"));
    assert!(matches(r"(a)?(?(1)b|c)", "ab"));
    assert!(!matches(r"(a)?(?(1)b|c)", "ac"));
}

#[test]
fn sets_have_no_set_operators() {
    assert!(matches("[a&&b]$", "&"));
    assert!(matches("[[:alpha:]]", "[]"));
    assert!(matches("[a~~b]", "~"));
}

#[test]
fn ignores_case_as_python_does() {
    assert!(matches("(?i)ſ$", "S"));
    assert!(matches("(?i)[σ]$", "ς"));
    assert!(!matches("(?i)ß$", "ss"));
    assert!(!matches("(?i)[\u{10400}x]$", "\u{10400}"), "Python lowers the text, not the set");
}

#[test]
fn rejects_what_python_rejects() {
    let rejected = [
        "[",
        "(",
        ")",
        "*",
        "a**",
        r"\p{L}",
        r"\x{41}",
        "(?<n>a)",
        r"\z",
        r"\h",
        "(?R)",
        "a(?i)b",
        "(?<=a*)b",
        r"[\w-z]",
        "(?P<n>a)(?P<n>b)",
        r"\1",
        "(?P=n)",
        "(?(1)a",
        "(?(2)a)(b)",
        "a{2,1}",
        "a{4294967295}",
        "\\",
        "(?L)a",
        "(?au)b",
        r"\777",
        r"\N{-}",
        r"\N{no such name}",
        "(?P<1>a)",
        "(?i-i:a)",
    ];
    for pattern in rejected {
        assert!(compile(pattern).is_err(), "{pattern}");
    }
}

#[test]
fn deep_nesting_does_not_overflow_the_stack() {
    for opener in ["(", "(?:", "(?=", "(?<=", "(?>", "(?(1)", "(?i:", "a|("] {
        assert!(compile(&opener.repeat(4000)).is_err(), "{opener}");
        let deepest = opener.repeat(200);
        let closed = format!("()a{deepest}a{}", ")".repeat(200));
        if let Ok(pattern) = compile(&closed) {
            pattern.is_match(&"a".repeat(300), &RequestBudget::default().patterns);
        }
    }
    assert!(compile(&"a".repeat(100_000)).is_err());
}

#[test]
fn a_match_is_limited_in_steps() {
    let text = format!("{}b", "a".repeat(1999));
    let patterns = [
        "(a+)+$",
        r"(a+)+\1$",
        "(?=(a+)+$)",
        "((a*)*)*(?!a)c",
        "(?:a?){4294967294}(?=b)b",
        r"(?:(a|a)*)*\1c",
        "(?:(?:)*+)++$",
    ];
    for pattern in patterns {
        let pattern = compile(pattern).expect("valid in Python");
        // Exponential without the limit.
        pattern.is_match(&text, &RequestBudget::default().patterns);
    }
}

#[test]
fn patterns_beyond_the_automata_budget_still_match() {
    // Each automaton would take megabytes, or a tenth of a second to build before it is discarded.
    let mut budget = AutomataBudget::default();
    let patterns: Vec<Pattern> = (0..2000)
        .map(|number| {
            let text = format!(r"\w{{1,{}}}x{number}", 20 + number % 200);
            Pattern::compile(&text, &mut budget).expect("valid in Python")
        })
        .collect();
    assert_eq!(budget.bytes, 0, "the budget is spent");
    assert!(patterns.last().is_some_and(|pattern| pattern.linear.is_none()), "the last have no automaton");
    for (number, pattern) in patterns.iter().enumerate().step_by(97) {
        assert!(pattern.is_match(&format!("éax{number}"), &RequestBudget::default().patterns), "{number}");
        assert!(!pattern.is_match(&format!("é-x{number}"), &RequestBudget::default().patterns), "{number}");
    }
}

/// Each pattern once had a step that was quadratic in its length, or walked a case table per character.
#[test]
fn patterns_of_maximum_length_compile() {
    let ideographs = |count: u32| (0x4e00..0x4e00 + count).filter_map(char::from_u32).collect::<String>();
    let patterns = [
        "()".repeat(9_900),
        (0..1_800).map(|number| format!("(?P<g{number}>)")).collect(),
        format!("{0}|{0}", "a".repeat(9_900)),
        format!("[{}]", ideographs(6_600)),
        format!(r"{}\b", ideographs(6_500)),
        format!("(?i){}", "k".repeat(19_000)),
        format!("(?i){}", "[ab]".repeat(4_900)),
        format!("{}{}", "(()()()()()()()()()()()()()()()()".repeat(240), ")".repeat(240)),
    ];
    for pattern in patterns {
        let parsed = super::parse::parse(&pattern).expect("valid in Python");
        let node = super::resolve::resolve(parsed.items, parsed.flags);
        super::program::RegexProgram::new(&node, parsed.groups);
    }
}
