"""What the benchmarks say about the machine, and how they write figures."""

from __future__ import annotations

from statistics import median
from typing import Any

from rich.console import Console

from aesg.bench.machine import machine

__all__ = ["console", "describe", "machine", "short", "spread", "verdict"]


def describe(where: dict[str, Any]) -> str:
    """`machine()` in a line."""
    return (
        f"{where['cpu']}, {where['cores']} cores, load {where['load']:.1f} at the start; "
        f"Python {where['python']}, numpy {where['numpy']}, torch {where['torch']}"
    )


def console() -> Console:
    """Standard output; wide where it is no terminal, so that nothing is cut off in a file."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=170)


def spread(figures: list[float]) -> str:
    """Median, least and greatest."""
    return f"{short(median(figures))} ({short(min(figures))} to {short(max(figures))})"


def short(figure: float) -> str:
    """Three digits."""
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}"


def verdict(ok: bool | None) -> str:
    """A coloured word; a dash where nothing is asked."""
    if ok is None:
        return "–"
    return "[green]ok[/]" if ok else "[bold red]missed[/]"
