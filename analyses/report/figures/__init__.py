"""The report's own figures: functions of plain rows (lists of dicts), which also compare several models.

`mode_rows`, `probe_rows` and `ablation_rows` make the rows from a Result; a model's name on each row puts
several models into one figure: `mode_spectrum(mode_rows(plain, "plain") + mode_rows(aligned, "aligned"))`.
"""

from .ablation import ablation_effect, ablation_rows, sweep_effect, sweep_rows
from .access import access_bars, access_rows, law_bars, law_rows
from .bounds import bound_ladder, bound_rows
from .modes import mode_rows, mode_spectrum
from .overview import change_rows, changes, degradation_scatter, probe_overview
from .probes import probe_curves, probe_rows
from .sensitivity import norm_curves, norm_rows, sensitivity, sensitivity_rows
from .swap import swap_rows, swap_scatter

__all__ = [
    "ablation_effect",
    "ablation_rows",
    "access_bars",
    "access_rows",
    "bound_ladder",
    "bound_rows",
    "change_rows",
    "changes",
    "degradation_scatter",
    "law_bars",
    "law_rows",
    "mode_rows",
    "mode_spectrum",
    "norm_curves",
    "norm_rows",
    "probe_curves",
    "probe_overview",
    "probe_rows",
    "sensitivity",
    "sensitivity_rows",
    "swap_rows",
    "swap_scatter",
    "sweep_effect",
    "sweep_rows",
]
