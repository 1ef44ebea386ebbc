"""Where commands print."""

from __future__ import annotations

from rich.console import Console


def open_console() -> Console:
    """Plain text outside a terminal, wide enough for the tables."""
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    return console
