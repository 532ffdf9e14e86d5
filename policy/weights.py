"""Policy weights as plain arrays: what travels from the learner to the rollout actors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


def weights_sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """Hex digest over the names, dtypes, shapes and bytes of arrays, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyWeights:
    """One version of the trained weights; `sha256` is `weights_sha256(arrays)`."""

    version: int
    sha256: str
    arrays: Mapping[str, np.ndarray]

    def check(self) -> None:
        """Raises ValueError if the arrays do not match the hash."""
        actual = weights_sha256(self.arrays)
        if actual != self.sha256:
            raise ValueError(
                f"policy weights of version {self.version} arrived damaged: their sha256 is "
                f"{actual[:12]}, announced was {self.sha256[:12]}; fetch them again"
            )
