"""`python -m bench`: the registry without modegap's command line, for machines that hold only torch.

python -m bench --device cuda --out bench/results --name kernels_h100
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .run import own_failures, run, write


def main() -> int:
    """Run, write, and return 1 where our own result failed its gate."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="time every case beside its peers")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--case", nargs="+", default=[], help="families of cases; all unless given")
    parser.add_argument(
        "--provider", nargs="+", default=[], help="words in providers' names; ours always runs"
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[])
    parser.add_argument("--out", type=Path, help="folder for the JSON and CSV")
    parser.add_argument("--name", help="of the files; the device unless given")
    parser.add_argument("--commit", help="what the checkout is, where git cannot tell")
    options = parser.parse_args()
    try:
        report = run(
            options.device,
            names=options.case,
            providers=options.provider,
            widths=options.widths,
            commit=options.commit,
            say=lambda text: print(text, flush=True),
        )
    except ValueError as error:
        parser.error(str(error))
    if options.out:
        print(*write(report, options.out, options.name or options.device))
    failures = own_failures(report)
    print(*failures, sep="\n", file=sys.stderr, end="\n" if failures else "")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
