import dataclasses
import subprocess
import sys
from typing import Literal

import pytest

from genai_jax.command_line import parse_command_line


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How a gradient becomes an update.

    Attributes:
        name: Which one.
        rate: Learning rate, per step.
    """

    name: Literal["adamw", "muon"] = "adamw"
    rate: float = 0.1


@dataclasses.dataclass(frozen=True)
class Config:
    """A run.

    Attributes:
        steps: Updates of the parameters in all.
        batch_size: Rows of an update.
        optimizer: How a gradient becomes an update.
    """

    steps: int = 10
    batch_size: int = 4
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"`steps` must be at least 1; got {self.steps}.")


SMALL, LARGE = Config(), Config(steps=1000, optimizer=Optimizer("muon", 0.5))
PRESETS = {"small": ("a small one", SMALL), "gpt2-large": ("a large one", LARGE)}


def parse(*arguments: str) -> Config:
    return parse_command_line(PRESETS, description="Trains a model.", arguments=arguments)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said about a command line that is refused with exit code 2."""
    with pytest.raises(SystemExit) as exit_info:
        parse(*arguments)
    assert exit_info.value.code == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed.out + printed.err


def test_presets_and_flags():
    assert parse() == SMALL
    assert parse("gpt2-large") == LARGE
    assert parse("--batch-size", "8") == dataclasses.replace(SMALL, batch_size=8)
    assert parse("gpt2-large", "--batch-size", "8") == dataclasses.replace(LARGE, batch_size=8)


def test_nested_flag_changes_one_field_of_the_preset():
    assert parse("gpt2-large", "--optimizer.rate", "2e-3").optimizer == Optimizer("muon", 2e-3)


def test_underscores_are_hyphens():
    assert parse("--batch_size", "8").batch_size == 8


def test_the_process_own_command_line_is_the_default(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", "gpt2-large", "--steps", "7"])
    assert parse_command_line(PRESETS, description="") == dataclasses.replace(LARGE, steps=7)


def test_mistyped_preset_gets_the_nearest(capsys):
    assert "no preset 'gpt2-larg'. Did you mean gpt2-large?" in refusal(capsys, "gpt2-larg")


def test_strange_preset_gets_the_list(capsys):
    assert "Choose from small, gpt2-large." in refusal(capsys, "42")


@pytest.mark.parametrize(
    ("mistyped", "nearest"),
    [("--stpes", "--steps"), ("--batchsize", "--batch-size"), ("--optimizer.rat", "--optimizer.r")],
)
def test_mistyped_flag_gets_the_nearest(capsys, mistyped, nearest):
    message = refusal(capsys, mistyped, "3")
    assert "Perhaps you meant" in message
    assert nearest in message.split("Perhaps you meant")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--steps", "many"), ("--steps", "many")),
        (("--steps", "0"), ("`steps` must be at least 1; got 0.",)),
        (("--optimizer.name", "sgdd"), ("adamw", "muon", "sgdd")),
        (("small", "gpt2-large"), ("gpt2-large",)),
    ],
)
def test_meaningless_value_is_refused_without_a_traceback(capsys, arguments, words):
    message = refusal(capsys, *arguments)
    assert all(word in message for word in words)


def test_help_explains_every_field_and_preset(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse("gpt2-large", "--help")
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    for words in (
        "Trains a model.",
        "small       a small one",
        "gpt2-large  a large one",
        "defaults below are those of gpt2-large",
        "--steps INT",
        "Updates of the parameters in all.",
        "(default: 1000)",
        "--optimizer.rate FLOAT",
        "Learning rate, per step.",
        "{adamw,muon}",
    ):
        assert words in text


def test_a_single_preset_is_not_listed(capsys):
    with pytest.raises(SystemExit):
        parse_command_line({"only": ("the one", SMALL)}, description="Does.", arguments=["--help"])
    assert "the one" not in capsys.readouterr().out


def test_help_may_be_read_in_part():
    """As by `script.py --help | head`: whoever reads has gone before all of it is written."""
    command = [sys.executable, "-m", "experiments.lm_sample", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@dataclasses.dataclass(frozen=True)
class Derived:
    """A field that follows from others.

    Attributes:
        prompts: How many.
        group: How many answers to each.
        answers: Of all.
    """

    prompts: int = 2
    group: int = 3
    answers: int = dataclasses.field(init=False, default=0)

    def __post_init__(self):
        """Count the answers."""
        object.__setattr__(self, "answers", self.prompts * self.group)


def test_what_follows_from_others_follows_flags_and_is_none(capsys):
    presets = {"a": ("", Derived())}
    found = parse_command_line(presets, description="", arguments=["--prompts", "5"])
    assert found == Derived(5) and found.answers == 15
    for words in (["--answers", "7"], ["--answers=7"]):
        with pytest.raises(SystemExit) as stopped:
            parse_command_line(presets, description="", arguments=words)
        assert stopped.value.code == 2
        assert "--answers follows from other options" in capsys.readouterr().err
