"""Profile records as columns, and the split that keeps a sample on one side.

Shapes: N records, 5 inputs and 2 targets in the estimator's order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from envs.spec import Tier
from rollout.estimator.estimator import INPUTS, TARGETS
from rollout.profiling.records import DecodeReading, LatencyRecord


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatencyTable:
    """Latency records as arrays, in one decode reading.

    Attributes:
        inputs_N5: float32, the estimator's inputs.
        targets_ms_N2: float64, prefill and decode per token.
        sample_N: number of each record's sample, an index into `samples`.
        dataset_N: number of each record's data set, an index into `datasets`.
        samples: sample keys in the order of first appearance.
        datasets: names in the order of first appearance.
    """

    inputs_N5: np.ndarray
    targets_ms_N2: np.ndarray
    sample_N: np.ndarray
    dataset_N: np.ndarray
    samples: tuple[str, ...]
    datasets: tuple[str, ...]

    @classmethod
    def of(cls, records: Iterable[LatencyRecord], reading: DecodeReading) -> LatencyTable:
        """Collects records; raises ValueError if there is none."""
        samples: dict[str, int] = {}
        datasets: dict[str, int] = {}
        inputs, targets, codes = [], [], []
        for record in records:
            inputs.append(
                (
                    record.vision_tokens,
                    record.text_tokens,
                    int(record.tier),
                    record.top_k,
                    record.num_active_blocks,
                )
            )
            targets.append((record.prefill_ms, record.decode_per_token_ms(reading)))
            sample = samples.setdefault(record.sample_key, len(samples))
            codes.append((sample, datasets.setdefault(record.dataset, len(datasets))))
        if not inputs:
            raise ValueError("no usable record: the report says which were skipped, and why")
        codes_N2 = np.array(codes)
        return cls(
            inputs_N5=np.array(inputs, np.float32),
            targets_ms_N2=np.array(targets, np.float64),
            sample_N=codes_N2[:, 0],
            dataset_N=codes_N2[:, 1],
            samples=tuple(samples),
            datasets=tuple(datasets),
        )

    def __len__(self) -> int:
        return len(self.inputs_N5)

    def rows(self, rows: np.ndarray) -> LatencyTable:
        """The table of some rows (indices or a mask); names stay."""
        return LatencyTable(
            inputs_N5=self.inputs_N5[rows],
            targets_ms_N2=self.targets_ms_N2[rows],
            sample_N=self.sample_N[rows],
            dataset_N=self.dataset_N[rows],
            samples=self.samples,
            datasets=self.datasets,
        )

    def configurations(self) -> list[str]:
        """Each record's configuration, for instance low-k4-b12."""
        return [
            f"{Tier(int(tier)).name.lower()}-k{int(top_k)}-b{int(num_blocks)}"
            for tier, top_k, num_blocks in self.inputs_N5[:, 2:]
        ]

    def batch(self, device: str | torch.device = "cpu") -> dict[str, Tensor]:
        """All rows as the trainer's batch."""
        columns = np.concatenate((self.inputs_N5, self.targets_ms_N2.astype(np.float32)), 1).T
        tensors = torch.from_numpy(np.ascontiguousarray(columns)).to(device)
        return dict(zip((*INPUTS, *TARGETS), tensors, strict=True))


def take(batch: Mapping[str, Tensor], rows_B: Tensor) -> dict[str, Tensor]:
    """A selection of rows of a batch."""
    return {name: column[rows_B] for name, column in batch.items()}


def split_by_sample(
    table: LatencyTable, *, train_share: float, seed: int
) -> tuple[LatencyTable, LatencyTable]:
    """Draws `train_share` of the samples for training; all records of a sample go with it.

    The draw depends on the seed and the set of sample keys, not on the order of files.

    Raises:
        ValueError: the share leaves one side without a sample.
    """
    names = np.array(table.samples)[np.unique(table.sample_N)]
    order = np.random.default_rng(seed).permutation(np.sort(names))
    num_train = round(train_share * len(order))
    if not 0 < num_train < len(order):
        raise ValueError(
            f"{len(order)} samples cannot be split at {train_share:.0%}: profile more samples"
        )
    is_train_by_sample = np.isin(np.array(table.samples), order[:num_train])
    is_train_N = is_train_by_sample[table.sample_N]
    return table.rows(is_train_N), table.rows(~is_train_N)
