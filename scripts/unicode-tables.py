#!/usr/bin/env python3
"""Writes src/python/unicode/tables.rs: the character classes of Python's `re`, `int`, `float` and `repr`.

Run it manually with the Python version whose rules the engine follows:

    python3.13 scripts/unicode-tables.py > src/python/unicode/tables.rs
"""
import _sre
import sys
import unicodedata
from re import _casefix

ALL = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]


def ranges(contains):
    """Inclusive ranges of code points, flat: first, last, first, last, ..."""
    flat = []
    for char in ALL:
        code = ord(char)
        if not contains(char):
            continue
        if flat and (flat[-1] == code - 1 or (code == 0xE000 and flat[-1] == 0xD7FF)):
            flat[-1] = code
        else:
            flat += [code, code]
    return flat


def lower_runs():
    """Runs of (first, last, step, lower(first)): every `step`-th character has the same offset to its lower case."""
    runs = []
    for char in ALL:
        code = ord(char)
        low = _sre.unicode_tolower(code)
        if low == code:
            continue
        if runs:
            first, last, step, to = runs[-1]
            if low - code == to - first and code - last in (1, 2) and step in (0, code - last):
                runs[-1] = [first, code, code - last, to]
                continue
        runs.append([code, code, 0, low])
    return [number for first, last, step, to in runs for number in (first, last, step or 1, to)]


def zeros():
    found = []
    for char in ALL:
        if unicodedata.decimal(char, None) == 0:
            assert all(unicodedata.decimal(chr(ord(char) + n)) == n for n in range(10))
            found.append(ord(char))
    assert len(found) * 10 == sum(char.isdecimal() for char in ALL)
    return found


def table(name, doc, numbers):
    print(f"\n/// {doc}")
    line = f"pub const {name}: &[u32] = &[\n    "
    width = 4
    out = [line]
    for number in numbers:
        text = f"{number:#x}, " if number > 9 else f"{number}, "
        if width + len(text) > 100:
            out.append("\n    ")
            width = 4
        out.append(text)
        width += len(text)
    print("".join(out).rstrip() + "\n];")


print("//! Character tables, written by `scripts/unicode-tables.py`; do not edit by hand.")
print("//!")
print(f"//! From Python {sys.version.split()[0]}, Unicode {unicodedata.unidata_version}. Ranges are flat: first, last, first, last, ...")
print("//! Invariant: each table is sorted, and its ranges do not touch.")
table("SPACE", "What `str.isspace` accepts: outer blanks of `int` and `float`, and `\\s`.", ranges(str.isspace))
table("DIGIT_ZERO", "The zero of each run of ten decimal digits (`str.isdecimal`, `\\d`).", zeros())
table("WORD", "`\\w`: what `str.isalnum` accepts, and the underscore.", ranges(lambda c: c.isalnum() or c == "_"))
table("PRINTABLE", "What `repr` shows as it is (`str.isprintable`).", ranges(str.isprintable))
table("LOWER", "Runs of four: first, last, step, lower case of the first.", lower_runs())
table("CASED", "What `re` takes to have a case: its lower or upper case differs.", ranges(lambda c: _sre.unicode_iscased(ord(c))))
fixes = sorted(_casefix._EXTRA_CASES.items())
table("CASE_FIX", "Pairs: a lower-case character, and another that equals it when case is ignored.", [n for low, others in fixes for other in others for n in (low, other)])
