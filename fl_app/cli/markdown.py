"""docs/configuration.md, made from the settings' own types, limits, defaults and descriptions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from fl_app.config import Job
from fl_app.site import SiteSettings

Schema = dict[str, Any]

_HEAD = """\
# Every setting

Made by `fedspleen config show --markdown` from the code; do not edit it by hand.

Three YAML files: the lead writes the [job](#the-job), which all sites get; each hospital may write a
[site.yaml](#siteyaml), which never leaves it; and the lead writes the [consortium](#consortiumyaml) once. Every mistake
in a file is reported at its line, with what is allowed; unknown keys are mistakes.
"""
_JOB = """\
## The job

`fedspleen config check my-job.yaml` says whether a file is right, `fedspleen config show my-job.yaml` prints what it
comes to. Every key has a default.
"""
_SITE = """\
## site.yaml

In the folder of the site's kit. What the site decides for itself.
"""
_CONSORTIUM = """\
## consortium.yaml

What `fedspleen provision` makes startup kits from.
"""
_NAMES = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}
_LIMITS = {"minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "to {}", "exclusiveMaximum": "to below {}"}


def configuration_page() -> str:
    """All settings of all files as Markdown."""
    from provisioning.consortium import Consortium

    parts = [_HEAD]
    for words, model in ((_JOB, Job), (_SITE, SiteSettings), (_CONSORTIUM, Consortium)):
        parts += [words, *_sections(model)]
    return "\n".join(parts)


def _sections(model: type[BaseModel]) -> Iterator[str]:
    """A table for the settings of the top level, then one for each section."""
    whole = model.model_json_schema()
    yield from _section(whole, whole, "")


def _section(section: Schema, whole: Schema, name: str) -> Iterator[str]:
    required = set(section.get("required", ()))
    rows, inner = [], []
    for key, field in section["properties"].items():
        full = f"{name}{key}"
        nested, listed = _nested(field, whole)
        if nested is not None:
            inner.append((nested, f"{full}[]." if listed else f"{full}."))
        if nested is None or listed:
            default = f"`{_plain(field['default'])}`" if "default" in field else ""
            default = "**required**" if key in required else default
            kind = "list of sections, see below" if nested else _kind(field, whole)
            rows.append(f"| `{full}` | {_cell(kind)} | {default} | {_cell(field.get('description', ''))} |")
    if name:
        yield f"### `{name.rstrip('.')}`\n\n{section.get('description', '')}\n"
    if rows:
        yield "\n".join(["| key | value | default | meaning |", "| --- | --- | --- | --- |", *rows, ""])
    for nested, below in inner:
        yield from _section(nested, whole, below)


def _nested(field: Schema, whole: Schema) -> tuple[Schema | None, bool]:
    """The section that a setting holds, and whether it is a list of them."""
    listed = field.get("type") == "array" and "items" in field
    held = _resolved(field["items"] if listed else field, whole)
    return (held if "properties" in held else None), listed


def _resolved(field: Schema, whole: Schema) -> Schema:
    for name in (field.get("$ref"), *(each.get("$ref") for each in field.get("allOf", ()))):
        if name:
            return dict(whole["$defs"][name.rsplit("/", 1)[-1]])
    return field


def _kind(field: Schema, whole: Schema) -> str:
    """What may be written, in words."""
    field = _resolved(field, whole)
    if "anyOf" in field:
        return " or ".join(_kind(each, whole) for each in field["anyOf"] if each.get("type") != "null")
    if "enum" in field:
        return "one of " + ", ".join(f"`{choice}`" for choice in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        items = field.get("prefixItems")
        kind = _kind(items[0] if items else field.get("items", {}), whole)
        return f"list of {len(items)}: {kind}" if items else f"list: {kind}"
    if field.get("type") == "object":
        return f"names, each with: {_kind(field.get('additionalProperties', {}), whole)}"
    if field.get("format") == "path":
        return "path"
    limits = [words.format(field[limit]) for limit, words in _LIMITS.items() if limit in field]
    return " ".join([_NAMES.get(str(field.get("type")), "any value"), *limits])


def _plain(value: Any) -> str:
    """A default as it would stand in the file."""
    if value is None:
        return "none"
    return str(yaml.safe_dump(value, default_flow_style=True, width=1000)).replace("\n...", "").strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
