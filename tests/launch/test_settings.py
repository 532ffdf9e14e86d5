"""Every number that a user can give a program is checked, whatever program it is."""

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from launch.block_importance import ImportanceConfig
from launch.evaluate import EvaluateConfig
from launch.fit_latency_estimator import EstimatorOptions
from launch.pretrain_tiny import PretrainingOptions
from launch.profile_knobs import ProfileConfig
from launch.run.recipes import JointGRPOConfig
from launch.serving.config import ServeConfig

# launch/generate.py leaves its numbers to the settings of the run that it loads, and to
# `check_budget_ms`; see test_commands.py.
PROGRAMS = (
    *(JointGRPOConfig, EvaluateConfig, ProfileConfig, ImportanceConfig),
    *(ServeConfig, EstimatorOptions, PretrainingOptions),
)
REQUIRED = {str: "x", Path: Path("x"), float: 1.0, int: 1}


def settings(config: type, found: dict[type, None] | None = None) -> Mapping[type, None]:
    """A program's configuration class and all that are nested in it."""
    found = {} if found is None else found
    found[config] = None
    for kind in typing.get_type_hints(config).values():
        for part in typing.get_args(kind) or (kind,):
            if dataclasses.is_dataclass(part) and part not in found:
                settings(part, found)
    return found


def required(config: type) -> dict[str, Any]:
    """Values for the fields without a default."""
    kinds, values = typing.get_type_hints(config), {}
    for field in dataclasses.fields(config):
        if field.default is field.default_factory is dataclasses.MISSING:
            kind = kinds[field.name]
            values[field.name] = REQUIRED[kind] if kind in REQUIRED else kind(**required(kind))
    return values


def numbers() -> Iterator[tuple[type, str, Any, type]]:
    """Every field of a number, of a tuple of numbers or of numbers by name."""
    seen: set[type] = set()
    for program in PROGRAMS:
        for config in set(settings(program)) - seen:
            seen.add(config)
            for name, kind in typing.get_type_hints(config).items():
                for number in {int, float} & {kind, *typing.get_args(kind)}:
                    yield config, name, kind, number


def shaped(kind: Any, value: float) -> Any:
    """A value in the shape of a field."""
    origin = typing.get_origin(kind)
    if origin is dict:
        return {"digits": value}
    if origin is tuple:
        length = len([part for part in typing.get_args(kind) if part is not Ellipsis])
        return (value,) * max(length, 3)
    return value


FIELDS = sorted(numbers(), key=lambda item: (item[0].__name__, item[1]))


def test_there_are_many():
    assert len(FIELDS) > 100


@pytest.mark.parametrize(
    ("config", "name", "kind", "number"), FIELDS, ids=[f"{c.__name__}.{n}" for c, n, *_ in FIELDS]
)
def test_nonsense_is_refused(config, name, kind, number):
    given = required(config)
    assert config(**given)
    for value in (-5,) if number is int else (-5.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=name):
            config(**{**given, name: shaped(kind, value)})
