"""The README's performance table, generated from the results: `python -m bench.readme --write README.md`.

The text between `<!-- performance:begin -->` and `<!-- performance:end -->` is replaced; `--check FILE` says
whether it is what the results give, and changes nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .goals import CHIP, GOALS, Goal, why
from .saved import OURS, RESULTS, Group, Record, best, bound_by_memory, grouped, load, own

BEGIN, END = "<!-- performance:begin -->", "<!-- performance:end -->"
LEGEND = (
    "Medians of interleaved runs over rotated random inputs; every provider was checked against fp64 first. "
    "Ratio: time of the fastest obvious code that computes the same, over ours; *fails* marks one beyond the "
    "tolerance that ours is held to. Floor: the larger of bytes / copy bandwidth and flops / product rate, by "
    "the ceilings measured in the same run."
)
HEADER = ("operation", "ours, ms", "obvious code", "its ms", "ratio", "ours reaches", "of the floor", "error: ours",
          "theirs")  # fmt: skip


def section(body: Mapping[str, Any]) -> str:
    """One results file as markdown: what it was measured on, the table, the goals, what fell short."""
    groups = {
        name: kept
        for name, group in grouped(body["results"]).items()
        if (kept := {width: p for width, p in group.items() if own(p)})
    }
    widths = sorted({width for group in groups.values() for width in group})
    rows = [_line(HEADER), _line(["---"] * len(HEADER))]
    rows += [_line(_cells(name, group, body["ceilings"])) for name, group in groups.items()]
    read = (
        f"Cells hold the widths {' / '.join(map(str, widths))}." if len(widths) > 1 else f"Width {widths[0]}."
    )
    goals = _goals(groups) if CHIP in body["environment"].get("gpu", "") else ""
    parts = [
        f"{_measured_on(body)} {read}",
        "\n".join(rows),
        goals,
        _slower(groups),
        _others(groups),
        _untimed(body["results"]),
    ]
    return "\n\n".join(part for part in parts if part)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(name: str, group: Group, top: Mapping[str, float]) -> list[str]:
    found = [(own(providers), best(providers)) for providers in group.values()]

    def each(show: Callable[[Any, Any], str]) -> str:
        cells = [show(*pair) for pair in found]
        return " / ".join(cells if len(set(cells)) > 1 else cells[:1])

    return [
        name,
        each(lambda ours, _: _number(ours["ms"])),
        each(lambda _, other: f"`{other['provider']}`" if other else "–"),
        each(lambda _, other: _number(other["ms"]) if other else "–"),
        each(lambda ours, other: f"{other['ms'] / ours['ms']:.2f}x" if other else "–"),
        each(lambda ours, _: _rate(ours, top)),
        each(lambda ours, _: f"{ours['fraction_of_floor']:.2f}" if "fraction_of_floor" in ours else "–"),
        each(lambda ours, _: _error(ours)),
        each(lambda _, other: _error(other) if other else "–"),
    ]


def _rate(record: Record, top: Mapping[str, float]) -> str:
    if "tflops" in record and not bound_by_memory(record, top):
        return _flops(record["tflops"])
    return f"{_number(record['gb_per_s'])} GB/s" if "gb_per_s" in record else "–"


def _flops(tera: float) -> str:
    return f"{_number(tera)} TFLOP/s" if tera >= 1 else f"{_number(tera * 1e3)} GFLOP/s"


def _error(record: Record) -> str:
    shown = f"{record['error']:.0e}".replace("e-0", "e-") if record["error"] else "0"
    return shown + ("" if record["accurate"] else " *fails*")


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _measured_on(body: Mapping[str, Any]) -> str:
    facts = dict(body["environment"])
    machine = facts.pop("gpu", None) or facts.pop("cpu", "unknown machine")
    commit = facts.pop("commit", "unknown")
    changed = " with uncommitted changes" if commit.endswith("+") else ""
    top = body["ceilings"]
    reached = [f"copy {_number(top['copy'] / 1e9)} GB/s"]
    reached += [f"{rate} product {_flops(top[rate] / 1e12)}" for rate in top if rate != "copy"]
    versions = ", ".join(f"{name} {value}" for name, value in facts.items())
    return (
        f"**{machine}**: {versions}; commit `{commit.rstrip('+')}`{changed}. Ceilings: {', '.join(reached)}."
    )


def _goals(groups: Mapping[str, Group]) -> str:
    """How many goals are met, and a line for each that is not: what was reached, and why."""
    states: list[str] = []
    lines: list[str] = []
    for goal in GOALS:
        open_ = []
        for providers in _measured(goal, groups):
            found = own(providers)
            assert found is not None
            states.append(goal.state(found, providers))
            if states[-1] != "met":
                reached = goal.reached(found, providers)
                told = "**not measured**" if reached is None else f"**missed** with {reached:.2f}"
                open_.append(f"{told} at width {found['width']}")
        if open_:
            reason = why(goal.case) if any("missed" in part for part in open_) else ""
            lines.append(f"- {goal.case}, {goal}: {', '.join(open_)}{f' ({reason})' if reason else ''}.")
    if not states:
        return ""
    met = f"Goals for the {CHIP}, at widths other than 4096 less 10%: {states.count('met')} of {len(states)} met."
    return "\n".join([met, "", *lines]).rstrip()


def _measured(goal: Goal, groups: Mapping[str, Group]) -> list[Mapping[str, Record]]:
    """Where the goal applies: its case at every width (times are set for one width only)."""
    return [
        providers
        for group in groups.values()
        for providers in group.values()
        if (found := own(providers)) and found["case"] == goal.case
        if goal.ms is None or goal.reached(found, providers) is not None
    ]


def _slower(groups: Mapping[str, Group]) -> str:
    found = []
    for name, group in groups.items():
        for width, providers in group.items():
            ours, other = own(providers), best(providers)
            if ours and other and round(other["ms"] / ours["ms"], 2) < 1.0:
                found.append(f"{name} at {width} ({other['ms'] / ours['ms']:.2f}x)")
    return f"Slower than the obvious code: {', '.join(found)}." if found else ""


def _others(groups: Mapping[str, Group]) -> str:
    """Our further variants, such as the public function with its argument checks: slower, so they are shown."""
    found: dict[str, list[str]] = {}
    for name, group in groups.items():
        for providers in group.values():
            first = own(providers)
            for provider, record in providers.items():
                if provider.startswith(OURS) and record is not first and "ms" in record:
                    found.setdefault(f"{name}, {provider}", []).append(_number(record["ms"]))
    listed = "; ".join(f"{name} {' / '.join(times)} ms" for name, times in found.items())
    return f"Variants of ours: {listed}." if listed else ""


def _untimed(records: Iterable[Record]) -> str:
    reasons = {
        f"`{record['provider']}` ({record.get('missing') or record['failed']})"
        for record in records
        if "ms" not in record
    }
    return f"Not timed: {'; '.join(sorted(reasons))}." if reasons else ""


def performance(folder: Path = RESULTS) -> str:
    """The text between the markers; results from GPUs come first.

    Raises:
        ValueError: the folder holds no results of the registry.
    """
    found = [body for path in sorted(folder.glob("*.json")) if (body := load(path)) is not None]
    if not found:
        raise ValueError(f"{folder}: no results of the registry; run `modegap bench --out {folder}` first")
    found.sort(key=lambda body: "gpu" not in body["environment"])
    return "\n\n".join([LEGEND, *map(section, found)])


def replaced(text: str, body: str) -> str:
    """`text` with `body` between the markers.

    Raises:
        ValueError: the markers are not there once each, in order.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in tail:
        raise ValueError(f"expected {BEGIN} and after it {END}, once each")
    return f"{head}{BEGIN}\n{body}\n{END}{tail}"


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check: 0 done, 1 where a checked file is stale; bad usage and missing markers exit with 2."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.readme", description="the README's performance table"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=Path, metavar="FILE")
    what.add_argument("--check", type=Path, metavar="FILE")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results")
    options = parser.parse_args(argv)
    path: Path = options.write or options.check
    try:
        text = path.read_text(encoding="utf-8")
        fresh = replaced(text, performance(options.results))
    except (OSError, ValueError) as error:
        parser.error(f"{path}: {error}")
    if options.write:
        path.write_text(fresh, encoding="utf-8")
    elif fresh != text:
        print(f"{path} is stale: run python -m bench.readme --write {path}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
