"""What a check found in a site's data, and how it reads on a terminal."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

_WIDTH = 100  # characters of a printed line
_FILES_SHOWN = 3  # of the files that share one finding
_RANGES_SHOWN = 12  # in a compact list of label values


@dataclass(frozen=True)
class Finding:
    """One problem of one file.

    Attributes:
        severity: an "error" stops the site, a "warning" does not.
        code: the stable kind of the finding, such as "affine-mismatch".
        file: the path relative to the site's folder; "." is the whole folder.
        problem: what is wrong, with numbers.
        remedy: what to do about it.
    """

    severity: Literal["error", "warning"]
    code: str
    file: str
    problem: str
    remedy: str


def error(code: str, file: str, problem: str, remedy: str) -> Finding:
    """Return a finding that stops the site."""
    return Finding("error", code, file, problem, remedy)


def warning(code: str, file: str, problem: str, remedy: str) -> Finding:
    """Return a finding that does not stop the site."""
    return Finding("warning", code, file, problem, remedy)


def format_findings(findings: Iterable[Finding]) -> str:
    """Return aligned plain text: errors first, then warnings, then a line that counts them.

    Files that share kind, problem and remedy are named together, so that one habit of a data set
    (117 organs in each label map) is read once and not once a case.
    """
    findings = list(findings)
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for finding in sorted(findings, key=lambda finding: finding.severity):  # "error" < "warning"
        kind = (finding.severity, finding.code, finding.problem, finding.remedy)
        groups.setdefault(kind, []).append(finding.file)
    lines: list[str] = []
    for (severity, code, problem, remedy), files in groups.items():
        lines.append(f"{severity:<9}{_name_files(files)} [{code}]")
        lines += _wrap("problem: ", problem) + _wrap("remedy:  ", remedy)
    errors = sum(finding.severity == "error" for finding in findings)
    lines.append(f"{_count(errors, 'error')}, {_count(len(findings) - errors, 'warning')}")
    return "\n".join(lines)


def compact_values(values: Iterable[int]) -> str:
    """Return integers as short text: {2, 3, 4, 9} is "2-4, 9"."""
    ranges: list[list[int]] = []
    for value in sorted(set(values)):
        if ranges and value == ranges[-1][1] + 1:
            ranges[-1][1] = value
        else:
            ranges.append([value, value])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:_RANGES_SHOWN]]
    return ", ".join(shown) + (", ..." if len(ranges) > _RANGES_SHOWN else "")


def _name_files(files: Sequence[str]) -> str:
    names = ["the whole folder" if file == "." else file for file in files]
    if len(names) <= _FILES_SHOWN + 1:
        return ", ".join(names)
    return ", ".join(names[:_FILES_SHOWN]) + f" and {len(names) - _FILES_SHOWN} more files"


def _wrap(head: str, text: str) -> list[str]:
    indent = " " * 9
    # whole words only: a broken file name cannot be copied
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=indent + head,
        subsequent_indent=indent + " " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
