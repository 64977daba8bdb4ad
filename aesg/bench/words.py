"""How figures are written for people."""

from __future__ import annotations

from typing import Any, Final

_TIMES: Final = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_SIZES: Final = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
NOTHING: Final = "–"


def seconds(value: float | None) -> str:
    """Three digits and a unit: "0.27 ms"; a dash for None."""
    if value is None:
        return NOTHING
    for unit, name in _TIMES:
        if value >= 0.9995 * unit:
            return f"{_digits(value / unit)} {name}"
    return f"{_digits(value / 1e-6)} µs"


def size(value: float | None) -> str:
    """Three digits and a unit: "933 MB"; a dash for None."""
    if value is None:
        return NOTHING
    for unit, name in _SIZES:
        if value >= 0.9995 * unit:
            return f"{_digits(value / unit)} {name}"
    return f"{value:.0f} B"


def ratio(value: float | None) -> str:
    """Two digits: "0.48", "12"; a dash for None."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 0.995 else f"{value:.2g}"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def label(name: str) -> str:
    """A contender's name as it stands in a sentence: "memmap", "lmdb:?sync=false"."""
    return name.removesuffix(":")


def labels(found: dict[str, Any]) -> dict[str, str]:
    """Contenders' names as they stand on the page of a run: backends alone where that tells all of them apart."""
    schemes = [contender["scheme"] for contender in found["contenders"]]
    short = len(set(schemes)) == len(schemes) and found["durability"] is not None
    return {each["name"]: each["scheme"] if short else label(each["name"]) for each in found["contenders"]}


def machine(where: dict[str, Any]) -> str:
    """`aesg.bench.machine.machine()` in a line."""
    parts = [f"{where['cpu']}, {where['cores']} cores, {size(where['ram_bytes'])} RAM"]
    if where.get("filesystem"):
        parts.append(where["filesystem"])
    parts += [where["system"], f"Python {where['python']}"]
    parts += [
        f"{name} {where[name]}" for name in ("aesg", "numpy", "torch", "lmdb", "zarr", "icechunk") if name in where
    ]
    return "; ".join(parts)


def job(plan: dict[str, Any]) -> str:
    """What was done, in a few words."""
    return f"{plan['nodes']:,} nodes of D = {plan['dim']}, {plan['edges']:,} edges"


def noise(found: dict[str, Any]) -> str:
    """How noisy the machine was, in a sentence."""
    spread = found["noise"]["spread"]
    if spread is None:
        return "Too few rounds to say how noisy the machine was."
    said = f"The same fixed work, done in each round, varied by {spread:.0%} (half of the rounds lie within that)"
    if spread > 0.15:
        return f"{said}: the machine did not keep its pace; trust the order, not the digits."
    return f"{said}: the machine was quiet enough."


def headlines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Of each workload, who is fastest on a fresh store, and whether this run can tell: (workload, sentence)."""
    said, called = [], labels(found)
    for workload in found["plan"]["workload"]:
        rows = [f for f in found["figures"] if f["workload"] == workload and f["state"] == "fresh"]
        rows.sort(key=lambda figure: figure["median"])
        if len(rows) < 2:
            continue
        first, second = rows[:2]
        if second["q1"] <= first["q3"]:
            even = [called[row["contender"]] for row in rows if row["q1"] <= first["q3"]]
            text = f"{', '.join(even[:-1])} and {even[-1]} are as fast, as far as this run can tell"
        else:
            even = [called[first["contender"]]]
            text = f"{even[0]} is fastest"
        slower = [
            f"{called[row['contender']]} takes {ratio(row['median'] / first['median'])} times as long"
            for row in rows
            if called[row["contender"]] not in even
        ]
        said.append((workload, f"{'; '.join([text, *slower])}."))
    return said
