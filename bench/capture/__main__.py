"""`python -m bench.capture --out DIR [--parts llava,streaming,big] [--scratch DIR] [--small]`.

llava      LLaVA-1.5-7B shape, random bf16 weights: the published batch-1 loop, extract, the bare batched forward
streaming  70B-shaped layers from safetensors through one GPU: time a layer against the pinned transfer rate
big        70B-shaped decoder of 80 layers over all GPUs by device_map: capture, statistics, alignment (two GPUs)

Each part checks what it computed before it reports a time; a failed check ends the run with exit code 1.
`--small` runs the same code with tiny shapes on any device.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.environment import environment

from . import big, llava, streaming

PARTS = {"llava": llava.run, "streaming": streaming.run, "big": big.run}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, a JSON file a part")
    parser.add_argument("--parts", default="llava,streaming", help="comma-separated; default llava,streaming")
    parser.add_argument("--scratch", type=Path, help="folder for stores and weights; /dev/shm unless given")
    parser.add_argument("--small", action="store_true", help="tiny shapes, on the CPU where there is no GPU")
    parser.add_argument("--commit", help="what is measured, where git does not tell")
    options = parser.parse_args(argv)
    cuda = torch.cuda.is_available()
    if not cuda and not options.small:
        parser.error("needs a GPU; --small runs the same code with tiny shapes")
    shm = Path("/dev/shm")
    scratch = options.scratch or (shm if shm.is_dir() else Path(tempfile.gettempdir()))
    options.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in options.parts.split(","):
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=scratch, prefix="modegap-bench-") as folder:
            found = PARTS[name](Path(folder), small=options.small)
        found |= {"wall_s": time.perf_counter() - begin, "small": options.small}
        found["environment"] = environment("cuda" if cuda else "cpu", options.commit)
        (options.out / f"capture_{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        for key, value in found.items():
            if not isinstance(value, dict | list):
                print(
                    f"{name:10s} {key:34s} {value:.4g}"
                    if isinstance(value, float)
                    else f"{name:10s} {key:34s} {value}"
                )
        for check, passed in found["checks"].items():
            print(f"{name:10s} check {check:60s} {'passed' if passed else 'FAILED'}", flush=True)
            failed = failed or not passed
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
