"""Plots as SVG, written by hand: bars with their figures, in the colours of the page that holds them.

Narrow enough that on a phone nothing has to be made smaller; colours are CSS variables, so that light and dark are the
page's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 380
_LABEL: Final = 20
_BAR: Final = 15
_GAP: Final = 10
_ROOM: Final = 92
"""Units to the right of the longest bar, for its figure."""


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        kind: Its class: "fresh" or "churned".
        value: Its length.
        low: Where its whisker begins …
        high: … and ends; no whisker when None.
    """

    kind: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Group:
    """Bars of one contender.

    Attributes:
        name: What stands above them.
        bars: From top to bottom.
        limit: Where a mark is set across them; none when None.
    """

    name: str
    bars: Sequence[Bar]
    limit: float | None = None


def bars(title: str, groups: Sequence[Group], written: Callable[[float], str]) -> str:
    """An SVG element.

    Args:
        title: For those who cannot see it.
        groups: From top to bottom.
        written: A value as it stands beside its bar.
    """
    most = max((max(bar.value, bar.high or 0.0) for group in groups for bar in group.bars), default=0.0)
    most = max(most, *(group.limit or 0.0 for group in groups)) or 1.0
    scale = (WIDTH - _ROOM) / most
    parts: list[str] = []
    y = 0.0
    for group in groups:
        parts.append(f'<text class="name" x="0" y="{y + 14:.0f}">{escape(group.name)}</text>')
        y += _LABEL
        top = y
        for bar in group.bars:
            length = max(bar.value * scale, 1.5)
            middle = y + _BAR / 2
            parts.append(
                f'<rect class="{bar.kind}" x="0" y="{y:.1f}" width="{length:.1f}" height="{_BAR - 2}" rx="2"/>'
            )
            end = length
            if bar.low is not None and bar.high is not None:
                low, high = bar.low * scale, bar.high * scale
                parts.append(
                    f'<path class="whisker" d="M{low:.1f} {middle - 1:.1f}H{high:.1f}'
                    f'M{low:.1f} {middle - 4:.1f}v6M{high:.1f} {middle - 4:.1f}v6"/>'
                )
                end = max(end, high)
            if group.limit is not None:
                mark = group.limit * scale
                end = max(end, mark) if mark < end + 60 else end
            parts.append(f'<text class="value" x="{end + 7:.1f}" y="{y + 11:.1f}">{escape(written(bar.value))}</text>')
            y += _BAR
        if group.limit is not None:
            x = group.limit * scale
            parts.append(f'<path class="limit" d="M{x:.1f} {top - 3:.1f}V{y + 1:.1f}"/>')
        y += _GAP
    height = max(y - _GAP + 4, 1)
    return (
        f'<svg viewBox="-3 0 {WIDTH + 3} {height:.0f}" role="img" aria-label="{escape(title, quote=True)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
