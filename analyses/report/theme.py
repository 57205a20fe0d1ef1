"""The look that all charts share: colours that colour-blind readers tell apart, and one Vega-Lite config.

Axis, legend and title colours here suit white paper. In the HTML, style.css overrides them for the dark
scheme, because CSS beats SVG presentation attributes; mark colours stay, so each is at least 3:1 against both
backgrounds.
"""

from __future__ import annotations

from typing import Any

# Okabe and Ito's palette, the two lightest replaced by darker cousins.
TEXT_ALIGNED = "#0072B2"
MODALITY_SPECIFIC = "#D55E00"
NEUTRAL = "#7A828E"
# Modality-specific comes first, as in the domains of the analyses' own charts.
CATEGORIES = (MODALITY_SPECIFIC, TEXT_ALIGNED, "#009E73", "#B5609A", "#8C6D1F", "#4A90C2", NEUTRAL)

# vl-convert measures text in Liberation Sans, which has Arial's widths: another family would overlap.
FONT = "Arial, 'Liberation Sans', Helvetica, sans-serif"
INK = "#1c2733"
MUTED = "#55606d"
HAIRLINE = "#d5dae0"


def config() -> dict[str, Any]:
    """The Vega-Lite `config` under every chart of a report; a chart's own config wins over it."""
    label = {"labelFont": FONT, "labelFontSize": 11, "labelColor": MUTED}
    title = {"titleFont": FONT, "titleFontSize": 12, "titleColor": INK, "titleFontWeight": 500}
    return {
        "background": "transparent",
        "font": FONT,
        "view": {"stroke": None},
        "axis": {
            **label,
            **title,
            "domainColor": HAIRLINE,
            "gridColor": HAIRLINE,
            "gridOpacity": 0.7,
            "tickColor": HAIRLINE,
            "titlePadding": 8,
        },
        "axisX": {"grid": False},
        "legend": {**label, **title, "orient": "top", "labelLimit": 260, "symbolSize": 60},
        "header": {**label, **title, "labelFontSize": 12, "labelFontWeight": 600, "labelColor": INK},
        "title": {"font": FONT, "fontSize": 13, "fontWeight": 600, "color": INK, "anchor": "start"},
        "range": {"category": list(CATEGORIES)},
        "mark": {"color": TEXT_ALIGNED},
        "rule": {"color": NEUTRAL},
        "text": {"color": NEUTRAL, "font": FONT},
    }
