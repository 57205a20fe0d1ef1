"""Time every GPU kernel beside the code one would write without it: `python bench/kernels.py OUT_DIR`.

harness.py says how; kernel_cases.py holds the cases. Writes OUT_DIR/kernels.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from harness import ceilings, environment, results
from kernel_cases import FAMILIES


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for kernels.json")
    parser.add_argument("--widths", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--cases", nargs="+", choices=sorted(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--commit", default="unknown", help="what the checkout is, for the record")
    options = parser.parse_args()
    torch.manual_seed(0)
    top = ceilings()
    print({name: f"{value / 1e12:.2f} T/s" for name, value in top.items()})
    records = []
    for width in options.widths:
        for family in options.cases:
            for case in FAMILIES[family](width):
                records += results(case, top)
            torch.cuda.empty_cache()
    options.out.mkdir(parents=True, exist_ok=True)
    body = {"environment": environment(options.commit), "ceilings": top, "results": records}
    (options.out / "kernels.json").write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
