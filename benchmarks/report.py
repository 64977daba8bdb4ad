"""What the benchmarks say about the machine, and how they write figures."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console


def machine() -> dict[str, Any]:
    """Where this is measured, and how busy it is."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "torch")},
    }


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
