"""A saved controller: `controller.safetensors` with the weights, `controller.json` with the rest.

The JSON holds the format version, the configuration, the knob set that the heads were trained
for, the hash of the weights and a hash of all that, so that a controller is never run with knobs
of another meaning, or with a budget range that someone has edited.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from envs.spec import HEADS, MIN_BLOCKS_AFTER_POSITION
from policy.config import ControllerConfig
from policy.weights import weights_sha256

FORMAT_VERSION = 4
JSON_NAME = "controller.json"
WEIGHTS_NAME = "controller.safetensors"


def knob_set() -> dict[str, Any]:
    """The meaning of the heads' choice indices, as written into the JSON."""
    return {
        **{head.plural: list(head.amounts) for head in HEADS},
        "min_blocks_after_position": MIN_BLOCKS_AFTER_POSITION,
    }


def _description_sha256(description: Mapping[str, Any]) -> str:
    """Hex digest of a description without its own hash."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def to_files(config: ControllerConfig, arrays: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Returns the two files of a controller, by name."""
    description = {
        "format_version": FORMAT_VERSION,
        "config": asdict(config),
        "knobs": knob_set(),
        "weights_sha256": weights_sha256(arrays),
    }
    description["sha256"] = _description_sha256(description)
    return {
        WEIGHTS_NAME: save_safetensors(dict(arrays)),
        JSON_NAME: (json.dumps(description, indent=2) + "\n").encode(),
    }


def save(folder: Path, config: ControllerConfig, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the two files of a controller into a folder, made if absent."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in to_files(config, arrays).items():
        (folder / name).write_bytes(content)


def load(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads and checks a controller's configuration fields and weights.

    Raises:
        ValueError: a file is absent, broken, of another format or of another knob set.
    """
    description = _load_description(folder / JSON_NAME)
    path = folder / WEIGHTS_NAME
    try:
        arrays = load_safetensors(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): restore it from another checkpoint"
        ) from error
    if weights_sha256(arrays) != description.get("weights_sha256"):
        raise ValueError(
            f"{path} is not the file that {JSON_NAME} describes (its hash differs): restore both "
            "from the same checkpoint"
        )
    return description["config"], arrays


def _load_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        version, knobs = description["format_version"], description["knobs"]
        if not isinstance(description["config"], dict):
            raise TypeError("config is not an object")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read as a controller's description ({error!r}): name a folder "
            "written by Controller.save, or restore the file from another checkpoint"
        ) from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version} and this program reads {FORMAT_VERSION}: use "
            "the release that wrote it, or train a new controller"
        )
    if knobs != knob_set():
        raise ValueError(
            f"{path} was trained for other knobs ({knobs}; this program has {knob_set()}): use "
            "the release that wrote it, or train a new controller"
        )
    if description.pop("sha256", None) != _description_sha256(description):
        raise ValueError(
            f"{path} has been edited or damaged (its hash differs from its content): restore it "
            "from its checkpoint, or train a new controller"
        )
    return description
