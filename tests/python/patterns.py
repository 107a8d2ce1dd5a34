"""Random regular expressions and texts, with the results of Python's `re.match`."""
import re
import signal

CHARS = ["a", "b", "c", "A", "B", "1", "2", "_", "-", " ", "\n", "é", "É", "ß", "ſ", "s", "S", "k", "\u212a", "İ", "ı", "i", "I",
         "σ", "ς", "Σ", "\U00010400", "\U00010428", "\u0663", "\u00b2", "\u0301", "\x1c", "\u2028", "😀", "µ", "μ", "ǅ", "ǆ"]
PLAIN = ["a", "b", "c", "a", "b", "c", "1", "_"]
ESCAPES = [r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", r"\b", r"\B", r"\A", r"\Z", r"\n", r"\t", r"\x41", r"\u00e9", r"\.", r"\-",
           r"\U00010400", r"\0", r"\07", r"\101", r"\1", r"\2", r"\3", r"\a", r"\v", r"\N{DIGIT ONE}", r"\N{latin small letter a}"]
BAD_ESCAPES = [r"\z", r"\p{L}", r"\x4", r"\x{41}", r"\h", r"\e", r"\G", r"\K", r"\R", r"\X", r"\Q", r"\8", r"\400", r"\777",
               r"\u00", r"\U0011ffff", r"\N{nope}", r"\N", r"\ud800", r"\99", r"\12", r"\é"]
SOUP = ["(", ")", "[", "]", "{", "}", "*", "+", "?", "|", "^", "$", ".", "\\", ",", "(?", "(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>",
        "(?P<n>", "(?P=n)", "(?P>", "(?(1)", "(?(n)", "(?i)", "(?i:", "(?x)", "(?#", "(?-i:", "{2}", "{,2}", "{1,}", "{a}", "{2,1}",
        "[^", "[[:alpha:]]", "&&", "--", "~~", "||", "-", "<", "=", "(?<n>", "(?R)", "(?aiu)", "(?s-i:", "(?L)", "(?im)", "++", "*?", "??",
        "{4294967295}", "{4294967294}", "(?i-i:", "(?u-a:", "(?P<é>", "(?P<1>", "(?P<>", "(?(0)", "(?(9)", "(?<", "(?P", "(?'n'",
        "#x\n", "# "]


def member(rng):
    roll = rng.random()
    if roll < 0.5:
        return rng.choice(CHARS + ["\\]", "\\\\", "\\^", "\\-"]).replace("\\]", "\\]")
    if roll < 0.65:
        return rng.choice([r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", r"\b", r"\n", r"\x41", r"\0", r"\101"])
    if roll < 0.9:
        low, high = sorted([rng.choice(CHARS), rng.choice(CHARS)])
        return f"{low}-{high}" if low not in "-\n" else low
    if roll < 0.97:
        return rng.choice(["a-z", "A-Z", "0-9", "à-ÿ", "Α-Ω", "\U00010400-\U00010427", "&&", "--", "||", "[", "[:alpha:]", "^", "."])
    return rng.choice(BAD_ESCAPES + ["z-a", r"\w-z", "]"])


def atom(rng, depth):
    roll = rng.random()
    if roll < 0.35:
        return rng.choice(PLAIN)
    if roll < 0.45:
        return rng.choice(CHARS).replace("-", "\\-")
    if roll < 0.58:
        return rng.choice(ESCAPES)
    if roll < 0.66:
        return rng.choice([".", ".", "^", "$", "$"])
    if roll < 0.78:
        return "[" + rng.choice(["", "", "^"]) + "".join(member(rng) for _ in range(rng.randint(1, 4))) + "]"
    if roll < 0.80:
        return rng.choice(BAD_ESCAPES + SOUP)
    if depth <= 0:
        return rng.choice(PLAIN)
    inner = pattern(rng, depth - 1)
    opener = rng.choice(["(", "(", "(", "(?:", "(?:", "(?P<n>", "(?P<m>", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?s:", "(?m:", "(?a:",
                         "(?ai:", "(?x:", "(?-i:", "(?i-s:", "(?(1)", "(?(2)", "(?(n)", "(?P=n)"])
    return opener if opener == "(?P=n)" else opener + inner + ")"


def pattern(rng, depth):
    parts = []
    for _ in range(rng.randint(0, 4) if depth < 3 else rng.randint(1, 5)):
        part = atom(rng, depth)
        roll = rng.random()
        if roll < 0.3:
            part += rng.choice(["*", "+", "?", "{2}", "{0,1}", "{,2}", "{1,}", "{2,3}", "{0}", "{", "{,}", "{x}"])
            part += rng.choice(["", "", "", "?", "+"])
        parts.append(part)
        if rng.random() < 0.12:
            parts.append("|")
    return "".join(parts)


def narrow(rng, depth):
    """Few characters, many groups: loops that match the empty text, references, possessive parts."""
    parts = []
    for _ in range(rng.randint(0, 3) if depth < 3 else rng.randint(1, 4)):
        roll = rng.random()
        if roll < 0.4 or depth <= 0:
            part = rng.choice(["a", "b", "a", "b", "[ab]", ".", "\\1", "\\2", "$", "^", "\\b", "(?:)", "()", "\n"])
        else:
            opener = rng.choice(["(", "(", "(", "(", "(?:", "(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?(1)", "(?(2)", "(?i:"])
            part = opener + narrow(rng, depth - 1) + ")"
        if rng.random() < 0.45:
            part += rng.choice(["*", "+", "?", "{2}", "{0,1}", "{1,}", "{2,3}", "{3}"]) + rng.choice(["", "", "?", "+"])
        parts.append(part)
        if rng.random() < 0.2:
            parts.append("|")
    return "".join(parts)


def whole(rng):
    roll = rng.random()
    if roll < 0.4:
        return narrow(rng, rng.randint(2, 4)) + rng.choice(["", "b", "$", r"\Z", "ab", r"\1$"])
    if roll < 0.45:
        return "".join(rng.choice(SOUP + PLAIN + ESCAPES) for _ in range(rng.randint(1, 7)))
    text = pattern(rng, rng.randint(0, 3))
    if rng.random() < 0.25:
        text = rng.choice(["(?i)", "(?i)", "(?s)", "(?m)", "(?x)", "(?a)", "(?ai)", "(?im)", "(?u)", "(?isx)"]) + text
    if rng.random() < 0.05:
        at = rng.randint(0, len(text))
        text = text[:at] + rng.choice(SOUP) + text[at:]
    return text


def subject(rng):
    if rng.random() < 0.4:
        return "".join(rng.choice("ab") for _ in range(rng.randint(0, 9))) + rng.choice(["", "", "\n"])
    if rng.random() < 0.5:
        return "".join(rng.choice(["a", "b", "c", "a", "b", "1", "\n"]) for _ in range(rng.randint(0, 8)))
    return "".join(rng.choice(CHARS) for _ in range(rng.randint(0, 8)))


class TooSlow(Exception):
    pass


def give_up(_signal, _frame):
    raise TooSlow


def ask(rng):
    """[pattern, [[text, matched], ...]]; null instead of the list where `re` raises."""
    signal.signal(signal.SIGVTALRM, give_up)
    text = whole(rng)
    subjects = [subject(rng) for _ in range(5)]
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.5)
        compiled = re.compile(text)
        answers = [[s, compiled.match(s) is not None] for s in subjects]
    except (TooSlow, SystemError):
        # For the latter Python reports an internal error ("please report a bug for the re module").
        return ["", []]
    except Exception:
        return [text, None]
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        re.purge()
    return [text, answers]
