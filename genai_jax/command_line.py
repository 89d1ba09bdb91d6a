"""The command line of an experiment: a preset's name, if any, then flags for every field.

`script.py`, `script.py --steps 5` and `script.py gpt2-124m --steps 5` all work; a mistyped name
gets the nearest one.
"""

import dataclasses
import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TypeVar

import tyro

Config = TypeVar("Config")


def parse_command_line(
    presets: Mapping[str, tuple[str, Config]],
    *,
    description: str,
    arguments: Sequence[str] | None = None,
) -> Config:
    """Read a configuration: a preset, changed by flags.

    Exits with an explanation where the command line cannot be understood, and after `--help`.

    Args:
        presets: `(one line about it, configuration)` by name; the first is the default.
        description: What the script does, for `--help`.
        arguments: The command line; None is the process's own.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = next(iter(presets))
    if words and not words[0].startswith("-"):
        name = words.pop(0)
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]}?" if near else f"Choose from {', '.join(presets)}."
        print(f"There is no preset {name!r}. {hint}", file=sys.stderr)
        raise SystemExit(2)
    _, default = presets[name]
    if len(presets) > 1:
        description += f"\n\n{_list_presets(presets, name)}"
    try:
        found = tyro.cli(type(default), default=default, args=words, description=description)
        return _settled(found, words)
    except BrokenPipeError:  # `--help | head`: who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def _settled(config: Config, words: Sequence[str]) -> Config:
    """Compute anew the fields that follow from others, which no flag can say."""
    if not dataclasses.is_dataclass(config):
        return config
    given = {word.split("=")[0].lstrip("-").replace("-", "_") for word in words if word[:1] == "-"}
    for field in dataclasses.fields(config):
        if not field.init and field.name in given:
            name = field.name.replace("_", "-")
            print(f"--{name} follows from other options; leave it out.", file=sys.stderr)
            raise SystemExit(2)
    return dataclasses.replace(config)  # type: ignore[return-value, type-var, unused-ignore]


def _list_presets(presets: Mapping[str, tuple[str, Config]], chosen: str) -> str:
    width = max(map(len, presets))
    lines = [f"  {name:{width}}  {about}" for name, (about, _) in presets.items()]
    return (
        "Presets, given as the first word (the first is the default):\n"
        + "\n".join(lines)
        + f"\n\nThe defaults below are those of {chosen}."
    )
