"""The report: one page that needs nothing else, for a screen of any width, light or dark.

It says everything that the JSON says. Made from that alone, so a page can be made of figures that were kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Final

from aesg.bench import words
from aesg.bench.plan import STATES, WORKLOADS
from aesg.bench.plots import Bar, Group, bars

STYLE: Final = """
:root{color-scheme:light dark;--paper:#fbfbfa;--card:#fff;--ink:#1d2430;--soft:#566072;--line:#dfe3e8;--head:#f2f4f7;
--fresh:#2766cf;--churned:#d9791a;--good:#17703f;--bad:#b3261e;--best:#e3edfc}
@media (prefers-color-scheme:dark){:root{--paper:#12151b;--card:#1a1f28;--ink:#e8ebf0;--soft:#a3adbd;--line:#323a47;
--head:#222936;--fresh:#6fa2ff;--churned:#f2ad5a;--good:#6fd49a;--bad:#ff8f86;--best:#24364f}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 18px 60px}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .35rem}
h2{font-size:1.25rem;margin:2.6rem 0 .6rem}
h3{font-size:1.05rem;margin:0}
p{margin:.3rem 0 .8rem;max-width:75ch}
.soft,.card p,footer{color:var(--soft)}
.card p{font-size:.88rem;margin:.1rem 0 .8rem}
.badges{display:flex;flex-wrap:wrap;gap:8px;padding:0;margin:1rem 0;list-style:none}
.badges li{border:1px solid var(--line);border-radius:99px;padding:3px 12px;font-size:.88rem;background:var(--card)}
.good{color:var(--good)}.bad{color:var(--bad)}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));gap:16px}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px}
.card p.limit-is{margin:.7rem 0 0}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--ink)}
svg .name{font-weight:600;font-size:12.5px}svg .value{font-size:12px;font-variant-numeric:tabular-nums}
svg .fresh{fill:var(--fresh)}svg .churned{fill:var(--churned)}
svg .whisker{stroke:var(--ink);stroke-width:1;fill:none;opacity:.6}
svg .limit{stroke:var(--ink);stroke-width:2;stroke-dasharray:3 2;fill:none}
.key{display:flex;flex-wrap:wrap;gap:4px 20px;font-size:.9rem;color:var(--soft);margin:.4rem 0 1rem}
.key span{display:inline-flex;align-items:center;gap:7px}.key svg{width:22px;flex:none}
.wide{overflow-x:auto;border:1px solid var(--line);border-radius:10px;background:var(--card)}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
tbody th,thead th:first-child{position:sticky;left:0;background:var(--card)}thead th:first-child{background:var(--head)}
th,td{padding:6px 12px;text-align:right;white-space:nowrap;border-top:1px solid var(--line)}
th:first-child,td.left,th.left{text-align:left}
thead th{background:var(--head);border-top:0;font-weight:600}
tbody th{font-weight:600}
td.best{background:var(--best);font-weight:600}
td small{display:block;color:var(--soft);font-weight:400}
dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 18px;margin:0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
ul.said{padding-left:1.2rem;margin:1rem 0 .4rem;max-width:80ch}
code{font:.92em ui-monospace,SFMono-Regular,Menlo,monospace}
@media (max-width:520px){main{padding:20px 14px 48px}h1{font-size:1.4rem}
dl{grid-template-columns:1fr}dd{margin-bottom:6px}}
@media print{.card,.wide{break-inside:avoid}}
"""


def page(found: dict[str, Any]) -> str:
    """The page, as HTML.

    Args:
        found: What `Results.as_dict` gives, or a JSON file of that.
    """
    title = f"AESG bench: {', '.join(words.labels(found).values())}"
    body = "\n".join(
        [
            _head(found),
            _glance(found),
            _plots(found),
            _footprints(found),
            _promises(found),
            _figures(found),
            _method(found),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _head(found: dict[str, Any]) -> str:
    count = len(found["contenders"])
    who = "one backend" if count == 1 else f"{count} backends"
    level = found["durability"]
    durable = f"all at durability {level.replace('_', ' ')}" if level else "not equally durable"
    badges = [
        (f"{found['compared']:,} answers compared", "good" if not found["disagreement"] else "bad"),
        (durable, "good" if level else "bad"),
    ]
    spread = found["noise"]["spread"]
    if spread is not None:
        badges.append((f"noise of the machine {spread:.0%}", "good" if spread <= 0.15 else "bad"))
    if found["interrupted"]:
        badges.append(("interrupted: not everything was measured", "bad"))
    shown = "".join(f'<li class="{kind}">{escape(text)}</li>' for text, kind in badges)
    troubles = [f"{name} fell out: {why}" for name, why in found["problems"].items()]
    if found["disagreement"]:
        troubles.insert(0, f"{found['disagreement']}. The figures of this run mean nothing until that is explained.")
    bad = "".join(f'<p class="bad"><strong>{escape(text)}</strong></p>' for text in troubles)
    return (
        f"<header><h1>The same job on {who}</h1>\n"
        f'<p class="soft">{escape(words.job(found["plan"]))}. {escape(found["made"])}, '
        f"{escape(found['machine']['cpu'])}, {found['machine']['cores']} cores.</p>\n"
        f'<ul class="badges" aria-label="State of this run">{shown}</ul>{bad}</header>'
    )


def _glance(found: dict[str, Any]) -> str:
    names = [contender["name"] for contender in found["contenders"]]
    by_place = {(f["workload"], f["contender"]): f for f in found["figures"] if f["state"] == "fresh"}
    called = words.labels(found)
    head = "".join(f'<th scope="col">{_code(called[name])}</th>' for name in names)
    rows = []
    for workload in found["plan"]["workload"]:
        cells = [by_place.get((workload, name)) for name in names]
        best = min((cell["median"] for cell in cells if cell), default=None)
        shown = []
        for cell in cells:
            if cell is None:
                shown.append(f"<td>{words.NOTHING}</td>")
                continue
            kind = ' class="best"' if cell["median"] == best and len(names) > 1 else ""
            limit = f"<small>{words.ratio(cell['ratio'])} × limit</small>" if cell["ratio"] is not None else ""
            shown.append(f"<td{kind}>{words.seconds(cell['median'])}{limit}</td>")
        rows.append(f'<tr><th scope="row">{escape(WORKLOADS[workload].title)}</th>{"".join(shown)}</tr>')
    said = "".join(
        f"<li><strong>{escape(WORKLOADS[workload].title)}</strong>: {escape(text)}</li>"
        for workload, text in words.headlines(found)
    )
    table = _wide(
        "Medians on fresh stores, the fastest marked. Below each, its speed beside the limit: 1 is as fast.",
        f'<th scope="col">time</th>{head}',
        rows,
    )
    return f'<section><h2>At a glance</h2>\n{table}\n<ul class="said">{said}</ul></section>'


def _plots(found: dict[str, Any]) -> str:
    cards, called = [], words.labels(found)
    for workload in found["plan"]["workload"]:
        figures = [figure for figure in found["figures"] if figure["workload"] == workload]
        if not figures:
            continue
        kind = WORKLOADS[workload]
        groups = []
        for contender in found["contenders"]:
            mine = [figure for figure in figures if figure["contender"] == contender["name"]]
            if mine:
                shown = [Bar(figure["state"], figure["median"], figure["q1"], figure["q3"]) for figure in mine]
                groups.append(Group(called[contender["name"]], shown, mine[0]["limit"]))
        limits = sorted({figure["limit_is"] for figure in figures})
        titles = [
            f"{called[figure['contender']]} {figure['state']} {words.seconds(figure['median'])}" for figure in figures
        ]
        cards.append(
            f'<article class="card"><h3>{escape(kind.title)}</h3><p>{escape(kind.what)}</p>'
            f"{bars(kind.title + ': ' + ', '.join(titles), groups, words.seconds)}"
            f'<p class="limit-is">Dashed: {escape("; ".join(limits))}.</p></article>'
        )
    key = "".join(
        f'<span><svg viewBox="0 0 22 12" aria-hidden="true"><rect class="{state}" width="22" height="12" rx="2"/></svg>'
        f"{escape(state)}: {escape(what)}</span>"
        for state, what in STATES.items()
    )
    key += (
        '<span><svg viewBox="0 0 22 12" aria-hidden="true"><path class="whisker" d="M2 6H20M2 2v8M20 2v8"/></svg>'
        "half of the calls</span>"
        '<span><svg viewBox="0 0 22 12" aria-hidden="true"><path class="limit" d="M11 0V12"/></svg>the limit</span>'
    )
    return (
        f'<section><h2>How long it takes</h2>\n<p class="soft">Medians; shorter is better. Each plot has a scale of '
        f'its own, from 0.</p><div class="key">{key}</div>\n<div class="grid">{"".join(cards)}</div></section>'
    )


def _footprints(found: dict[str, Any]) -> str:
    names = [name for name in found["footprints"] if "fresh" in found["footprints"][name]]
    if not names:
        return ""
    called = words.labels(found)
    states = [state for state in STATES if any(state in found["footprints"][name] for name in names)]

    def shown(kind: str, title: str, what: str) -> str:
        groups = []
        for name in names:
            held = found["footprints"][name]
            values = [(state, _held(held[state], kind)) for state in states if state in held]
            groups.append(Group(called[name], [Bar(state, value) for state, value in values if value is not None]))
        said = ", ".join(f"{group.name} {bar.kind} {words.size(bar.value)}" for group in groups for bar in group.bars)
        plot = bars(f"{title}: {said}", groups, words.size)
        return f'<article class="card"><h3>{escape(title)}</h3><p>{escape(what)}</p>{plot}</article>'

    cards = [
        shown("disk", "On disk", "what the file system gave the files"),
        shown("anon", "Memory of its own", "after reading at random, beyond what the process held before"),
        shown("file", "Memory of files", "pages of its files that are mapped; the system takes them back when it must"),
    ]
    rows = []
    for name in names:
        for state in states:
            held = found["footprints"][name].get(state)
            if held is not None:
                churn = found["footprints"][name].get("churn_seconds") if state == "churned" else None
                cells = [
                    words.size(held["disk"]),
                    words.size(held["length"]),
                    f"{held['files']:,}",
                    words.size(_held(held, "anon")),
                    words.size(_held(held, "file")),
                    words.seconds(churn),
                ]
                rows.append(
                    _row(called[name], [f'<td class="left">{state}</td>', *(f"<td>{cell}</td>" for cell in cells)])
                )
    head = _heads(
        ["backend", "store", "on disk", "length of files", "files", "memory of its own", "of files", "churned in"], 2
    )
    table = _wide("Disk and memory.", head, rows)
    return f'<section><h2>What it takes up</h2>\n<div class="grid">{"".join(cards)}</div>\n<p></p>{table}</section>'


def _held(held: dict[str, Any], kind: str) -> float | None:
    found = held[kind] if kind in held else held["memory"].get(kind)
    return None if found is None else float(found)


def _promises(found: dict[str, Any]) -> str:
    names = list(found["contenders"][0]["promises"])
    rows = []
    for contender in found["contenders"]:
        cells = [f"<td>{escape(str(contender['promises'][name]).lower().replace('_', ' '))}</td>" for name in names]
        rows.append(_row(words.label(contender["name"]), cells))
    head = _heads(["backend", *(name.replace("_", " ") for name in names)])
    return f"<section><h2>What each promises</h2>\n{_wide('As the opened stores say it.', head, rows)}</section>"


def _figures(found: dict[str, Any]) -> str:
    rows, called = [], words.labels(found)
    for figure in found["figures"]:
        cells = [
            f'<td class="left">{escape(WORKLOADS[figure["workload"]].title)}</td>',
            f'<td class="left">{figure["state"]}</td>',
        ]
        values = [
            f"{figure['calls']:,}",
            words.seconds(figure["median"]),
            f"{words.seconds(figure['q1'])} to {words.seconds(figure['q3'])}",
            words.seconds(figure["p99"]),
            words.seconds(figure["most"]),
            words.seconds(figure["cpu"]),
            words.seconds(figure["limit"]),
            words.ratio(figure["ratio"]),
        ]
        rows.append(_row(called[figure["contender"]], [*cells, *(f"<td>{value}</td>" for value in values)]))
    heads = ["backend", "what", "store", "calls", "p50", "half of the calls", "p99", "slowest", "CPU", "limit", "ratio"]
    caption = "Each call; p99 from 100 calls on. CPU: processor time of a call, all threads together."
    return f"<section><h2>All figures</h2>\n{_wide(caption, _heads(heads, 3), rows)}</section>"


def _method(found: dict[str, Any]) -> str:
    where, plan = found["machine"], found["plan"]
    facts = {
        "Processor": f"{where['cpu']}, {where['cores']} cores",
        "Memory": words.size(where["ram_bytes"]),
        "File system": where["filesystem"] or "unknown",
        "System": where["system"],
        "Load at the start": f"{where['load']:.1f}",
        "Versions": ", ".join(
            f"{name} {where[name]}"
            for name in ("aesg", "python", "numpy", "torch", "numba", "lmdb", "zarr", "icechunk")
            if name in where
        ),
        "Rounds": f"{plan['repeats']:,}, with an order drawn by chance in each (seed {plan['seed']})",
        "Noise": words.noise(found),
    }
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    return (
        "<section><h2>The machine, and how it was measured</h2>\n"
        "<p>Each backend works in a process of its own; only one works at a time. In each round everybody has a turn, "
        "the limits among them, so that a slow minute hits all. A first round is not counted. What the backends answer "
        "is compared as they go, and so is what is in the stores in the end. The limit of a figure is what memory, the "
        "file system or the library by itself takes for the same, in the same rounds; it does less than a store does, "
        "and is there to show what is possible on this machine.</p>\n"
        f'<div class="card"><dl>{listed}</dl></div></section>'
    )


def _heads(names: Sequence[str], left: int = 1) -> str:
    return "".join(
        f'<th scope="col"{" class=" + chr(34) + "left" + chr(34) if i < left else ""}>{escape(name)}</th>'
        for i, name in enumerate(names)
    )


def _row(name: str, cells: Iterable[str]) -> str:
    return f'<tr><th scope="row">{_code(name)}</th>{"".join(cells)}</tr>'


def _code(name: str) -> str:
    return f"<code>{escape(name).replace('?', '<wbr>?')}</code>"


def _wide(caption: str, head: str, rows: Iterable[str]) -> str:
    return (
        f'<p class="soft">{escape(caption)}</p>'
        f'<div class="wide" role="region" aria-label="{escape(caption, quote=True)}" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
