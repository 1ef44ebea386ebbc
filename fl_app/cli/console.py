"""Where commands print."""

from __future__ import annotations

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from fl_app.config_file import settings_table


def open_console() -> Console:
    """Plain text outside a terminal, wide enough for the tables."""
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    return console


def print_settings(title: str, settings: BaseModel, defaults: BaseModel) -> None:
    """A table of every setting with its value, default, unit and meaning."""
    table = Table(title=title, title_justify="left", show_lines=True)
    for heading in ("setting", "value", "default", "meaning"):
        table.add_column(heading, overflow="fold")
    for key, value, default, meaning in settings_table(settings, defaults):
        table.add_row(key, value, "" if value == default else default, meaning)
    open_console().print(table)
