"""The command line: one dataclass config per command, behind both flags and YAML.

A command is a module of `modegap._commands` with the dataclasses `CONFIGS` and `run(*configs, console)`. Only the
module of the command that was asked for is imported, so that `modegap info` needs no torch. Exit codes:
0 done, 1 failed (one line, no traceback; MODEGAP_TRACEBACK=1 shows it), 2 bad usage.
"""

from __future__ import annotations

import importlib
import json
import keyword
import os
import sys
from collections.abc import Sequence
from typing import Any

from modegap._arguments import parsed
from modegap._console import Console
from modegap._names import did_you_mean
from modegap._version import __version__

COMMANDS = {
    "demo": "run the main job on the built-in lab and write its report",
    "plan": "bytes, memory, GPUs and time of a capture, and whether it fits",
    "inspect": "show a model's hook points and how they were found",
    "extract": "capture a model's hidden states over a data set into a store",
    "info": "what a store holds: shape, bytes, provenance, labels",
    "verify": "check a store's chunks against their checksums",
    "repair": "restore what follows from the rest, withdraw damaged chunks for extraction to rewrite",
    "import": "a store from HDF5, npy, npz, safetensors, raw, datasets, Zarr or another store",
    "export": "a store's rows as HDF5, npy, npz, safetensors, raw or datasets",
    "cov": "stream a hook point's mean and covariance",
    "align": "modes of a modal store and their alignment with a text store",
    "ablate": "remove modes at the adapter and measure the change of the decoder's loss",
    "lipschitz": "per-sample gradient norms of the decoder's log-likelihood",
    "gradproj": "the decoder's sensitivity along every mode",
    "swap": "swap a class's component in a subspace and see what the decoder notices",
    "gmi": "what the decoder can use of its input, and of each label",
    "lora": "train the decoder for a label by LoRA: what becomes accessible, what else moves",
    "bound": "the paper's bounds beside the measured gap",
    "probe": "linear probes of every label along the hook points",
    "distance": "Wasserstein, MMD and CKA between modal and text rows",
    "pertype": "in which modes the classes of each label differ",
    "compare": "poolings, models under one text law, and the published numbers side by side",
    "run": "a whole experiment from a YAML file: models x data sets x analyses, resumed by content",
    "bench": "time every operation beside the code and libraries one would use without it",
    "report": "one self-contained HTML file from saved results",
}

_SHARED = ("extract", "cov")
"""Commands that the processes of torchrun do together; all others would each write the same files."""


def overview() -> str:
    """The text of `modegap --help`."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: modegap COMMAND [OPTIONS]\n\n"
        "A chunked fp16 Zarr activation store and streaming analytics engine for multimodal LLMs.\n\n"
        f"commands:\n{rows}\n\n"
        "`modegap COMMAND --help` lists a command's options; each can also be given in a YAML file: --config FILE.\n"
        "Arguments may be given by name too: --store DIR.\n"
        "All commands take --json (one JSON object on stdout) and --quiet (no progress bars)."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (0 done, 1 failed, 2 bad usage)."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in {"-h", "--help", "help"}:
        print(overview())
        return 0 if args else 2
    if args[0] in {"-V", "--version"}:
        print(f"modegap {__version__}")
        return 0
    name, rest = args[0], args[1:]
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        print(f"modegap: error: no command {name!r}{hint}; see modegap --help", file=sys.stderr)
        return 2
    several = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    if several and name not in _SHARED:
        if _speaks():
            print(
                f"modegap: error: torchrun's processes share the work of {' and '.join(_SHARED)} only: each would do "
                f"all of {name}; run it without torchrun, or with --cluster (docs/scaling.md)",
                file=sys.stderr,
            )
        return 2
    module = importlib.import_module(f"modegap._commands.{name}{'_' * keyword.iskeyword(name)}")
    try:
        configs, as_json, quiet = parsed(name, COMMANDS[name], module.CONFIGS, rest)
    except SystemExit as stop:  # argparse has printed the help
        return stop.code if isinstance(stop.code, int) else 2
    except ValueError as error:  # an option that is not there, or out of its range
        print(f"modegap: error: {_one_line(error)}; see modegap {name} --help", file=sys.stderr)
        return 2
    return _guarded(module, configs, as_json=as_json, quiet=quiet)


def _guarded(module: Any, configs: Sequence[Any], *, as_json: bool, quiet: bool) -> int:
    """Run a command; a user's mistake becomes one line that names the remedy."""
    console = Console(quiet=quiet or as_json or not _speaks())
    try:
        result = module.run(*configs, console)
    except KeyboardInterrupt:
        print(
            "modegap: interrupted; what was committed is kept, run the command again to go on",
            file=sys.stderr,
        )
        return 130
    except Exception as error:
        if os.environ.get("MODEGAP_TRACEBACK") or not _is_expected(error):
            raise
        print(f"modegap: error: {_one_line(error)}", file=sys.stderr)
        return 1
    if not _speaks():
        return int(getattr(result, "exit_code", 0))
    if as_json:
        print(json.dumps(result.to_json(), indent=2, allow_nan=False))
    else:
        console.show(result)
    return int(getattr(result, "exit_code", 0))


def _speaks() -> bool:
    """Whether this process prints: of those that torchrun started only the first does."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def _is_expected(error: Exception) -> bool:
    """Errors whose message was written for the user; anything else is a defect and keeps its traceback."""
    from modegap.engine.errors import EngineError
    from modegap.stores.errors import StoreError

    return isinstance(error, StoreError | EngineError | ValueError | OSError)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    return " ".join(str(error).split())
