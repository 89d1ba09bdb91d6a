"""Configurations survive JSON, and their differences are named."""

import dataclasses
import enum
import json
import math
from pathlib import Path

import pytest

from experiments.lm_pretrain import PRESETS, PretrainConfig
from genai_jax.training.saved_config import differences, from_json, to_json, with_new_fields


class Mode(enum.Enum):
    FAST = 1
    SLOW = 2


@dataclasses.dataclass(frozen=True)
class Adam:
    rate: float = 0.1


@dataclasses.dataclass(frozen=True)
class Lion:
    rate: float = 0.2


@dataclasses.dataclass(frozen=True)
class Config:
    optimizer: Adam | Lion = Adam()
    layers: tuple[Adam, ...] = ()
    limit: float = math.inf
    name: str | None = None
    mode: Mode = Mode.FAST
    folder: Path = Path("runs")
    weights: dict[str, float] = dataclasses.field(default_factory=dict)


CONFIG = Config(
    Lion(0.3), (Adam(1.0), Adam(2.0)), -math.inf, "x", Mode.SLOW, Path("a/b"), {"web": 0.5}
)


def through_text(config):
    return json.loads(json.dumps(to_json(config), allow_nan=False))


@pytest.mark.parametrize("config", [Config(), CONFIG], ids=["defaults", "changed"])
def test_round_trip(config):
    assert from_json(Config, through_text(config)) == config


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive(name):
    config = PRESETS[name][1]
    assert from_json(PretrainConfig, through_text(config)) == config


def test_missing_fields_take_their_defaults():
    saved = through_text(CONFIG)
    del saved["limit"]
    assert from_json(Config, saved) == dataclasses.replace(CONFIG, limit=math.inf)


def test_other_classes_and_unknown_fields_are_refused():
    with pytest.raises(ValueError, match="a saved Adam must have that name"):
        from_json(Adam, to_json(Lion()))
    with pytest.raises(ValueError, match=r"unknown fields: \['momentum'\]"):
        from_json(Adam, to_json(Adam()) | {"momentum": 0.9})


def test_what_is_no_json_is_named():
    with pytest.raises(TypeError, match=r"`config\.weights\.f` is function"):
        to_json(Config(weights={"f": lambda: 0}))


def test_differences_are_named_by_field():
    changed = dataclasses.replace(CONFIG, optimizer=Lion(0.4), name=None)
    assert differences(to_json(CONFIG), to_json(changed)) == [
        "optimizer.rate: 0.3 -> 0.4",
        "name: 'x' -> None",
    ]
    assert differences(to_json(CONFIG), to_json(changed), exempt=("optimizer", "name")) == []
    assert differences(to_json(CONFIG), to_json(CONFIG)) == []


def test_numbers_are_compared_by_value_and_truth_is_no_number():
    assert differences({"a": 1}, {"a": 1.0}) == []
    assert differences({"a": 1}, {"a": True}) == ["a: 1 -> True"]
    assert differences({"a": 1, "b": 2}, {"b": 2}) == ["a: 1 -> (absent)"]


def test_fields_that_a_class_has_gained_take_their_defaults():
    new = to_json(Config(layers=(Adam(0.3),), limit=2.0))
    old = {name: value for name, value in new.items() if name not in ("name", "weights")}
    old["layers"] = [{"_type": "Adam"}]
    filled = with_new_fields(Config, old)
    assert filled == to_json(Config(layers=(Adam(),), limit=2.0))
    unknown = old | {"lost": 1}
    assert with_new_fields(Config, unknown) == unknown
    assert with_new_fields(dict, old) == old
