#!/usr/bin/env python3
"""Random inputs for functions of single values, with Python's results, one JSON array per line.

    values.py KIND SEED COUNT

KIND is one of the functions below. `tests/python_compat.rs` runs the engine on the same inputs.
Needs Python 3.11 or newer with the packages of `tests/requirements.txt`.
"""
import json
import random
import re
import struct
import sys
import warnings

DIGITS = "0123456789"
BLANKS = [" ", "\t", "\n", "\r", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\xa0", "\u2003", "\u3000", "\u200b", "\ufeff"]
OTHER_DIGITS = ["\u0663", "\uff15", "\u0967", "\U0001d7d9", "\u00b2", "\u2460", "\u4e8c"]


def bits(number):
    return struct.unpack("<Q", struct.pack("<d", number))[0]


def one_of(rng, *choices):
    return rng.choice(choices)


def digits(rng, most=6):
    return "".join(rng.choice(DIGITS) for _ in range(rng.randint(1, most)))


def number_text(rng):
    """Text that is, or nearly is, a number."""
    roll = rng.random()
    if roll < 0.3:
        pieces = ["+", "-", "_", ".", "e", "E", "inf", "nan", "Infinity", "NaN", "0x", "j", "L", "0", "1", "00"]
        pieces += BLANKS + OTHER_DIGITS
        return "".join(one_of(rng, digits(rng), rng.choice(pieces)) for _ in range(rng.randint(0, 6)))
    text = one_of(rng, "", "", "-", "+") + digits(rng, rng.choice([1, 3, 18, 20, 40]))
    if rng.random() < 0.5:
        text += "." + one_of(rng, "", digits(rng), digits(rng, 30))
    if rng.random() < 0.3:
        text += one_of(rng, "e", "E") + one_of(rng, "", "-", "+") + digits(rng, 3)
    if rng.random() < 0.2:
        text = text.replace("", "_", rng.randint(1, 3))
    if rng.random() < 0.2:
        text = "".join(one_of(rng, c, c, c, rng.choice(OTHER_DIGITS)) if c in DIGITS else c for c in text)
    if rng.random() < 0.2:
        text = rng.choice(BLANKS) + text
    if rng.random() < 0.2:
        text += rng.choice(BLANKS)
    if rng.random() < 0.002:
        text = one_of(rng, "", "-", "+") + one_of(rng, "0", "7", "0_7") * rng.randint(4200, 4400)
    return text


def any_float(rng):
    return one_of(
        rng,
        lambda: struct.unpack("<d", struct.pack("<Q", rng.getrandbits(64)))[0],
        lambda: rng.uniform(-10, 10),
        lambda: round(rng.uniform(-1e6, 1e6), rng.randint(0, 6)),
        lambda: float(rng.randint(-(10**18), 10**18)),
        lambda: rng.choice([0.0, -0.0, 1e16, 1e15, 9999999999999998.0, 1e-4, 1e-5, 5e-324, 1.7976931348623157e308,
                            float("inf"), float("-inf"), float("nan"), 0.1, 1e22, 1e23, 123456789012345680.0]),
        lambda: rng.randint(1, 9999) * 10.0 ** rng.randint(-12, 24),
    )()


def ask_int(rng):
    text = number_text(rng)
    try:
        found = int(text)
        answer = str(found) if abs(found) < 10**4000 else "long"
    except ValueError:
        answer = None
    return [text, answer]


def ask_float(rng):
    text = number_text(rng)
    try:
        number = float(text)
        answer = "nan" if number != number else bits(number)
    except ValueError:
        answer = None
    return [text, answer]


def ask_repr(rng):
    number = any_float(rng)
    return [bits(number), repr(number)]


COERCE_INT = re.compile(r"-?[0-9]+")
COERCE_FLOAT = re.compile(r"-?[0-9]+\.[0-9]+")


def ask_coerce(rng):
    """[text, type, str()] as `flag_engine.context.mappers` coerces it."""
    text = number_text(rng)
    try:
        if COERCE_INT.fullmatch(text):
            value = int(text)
            return [text, "int", str(value)]
        if COERCE_FLOAT.fullmatch(text):
            return [text, "float", str(float(text))]
    except ValueError:
        return [text, "raises", ""]
    return [text, "str", text]


def ask_modulo(rng):
    value = one_of(rng, lambda: rng.randint(-20, 20), lambda: any_float(rng), lambda: rng.choice([True, False]),
                   lambda: rng.randint(-(10**25), 10**25), lambda: 10 ** rng.randint(300, 320))()
    divisor = one_of(rng, lambda: float(rng.randint(-7, 7)), lambda: any_float(rng), lambda: rng.uniform(-3, 3))()
    try:
        result = value % divisor
        answer = "nan" if result != result else bits(result)
    except (ZeroDivisionError, OverflowError):
        answer = None
    if isinstance(value, bool):
        given = ["bool", str(value)]
    elif isinstance(value, int):
        given = ["int", str(value)]
    else:
        given = ["float", str(bits(value))]
    return [*given, bits(divisor), answer]


def version_text(rng):
    def number():
        return one_of(rng, "0", "1", "2", "10", digits(rng), digits(rng, 40))

    def identifier():
        return one_of(rng, "alpha", "beta", "rc", "0", "1", "10", "x-y", "-", "01", "0a", "", "A", digits(rng), "é", "1-")

    text = ".".join(number() for _ in range(one_of(rng, 3, 3, 3, 3, 3, 3, 2, 4, 1)))
    if rng.random() < 0.5:
        text += "-" + ".".join(identifier() for _ in range(rng.randint(1, 3)))
    if rng.random() < 0.3:
        text += "+" + ".".join(identifier() for _ in range(rng.randint(1, 3)))
    if rng.random() < 0.1:
        text = one_of(rng, "v", " ", "=", "") + text + one_of(rng, "", "\n", " ", "+", "-")
    if rng.random() < 0.003:
        text = "1" * rng.randint(4290, 4310) + text
    return text


def ask_semver(rng):
    import semver

    left = version_text(rng)
    right = version_text(rng) if rng.random() < 0.7 else left.replace("alpha", "beta").split("+")[0]
    answers = []
    for text in (left, right):
        try:
            answers.append(semver.Version.parse(text))
        except ValueError:
            answers.append(None)
    order = answers[0].compare(answers[1]) if None not in answers else None
    return [left, right, answers[0] is not None, answers[1] is not None, order]


def json_text(rng, depth=0):
    roll = rng.random()
    if depth < 4 and roll < (0.9 if depth == 0 else 0.15):
        inner = ",".join(json_text(rng, depth + 1) for _ in range(rng.randint(0, 4)))
        return "[" + one_of(rng, "", " ", "\n") + inner + one_of(rng, "", "", ",", " ") + "]"
    if depth < 4 and roll < 0.25:
        members = [
            json.dumps(rng.choice(["a", "b", "é", "'", '"']), ensure_ascii=rng.random() < 0.5)
            + one_of(rng, ":", " : ")
            + json_text(rng, depth + 1)
            for _ in range(rng.randint(0, 3))
        ]
        return "{" + ",".join(members) + "}"
    if roll < 0.6:
        alphabet = ["a", "b", "'", '\\"', "\\\\", "\\n", "\\t", "\\u00e9", "\\ud83d\\ude00", "\\ud83d", "\\udc00", "\\u200b",
                    "\\u0000", "é", "😀", "\x7f", "\xa0", "\u2028", "\\/", "\\u12", "\n", "\\x41", ",", "[", "\U000e0001",
                    "\\ud83d\\u0041", "\\uD83D\\uD83D\\uDE00"]
        weights = [20, 20, 4, 2, 2, 2, 2, 2, 2, 1, 1, 2, 2, 3, 3, 2, 2, 2, 2, 0.3, 0.3, 0.3, 2, 2, 1, 1, 1]
        return '"' + "".join(rng.choices(alphabet, weights, k=rng.randint(0, 6))) + '"'
    return rng.choice([
        "1", "0", "-0", "-0.0", "1.0", "1.50", "1e3", "1E-7", "1e400", "-1e400", "01", "1.", ".5", "-", "+1", "NaN", "Infinity",
        "-Infinity", "nan", "true", "false", "null", "True", "None", "123456789012345678901234567890", "1e16", "-1e-5",
        "9007199254740993", "0.1", "--1", "1e", "1e+", "\u0661", "-I", "-NaN", "1.5e+300",
    ] + (["9" * 4301, "8" * 4300] if rng.random() < 0.01 else []))


def ask_in(rng):
    text = json_text(rng)
    if rng.random() < 0.15:
        text = one_of(rng, "[", "", " [", "[[") + text + one_of(rng, "", "]", " ", "x", ",", "\u00a0")
    if rng.random() < 0.1:
        text = ",".join(rng.choice(["a", " b", "", "1", "[", "é"]) for _ in range(rng.randint(0, 4)))
    if text.startswith("["):
        try:
            items = [v if type(v) is str else str(v) for v in json.loads(text)]
        except ValueError:
            items = text.split(",")
    else:
        items = text.split(",")
    # Lone surrogates cannot occur in a request, nor in this output.
    items = sorted({item for item in items if not any("\ud800" <= c <= "\udfff" for c in item)})
    return [text, items]


def ask_hash(rng):
    from flag_engine.utils.hashing import get_hashed_percentage_for_object_ids

    ids = [digits(rng), one_of(rng, "env_u", "é😀", "", "x" * 70) + digits(rng, 7)]
    return [*ids, bits(get_hashed_percentage_for_object_ids(ids))]


def main():
    kind, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(f"{kind} {seed}")
    if kind == "regex":
        import patterns

        ask = patterns.ask
    elif kind == "jsonpath":
        import paths

        ask = paths.ask
    else:
        ask = globals()["ask_" + kind]
    warnings.simplefilter("ignore")
    out = sys.stdout
    for _ in range(count):
        out.write(json.dumps(ask(rng)) + "\n")


if __name__ == "__main__":
    main()
