"""A roofline picture from a results file: `python -m bench.roofline bench/results/kernels_h100.json`.

Above, TFLOP/s over flops per byte under the roofs of the run (copy bandwidth, products); below, the share of the
copy bandwidth that passes without flops reach. Orange is ours;
a thin line leads to the best obvious code.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .saved import Record, best, grouped, load, own

OUT = Path("docs/images/roofline.svg")
WIDE, TALL = 560, 330
_WHO = ("modegap", "obvious code")


def points(body: Mapping[str, Any], width: int) -> list[dict[str, Any]]:
    """A row for ours and one for the best obvious code of every case that has bytes, at one width."""
    out = []
    for case, group in grouped(body["results"]).items():
        providers = group.get(width, {})
        ours, other = own(providers), best(providers)
        if ours is None or "gb_per_s" not in ours:
            continue
        for who, record in zip(_WHO, (ours, other), strict=True):
            if record is not None:
                out.append(_point(case.replace(" (error: leakage)", ""), who, record, body["ceilings"]))
    order = sorted(
        (row for row in out if "tflops" in row and row["who"] == _WHO[0]), key=lambda row: row["intensity"]
    )
    numbers = {row["case"]: number for number, row in enumerate(order, 1)}
    for row in out:
        if row["case"] in numbers:
            row["number"] = numbers[row["case"]]
            row["label"] = f"{row['number']}  {row['case']}"
    return out


def _point(case: str, who: str, record: Record, top: Mapping[str, float]) -> dict[str, Any]:
    row = {"case": case, "who": who, "provider": record["provider"], "ms": record["ms"],
           "share": record["gb_per_s"] * 1e9 / top["copy"]}  # fmt: skip
    if "tflops" in record:
        row |= {"tflops": record["tflops"], "intensity": record["tflops"] * 1e3 / record["gb_per_s"]}
    return row


def roofs(top: Mapping[str, float], low: float, high: float) -> Iterator[dict[str, Any]]:
    """Each product's roof from `low` to `high` flops a byte: bandwidth up to the ridge, then flat."""
    for rate in (name for name in top if name != "copy"):
        ridge = top[rate] / top["copy"]
        for intensity in sorted({low, min(max(ridge, low), high), high}):
            reach = min(intensity * top["copy"], top[rate]) / 1e12
            yield {"roof": f"{rate} product", "intensity": intensity, "tflops": reach}


def chart(body: Mapping[str, Any], width: int) -> Any:
    """The Altair chart.

    Raises:
        ValueError: nothing of that width in the file.
    """
    import altair as alt

    rows = points(body, width)
    if not rows:
        widths = sorted({record["width"] for record in body["results"]})
        raise ValueError(f"width: got {width}, expected one of {', '.join(map(str, widths))}")
    work = [row for row in rows if "tflops" in row]
    passes = [row for row in rows if "tflops" not in row]
    colour = alt.Color("who:N", title=None, scale=alt.Scale(domain=list(_WHO), range=["#D55E00", "#7A828E"]))
    tips = ["case:N", "who:N", "provider:N", alt.Tooltip("ms:Q", format=".3g")]
    parts = []
    if work:
        parts.append(
            alt.hconcat(_roofline(alt, work, body["ceilings"], colour, tips), _key(alt, work), spacing=8)
        )
    if passes:
        x = alt.X(
            "share:Q",
            title="share of copy bandwidth",
            axis=alt.Axis(format="%"),
            scale=alt.Scale(domain=[0, 1]),
        )
        y = alt.Y("case:N", title=None, sort=None, axis=alt.Axis(labelLimit=260))
        base = alt.Chart(alt.Data(values=passes))
        pair = base.mark_line(strokeWidth=1, color="#7A828E").encode(x, y, detail="case:N")
        dots = base.mark_point(filled=True, size=60, opacity=1).encode(x, y, color=colour, tooltip=tips)
        parts.append((pair + dots).properties(width=WIDE, height=26 * (len(passes) // 2)))
    facts = body["environment"]
    title = f"{facts.get('gpu') or facts.get('cpu')}, width {width}, commit {facts.get('commit', 'unknown')}"
    return alt.vconcat(*parts, title=title)


def _roofline(
    alt: Any, work: list[dict[str, Any]], top: Mapping[str, float], colour: Any, tips: list[Any]
) -> Any:
    """Roofs, dots and, on ours, the numbers of the key."""
    low, high = (edge(row["intensity"] for row in work) for edge in (min, max))
    limits = list(roofs(top, low / 2, high * 2))
    scale = alt.Scale(type="log", domain=[low / 2, high * 2], nice=False)
    x = alt.X("intensity:Q", title="flops a byte", scale=scale)
    y = alt.Y("tflops:Q", title="TFLOP/s", scale=alt.Scale(
        type="log", nice=False, domain=[min(row["tflops"] for row in work) / 2,
                                        max(row["tflops"] for row in [*work, *limits]) * 1.6]))  # fmt: skip
    roof = (
        alt.Chart(alt.Data(values=limits)).mark_line(color="#55606d", clip=True).encode(x, y, detail="roof:N")
    )
    ends = [row for row in limits if row["intensity"] == high * 2]
    name = alt.Chart(alt.Data(values=ends)).mark_text(align="right", dy=-7, color="#55606d")
    base = alt.Chart(alt.Data(values=work))
    pair = base.mark_line(strokeWidth=1, color="#7A828E").encode(x, y, detail="case:N")
    # Ours last, so that a tie hides the grey dot and not the number.
    theirs = alt.Chart(alt.Data(values=[row for row in work if row["who"] == _WHO[1]]))
    ours = alt.Chart(alt.Data(values=[row for row in work if row["who"] == _WHO[0]]))
    small = theirs.mark_point(filled=True, size=50, opacity=1).encode(x, y, color=colour, tooltip=tips)
    large = ours.mark_point(filled=True, size=200, opacity=1).encode(x, y, color=colour, tooltip=tips)
    number = ours.mark_text(color="white", fontSize=10, fontWeight="bold").encode(x, y, text="number:N")
    layers = roof + name.encode(x, y, text="roof:N") + pair + small + large + number
    return layers.properties(width=WIDE, height=TALL)


def _key(alt: Any, work: Sequence[Mapping[str, Any]]) -> Any:
    """What the numbers mean, as text beside the picture."""
    rows = [row for row in work if row["who"] == _WHO[0]]
    y = alt.Y("number:O", axis=None)
    text = alt.Chart(alt.Data(values=rows)).mark_text(align="left", fontSize=11, color="#55606d")
    return text.encode(y, x=alt.value(0), text="label:N").properties(width=210, height=17 * len(rows))


def draw(body: Mapping[str, Any], width: int) -> Any:
    """The picture: `svg` text and `png` bytes."""
    from modegap.analyses.report import charts

    described = f"Roofline of {len(points(body, width))} results at width {width}"
    return charts.draw(charts.specification(chart(body, width)), "roofline", described)


def main(argv: Sequence[str] | None = None) -> int:
    """Write an SVG or a PNG."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.roofline", description="draw the roofline of a results file"
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--out", type=Path, default=OUT, help="a file that ends in .svg or .png")
    options = parser.parse_args(argv)
    if options.out.suffix not in {".svg", ".png"}:
        parser.error(f"out: got {options.out}, expected a file that ends in .svg or .png")
    try:
        body = load(options.results)
        if body is None:
            parser.error(f"{options.results}: not a results file of the registry")
        drawing = draw(body, options.width)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    # On white, because a page's dark scheme does not reach into an <img>.
    svg = drawing.svg.replace(">", '><rect width="100%" height="100%" fill="white"/>', 1)
    options.out.write_bytes(drawing.png if options.out.suffix == ".png" else svg.encode())
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
