"""Read a job file; report every mistake in it at once, each at its line; print every setting."""

from __future__ import annotations

import contextlib
import difflib
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from fl_app.config import Job, NetworkSettings
from fl_app.errors import ConfigError

Key = tuple[str | int, ...]
Section = TypeVar("Section", bound=BaseModel)


@dataclass(frozen=True)
class FileKind(Generic[Section]):
    """A kind of YAML file that is read into a model."""

    model: type[Section]
    noun: str  # such as "job"
    example: str  # keys that it could hold, in words
    context: Callable[[dict[Any, Any]], dict[str, Any]] = lambda values: {}  # what sections know of each other


_LONGEST, _MOST_BRACKETS = 2**20, 1000  # characters; PyYAML's time grows with the square of the depth
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 70, 70

# pydantic's error types whose own words a job's author would not understand
_ALLOWED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a text",
    "tuple_type": "a list",
    "dict_type": "a mapping of names to values",
    "model_type": "a section of key: value lines",
    "model_attributes_type": "a section of key: value lines",
}


def load_job(path: Path, overrides: Mapping[Key, Any] | None = None) -> Job:
    """The job in a YAML file, with ``overrides`` by key such as ``{("federation", "rounds"): 3}``.

    Raises:
        ConfigError: one line for each mistake: ``file:line key: value - what is allowed (did you mean ...?)``.
    """
    return load_settings(path, _JOB, overrides)


def parse_job(text: str, name: str = "job", overrides: Mapping[Key, Any] | None = None) -> Job:
    """The job in a YAML text; ``name`` stands for the file in messages. Raises as `load_job`."""
    return parse_settings(text, name, _JOB, overrides)


def load_settings(path: Path, kind: FileKind[Section], overrides: Mapping[Key, Any] | None = None) -> Section:
    """What a YAML file of this kind holds. Raises as `load_job`."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such {kind.noun} file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a text file: {error}") from None
    return parse_settings(text, str(path), kind, overrides)


def parse_settings(
    text: str, name: str, kind: FileKind[Section], overrides: Mapping[Key, Any] | None = None
) -> Section:
    """What a YAML text of this kind holds. Raises as `load_job`."""
    if len(text) > _LONGEST or text.count("[") + text.count("{") > _MOST_BRACKETS:
        raise ConfigError(f"{name}: not valid YAML: nested too deeply, or far too long")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text) if root is not None else {}
        mistakes = [(line, f"{_named(key)}: given twice - each key once") for key, line in _twice(root)]
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        # PyYAML's own errors, and what its constructors let through for values such as "!!bool maybe"
        line = f":{mark.line + 1}" if (mark := getattr(error, "problem_mark", None)) else ""
        if isinstance(error, RecursionError):
            problem = "nested too deeply, or an alias that contains itself"
        elif isinstance(error, (LookupError, AttributeError, TypeError)):
            problem = "a value is not what its tag (such as !!bool) says"
        else:
            problem = getattr(error, "problem", None) or next(iter(str(error).splitlines()), "a value is malformed")
        raise ConfigError(f"{name}{line}: not valid YAML: {problem}") from None
    values = {} if values is None else values  # none: a document that begins and holds nothing
    if not isinstance(values, dict):
        raise ConfigError(f"{name}:1: a {kind.noun} file holds {kind.example}, not {_shown(values)}")
    values = _without_empty(values, kind.model, top=True)
    for key, value in (overrides or {}).items():
        _set(values, key, value)
    try:
        settings = kind.model.model_validate(values, context=kind.context(values))
    except ValidationError as error:
        # by key, because pydantic reports each value that a list lacks
        found = {_key(item): item for item in error.errors(include_url=False)}
        mistakes += [(_line(root, key), _sentence(kind, key, item)) for key, item in found.items()]
    if mistakes:
        raise ConfigError("\n".join(f"{name}:{line} {sentence}" for line, sentence in sorted(mistakes)))
    return settings


def reported_metrics(labels: Iterable[str]) -> tuple[str, ...]:
    """Names of the metrics that a site reports each round for these organs; the trainer reports exactly these."""
    return ("val_dice", *(f"val_dice_{label}" for label in labels))


def settings_table(settings: BaseModel, defaults: BaseModel | None = None) -> list[tuple[str, str, str, str]]:
    """Every setting: (key, value, default (none: a job's), meaning with unit), in the order of the file."""
    return list(_rows(settings, defaults or Job(), ()))


def _rows(section: BaseModel, defaults: BaseModel, prefix: Key) -> Iterator[tuple[str, str, str, str]]:
    for name, field in type(section).model_fields.items():
        value, default = getattr(section, name), getattr(defaults, name)
        if isinstance(value, BaseModel):
            yield from _rows(value, default, (*prefix, name))
        else:
            meaning = field.description or ""
            choices = _choices(type(section), name)
            if choices:
                meaning = f"one of {', '.join(choices)}. {meaning}"
            yield ".".join(map(str, (*prefix, name))), _plain(value), _plain(default), meaning


def _choices(section: type[BaseModel], name: str) -> list[str]:
    schema = section.model_json_schema()["properties"][name]
    return [str(choice) for choice in schema.get("enum", [])]


def _plain(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    return str(yaml.safe_dump(plain, default_flow_style=True, width=1000)).replace("\n...", "").strip()


def _context(values: dict[Any, Any]) -> dict[str, Any]:
    """What checks in one section need to know of another, so that they need not wait until all else is right."""
    context: dict[str, Any] = {}
    data = values.get("data")
    labels = data.get("labels", {"spleen": 1}) if isinstance(data, dict) else {"spleen": 1}
    if isinstance(labels, dict):
        context["reported_metrics"] = reported_metrics(label for label in labels if isinstance(label, str))
    with contextlib.suppress(ValidationError):  # reported where the whole job is read
        context["network"] = NetworkSettings.model_validate(values.get("network", {}))
    return context


def _set(values: dict[Any, Any], key: Key, value: Any) -> None:
    for part in key[:-1]:
        section = values.setdefault(part, {})
        if not isinstance(section, dict):
            return  # the section itself is a mistake, reported as such
        values = section
    values[key[-1]] = value


def _without_empty(values: Mapping[Any, Any], section: type[BaseModel], top: bool = False) -> dict[Any, Any]:
    """A section whose lines are all commented out is left at its defaults, and so is a setting of the top level."""
    kept = {}
    for key, value in values.items():
        field = section.model_fields.get(key) if isinstance(key, str) else None
        inner = field.annotation if field else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            if isinstance(value, dict):
                value = _without_empty(value, inner)
            if value is None:
                continue
        if value is not None or not top:
            kept[key] = value
    return kept


def _twice(node: yaml.Node | None, prefix: Key = (), seen_nodes: set[int] | None = None) -> Iterator[tuple[Key, int]]:
    """Keys that a mapping holds twice; a node with many aliases is looked at once."""
    seen_nodes = set() if seen_nodes is None else seen_nodes
    if isinstance(node, yaml.MappingNode) and id(node) not in seen_nodes:
        seen_nodes.add(id(node))
        seen: set[str] = set()
        for key_node, value_node in node.value:
            name = str(key_node.value)
            if name in seen:
                yield (*prefix, name), key_node.start_mark.line + 1
            seen.add(name)
            yield from _twice(value_node, (*prefix, name), seen_nodes)


def _key(item: Any) -> Key:
    """The key of a mistake as it stands in the file: pydantic adds parts for unions and mapping keys."""
    key: list[str | int] = []
    for part in item["loc"]:
        if part == "[key]":
            break
        key.append(part)
    if item["type"] == "missing" and isinstance(key[-1], int):
        key.pop()  # the place in a list that is too short
    if not key and "multiples of" in item["msg"]:
        key = ["data", "patch_voxels"]
    return tuple(key)


def _line(node: yaml.Node | None, key: Key) -> int:
    """The line of a key, or of the nearest section above it that is in the file, counted from 1."""
    line = 1
    for part in key:
        if isinstance(node, yaml.MappingNode):
            # of a key that is given twice the last one counts
            pairs = [pair for pair in node.value if str(pair[0].value) == str(part)][-1:]
            start, node = pairs[0] if pairs else (None, None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            start = node = node.value[part]
        else:
            start = None
        if start is None:
            break
        line = start.start_mark.line + 1
    return line


def _named(key: Key) -> str:
    """A key as it is printed, always in one line."""
    return ".".join(part if part.isprintable() else ascii(part) for part in map(str, key))


def _shown(value: Any) -> str:
    """A value as it is printed: short, whatever it is."""
    if isinstance(value, (dict, BaseModel)):
        return "{...}"
    try:
        return _SHORT.repr(value)[:80]
    except ValueError:
        return "a huge number"


def _sentence(kind_of_file: FileKind[Any], key: Key, item: Any) -> str:
    name = _named(key) or kind_of_file.noun
    value, kind, context = item.get("input"), item["type"], item.get("ctx", {})
    shown = _shown(value)
    if kind == "extra_forbidden":
        allowed = list(_section_at(kind_of_file.model, key).model_fields)
        return f"{name}: unknown key - allowed here: {', '.join(allowed)}{_did_you_mean(key[-1], allowed)}"
    if kind == "missing" and isinstance(item["loc"][-1], str):
        return f"{name}: missing - {_section_at(kind_of_file.model, key).model_fields[str(key[-1])].description}"
    if kind == "literal_error":
        choices = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"{name}: {shown} - one of {', '.join(choices)}{_did_you_mean(value, choices)}"
    hint = _did_you_mean(value, context.get("choices", []))
    return f"{name}: {shown} - {_what(item)}{hint}"


def _what(item: Any) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if kind in _ALLOWED:
        return _ALLOWED[kind]
    limits = {
        "greater_than": "more than {gt}",
        "greater_than_equal": "{ge} or more",
        "less_than": "less than {lt}",
        "less_than_equal": "{le} or less",
    }
    if kind in limits:
        return limits[kind].format(**context)
    if kind == "missing":
        return f"a list of {item['loc'][-1] + 1} values"
    if kind in ("too_long", "too_short"):
        return f"a list of {context.get('max_length') or context.get('min_length')} values"
    if kind == "string_pattern_mismatch":
        return "lower-case letters, digits, '-' and '_', at most 40, beginning with a letter or digit"
    return str(item["msg"])


def _section_at(section: type[BaseModel], key: Key) -> type[BaseModel]:
    """The section, or the item of a list, that holds this key."""
    for part in key[:-1]:
        if isinstance(part, str):
            annotation: Any = section.model_fields[part].annotation
            section = next((each for each in get_args(annotation) if isinstance(each, type)), annotation)
    return section


def _did_you_mean(word: Any, choices: Iterable[str]) -> str:
    close = difflib.get_close_matches(word[:80], list(choices), n=1, cutoff=0.6) if isinstance(word, str) else []
    return f" (did you mean {close[0]}?)" if close else ""


_JOB = FileKind(Job, "job", "sections such as 'data:' and 'training:'", _context)
