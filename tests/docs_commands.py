"""The commands that a page shows, and whether they exist as they are typed there."""

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import typer

from fl_app.cli.__main__ import app

PROGRAMS = {"fedspleen": [], "simulate.sh": ["simulate"]}
_SEPARATORS = {"|", "||", "&&", ";", "&", ">", ">>", "<"}


@cache
def _program() -> Any:
    return typer.main.get_command(app)


class Shown(NamedTuple):
    """A command in a page.

    Attributes:
        line: where it begins.
        text: as it is typed.
        whole: it is in a block of commands; otherwise it is a mention in a sentence, which may leave arguments out.
    """

    line: int
    text: str
    whole: bool


def shown_commands(page: str) -> list[Shown]:
    """Every line of the code blocks of a Markdown text, and everything in backticks between them."""
    found = []
    prose = page
    for block in re.finditer(r"^```.*?^```", page, re.M | re.S):
        first = page.count("\n", 0, block.start()) + 1
        # the same number of lines and no code in its place
        prose = prose.replace(block[0], "\n" * block[0].count("\n"), 1)
        lines = block[0].splitlines()
        number = 1
        while number < len(lines) - 1:
            start, text = number, lines[number]
            while text.endswith("\\"):
                number += 1
                text = text[:-1] + lines[number]
            found.append(Shown(first + start, text, True))
            number += 1
    for mention in re.finditer(r"`([^`]+)`", prose):
        line = prose.count("\n", 0, mention.start()) + 1
        found.append(Shown(line, " ".join(mention[1].split()), False))
    return found


def problems_of(shown: Shown) -> list[str]:
    """What is wrong with a command of ours; nothing for every other text."""
    try:
        words = shlex.split(shown.text, comments=True)
    except ValueError:  # a sentence or a table with a single quotation mark
        return []
    found = []
    for simple in _simple_commands(words):
        arguments = own_arguments(simple)
        if arguments is not None:
            found += check_arguments(arguments, shown.whole)
    return found


def uses(shown: Shown) -> set[str]:
    """The commands of ours in it, such as ``kit verify``, and the options that each gets."""
    try:
        words = shlex.split(shown.text, comments=True)
    except ValueError:
        return set()
    found = set()
    for simple in _simple_commands(words):
        command, path = _program(), []
        for word in own_arguments(simple) or ():
            if word in getattr(command, "commands", {}):
                command = command.commands[word]
                path.append(word)
            elif word.startswith("--"):
                found.add(word.partition("=")[0].rstrip("]"))
        if path and not hasattr(command, "commands"):
            found.add(" ".join(path))
    return found


def check_arguments(arguments: list[str], whole: bool = True) -> list[str]:
    """What is wrong with the arguments of `fedspleen`, without running it.

    Args:
        arguments: as the program gets them; ``A|B`` stands for either, ``[X]`` for what may be left out, and ``...`` at
            the end for what is not shown.
        whole: whether nothing that is needed may be missing.
    """
    open_end = arguments[-1:] == ["..."]
    words = [word.strip("[]") for word in (arguments[:-1] if open_end else arguments)]
    commands = [("fedspleen", _program())]
    while words and all(hasattr(command, "commands") for _, command in commands):
        inner = []
        for name in words[0].split("|"):
            if name.startswith("-"):
                return _unknown_options(*commands[0], words)
            for path, command in commands:
                if name not in command.commands:
                    return [f"{path} {name}: there is no such command"]
                inner.append((f"{path} {name}", command.commands[name]))
        commands, words = inner, words[1:]
    return [problem for each in commands for problem in _check(*each, words, whole and not open_end)]


def _check(path: str, command: object, words: list[str], whole: bool) -> list[str]:
    if hasattr(command, "commands"):
        return [f"{path}: which of its commands?"] if whole and words else []
    problems = _unknown_options(path, command, words)
    if problems:
        return problems
    options = {name: each for each in command.params for name in (*each.opts, *each.secondary_opts)}
    given, places, rest = [], [], iter(words)
    for word in rest:
        name, _, value = word.partition("=")
        if not word.startswith("-"):
            places.append(word)
        elif name != "--help":
            given.append(options[name])
            wanted = 0 if options[name].is_flag or value else options[name].nargs
            missing = None in [next(rest, None) for _ in range(wanted)]
            if whole and missing:
                problems.append(f"{path} {name}: its value is missing")
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    if len(places) > len(arguments) and not any(each.nargs < 0 for each in arguments):
        problems.append(f"{path}: {places[len(arguments)]!r} is one argument too many")
    if whole and "--help" not in words:
        needed = [each for each in arguments if each.required][len(places) :]
        needed += [each for each in command.params if each.required and each not in (*arguments, *given)]
        problems += [f"{path}: {each.name} is missing" for each in needed]
    return problems


def _unknown_options(path: str, command: object, words: list[str]) -> list[str]:
    known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)} | {"--help"}
    used = [word.partition("=")[0] for word in words if word.startswith("-")]
    return [f"{path} {name}: there is no such option" for name in used if name not in known]


def _simple_commands(words: list[str]) -> list[list[str]]:
    """A line taken apart where the shell would."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word in _SEPARATORS:
            parts.append([])
        elif word.endswith(";"):
            parts[-1].append(word[:-1])
            parts.append([])
        else:
            parts[-1].append(word)
    return [part for part in parts if part]


def own_arguments(words: list[str]) -> list[str] | None:
    """The arguments of `fedspleen` in a command, however it is started; None if it is another program."""
    words = list(words)
    while words and (words[0] in ("$", "exec", "sudo", "env") or re.match(r"[A-Za-z_]\w*=", words[0])):
        if words.pop(0) == "sudo" and words[:1] == ["--user"]:
            words = words[2:]
    if words[:1] == ["docker"] and "run" in words:
        # what follows the image, or the service of a compose file, goes to the image's entry point
        starts = [n for n, word in enumerate(words) if word in ("site", "server") or word.startswith("fedspleen:")]
        return words[starts[0] + 1 :] if starts else None
    name = Path(words[0]).name if words else ""
    return [*PROGRAMS[name], *words[1:]] if name in PROGRAMS else None
