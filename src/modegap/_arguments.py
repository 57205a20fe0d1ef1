"""From the words of a command line to the dataclasses of a command, and what is said where they do not fit."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from modegap._names import did_you_mean

_OWN = ("config", "json", "quiet", "help", "-h")
_KINDS = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}


def parsed(
    name: str, description: str, configs: Sequence[type], args: list[str]
) -> tuple[list[Any], bool, bool]:
    """The filled dataclasses, and whether --json and --quiet were given.

    Args:
        name: the command.
        description: what it does, for --help.
        configs: dataclasses; fields without a default are positional arguments, and may be given by name too.
        args: the words after the command.

    Raises:
        ValueError: an option that is not there, lacks or has a wrong value; the message is one line.
        SystemExit: after --help.
    """
    from jsonargparse import ArgumentParser

    hints = {field: hint for config in configs for field, hint in typing.get_type_hints(config).items()}
    parser = ArgumentParser(prog=f"modegap {name}", description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    positional: list[str] = []
    for config in configs:
        # A required list cannot be a positional argument: where would it end?
        required = [f.name for f in _required(config)]
        lists = {field for field in required if _is_list(hints[field])}
        positional += [field for field in required if field not in lists]
        parser.add_class_arguments(config, as_group=False, as_positional=True, skip=lists)
        for field in sorted(lists):
            parser.add_argument(
                f"--{field}", type=list[str], required=True, help="names, after commas or spaces"
            )
    try:
        values = vars(parser.instantiate(parser.parse_args(_plain(args, hints, positional))))
    except argparse.ArgumentError as error:
        raise ValueError(_said(str(error), hints, args)) from None
    values |= {key: tuple(item) for key, item in values.items() if isinstance(item, list)}
    filled = [config(**{f.name: values[f.name] for f in dataclasses.fields(config)}) for config in configs]
    return filled, values["json"], values["quiet"]


def _required(config: type) -> list[dataclasses.Field[Any]]:
    missing = dataclasses.MISSING
    return [f for f in dataclasses.fields(config) if f.default is missing and f.default_factory is missing]


def _is_list(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_list(arg) for arg in typing.get_args(hint))
    return isinstance(origin, type) and issubclass(origin, Sequence)


def _plain(args: list[str], hints: Mapping[str, Any], positional: Sequence[str]) -> list[str]:
    """The words as the parser takes them.

    `--as-text` becomes `--as_text=true`, `--points a b` or `a,b` a YAML list, and `--store x` the positional argument.
    """
    out: list[str] = []
    words: list[str] = []
    named: dict[str, str] = {}
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        flag, equals, value = arg.partition("=")
        field = _field(flag)
        if arg == "--config" and rest:
            out.append(f"--config={rest.pop(0)}")
            continue
        if not flag.startswith("--") or field not in hints:
            out.append(arg)
            if not flag.startswith("-"):
                words.append(arg)
            continue
        taken = [value] if equals else []
        while not equals and rest and not rest[0].startswith("--") and (not taken or _is_list(hints[field])):
            if hints[field] is bool and rest[0].lower() not in {"true", "false"}:
                break
            taken.append(rest.pop(0))
        if field in positional:
            if not taken:
                raise ValueError(f"{field}: got nothing after --{field}")
            named[field] = taken[0]
        elif hints[field] is bool:
            out.append(f"--{field}={taken[0] if taken else 'true'}")
        elif _is_list(hints[field]) and not (taken and taken[0].startswith("[")):
            out.append(
                f"--{field}={json.dumps([name for word in taken for name in word.split(',') if name])}"
            )
        else:
            out += [f"--{field}={taken[0]}"] if taken else [f"--{field}"]
    if not named:
        return out
    options = [arg for arg in out if arg.startswith("-")]
    if {"-h", "--help"} & set(options):
        return ["--help"]
    for flag in options:
        if _field(flag.partition("=")[0]) not in {*hints, *_OWN}:
            raise ValueError(_no_option(flag, hints))
    return [*_in_order(words, named, positional), *options]


def _in_order(words: list[str], named: Mapping[str, str], positional: Sequence[str]) -> list[str]:
    """All positional arguments: those that have no name take the places that are left."""
    bare = iter(words)
    found = [named[field] if field in named else next(bare, None) for field in positional]
    lacking = [field for field, word in zip(positional, found, strict=True) if word is None]
    if lacking:
        raise ValueError(f"the following arguments are required: {', '.join(lacking)}")
    return [*(word for word in found if word is not None), *bare]


def _field(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _said(message: str, hints: Mapping[str, Any], args: Sequence[str]) -> str:
    """A parser's message as one line: which option, what it got, what it expects."""
    line = " ".join(message.split())
    wrong = re.match(r'Parser key "(\w+)": .*G(?:ot|iven) value: (.*)$', line)
    if wrong and wrong[1] in hints:
        return _wrong(wrong[1], wrong[2], hints[wrong[1]])
    extra = re.match(r"unrecognized arguments: (.*)$", line)
    if extra:
        words = extra[1].split()
        word = next((word for word in words if word.startswith("-")), words[0])
        if word.startswith("-"):
            return _no_option(word, hints)
        before = _field(args[args.index(word) - 1]) if word in args[1:] else ""
        return _wrong(before, word, bool) if hints.get(before) is bool else f"unexpected argument {word!r}"
    unknown = re.match(r"Option '(\w+)' is not accepted", line)
    if unknown:
        return f"no option {unknown[1]!r}{did_you_mean(unknown[1], hints)}"
    return re.sub(r'^Parser key "(\w+)":', r"\1:", line)


def _no_option(flag: str, hints: Mapping[str, Any]) -> str:
    flag = flag.partition("=")[0]
    known = [f"--{name}".replace("_", "-") for name in (*hints, *_OWN[:-1])]
    return f"no option {flag}{did_you_mean(flag.replace('_', '-'), known)}"


def _wrong(field: str, value: str, hint: Any) -> str:
    choices = [choice for choice in _choices(hint) if isinstance(choice, str)]
    return f"{field}: got {value!r}, expected {_expected(hint)}{did_you_mean(value, choices)}"


def _parts(hint: Any) -> list[Any]:
    """The types of a union without None, or the type itself."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [arg for arg in typing.get_args(hint) if arg is not type(None)]
    return [hint]


def _choices(hint: Any) -> list[Any]:
    found: list[Any] = []
    for part in _parts(hint):
        inner = typing.get_args(part)
        if typing.get_origin(part) is typing.Literal:
            found += inner
        elif inner:
            found += [choice for one in inner for choice in _choices(one)]
    return found


def _expected(hint: Any) -> str:
    said: list[str] = []
    for part in _parts(hint):
        inner = [arg for arg in typing.get_args(part) if arg is not Ellipsis]
        if typing.get_origin(part) is typing.Literal:
            said += map(str, inner)
        elif _is_list(part):
            said.append(f"a list, each {_expected(inner[0])}" if inner else "a list")
        else:
            said.append(_KINDS.get(part, getattr(part, "__name__", str(part))))
    return " or ".join(filter(None, [", ".join(said[:-1]), said[-1]]))
