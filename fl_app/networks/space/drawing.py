"""Draw an architecture on its resolution grid, as SVG."""

from __future__ import annotations

from fl_app.config.space import SearchSpace
from fl_app.networks.space.architecture import Architecture
from fl_app.networks.space.topology import channels_at

_COLUMN, _ROW, _LEFT, _TOP = 96, 56, 96, 34
# readable on a light and on a dark page; dashes tell operations apart without colours
_STYLES = {
    "skip": ("currentColor", "2 4"),
    "conv_3x3x3": ("#2f7ed8", ""),
    "conv_3x3x1": ("#1a9c5b", ""),
    "conv_3x1x3": ("#1a9c5b", "9 3"),
    "conv_1x3x3": ("#1a9c5b", "4 3"),
    "pseudo_3x3x1": ("#d9731a", ""),
    "pseudo_3x1x3": ("#d9731a", "9 3"),
    "pseudo_1x3x3": ("#d9731a", "4 3"),
}


def draw(architecture: Architecture, space: SearchSpace) -> str:
    """An SVG image: blocks from left to right, resolutions from fine (top) to coarse, a line for each active edge."""
    last = space.blocks
    used = [architecture.sources(0), *(architecture.targets(block) for block in range(last))]
    operations = [name for name in _STYLES if name in space.operations]
    width = _LEFT + last * _COLUMN + 60
    key_top = _TOP + space.depths * _ROW
    height = key_top + 20 * ((len(operations) + 2) // 3) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="sans-serif" font-size="12" fill="currentColor">',
        f"<title>Network of {len(architecture.active)} cells in the search space {space.name}</title>",
    ]
    for depth in range(space.depths):
        shrink = 2 ** (depth + space.downsampling_stem)
        label = f"1/{shrink}" if shrink > 1 else "1"
        parts.append(f'<text x="12" y="{_y(depth) + 4}">{label}, {channels_at(space, depth)} ch.</text>')
    for block in range(last):
        parts.append(f'<text x="{_x(block) + _COLUMN / 2:g}" y="16" text-anchor="middle">{block + 1}</text>')
    for block, _, edge, operation in architecture.active:
        line = f'x1="{_x(block)}" y1="{_y(edge.source)}" x2="{_x(block + 1)}" y2="{_y(edge.target)}"'
        parts.append(f"<g><title>block {block + 1}: {operation}</title><line {line} {_stroke(operation)}/></g>")
    for column, nodes in enumerate(used):
        for depth in range(space.depths):
            look = 'fill="currentColor"' if depth in nodes else 'fill="none" stroke="currentColor" opacity="0.35"'
            parts.append(f'<circle cx="{_x(column)}" cy="{_y(depth)}" r="5" {look}/>')
    for place, operation in enumerate(operations):
        x, y = 12 + (place % 3) * 170, key_top + 12 + 20 * (place // 3)
        parts.append(f'<line x1="{x}" y1="{y}" x2="{x + 34}" y2="{y}" {_stroke(operation)}/>')
        parts.append(f'<text x="{x + 42}" y="{y + 4}">{operation}</text>')
    return "\n".join([*parts, "</svg>"])


def _x(column: int) -> int:
    return _LEFT + column * _COLUMN + 12


def _y(depth: int) -> int:
    return _TOP + depth * _ROW


def _stroke(operation: str) -> str:
    colour, dashes = _STYLES[operation]
    return f'stroke="{colour}" stroke-width="2.5"' + (f' stroke-dasharray="{dashes}"' if dashes else "")
