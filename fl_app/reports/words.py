"""Numbers as people say them: seconds, bytes, counts."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NONE = "\N{EN DASH}"
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def score(value: float | None) -> str:
    """A score between 0 and 1, or a dash where there is none."""
    return _NONE if value is None else f"{value:.3f}"


def duration(seconds: float) -> str:
    """A time in its two largest units: 3 min 20 s."""
    if 0 < seconds < 10:
        return f"{seconds:.1f} s"
    rest = round(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if rest >= size or (unit == "s" and not parts):
            parts.append(f"{rest // size} {unit}")
            rest %= size
    return " ".join(parts[:2])


def size(count: float) -> str:
    """Bytes in decimal units: 12.3 MB."""
    for unit, one in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= one:
            return f"{count / one:.1f} {unit}"
    return f"{count:.0f} bytes"


def count(number: int, thing: str) -> str:
    """Three sites, 17 sites, one case; of things whose plural ends in s."""
    word = _WORDS[number] if number < len(_WORDS) else f"{number:,}"
    return f"{word} {thing}{'' if number == 1 else 's'}"


def listed(names: Iterable[str]) -> str:
    """Names as in a sentence: a, b and c."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def by_name(name: str) -> list[tuple[int, str]]:
    """A key to sort names with, so that site-2 comes before site-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def sentence(text: str) -> str:
    """With a capital at its beginning and a full stop at its end."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".") if text else ""
