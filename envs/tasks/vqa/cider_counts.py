"""Document frequencies of a training split, counted once and mapped by every process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from envs.tasks.vqa.arrow_cache import ArrowCache
from envs.tasks.vqa.caption_tokens import caption_tokens
from envs.tasks.vqa.cider import DocumentFrequencies, ngrams
from envs.tasks.vqa.split import Split


class HashedCounts(Mapping[str, int]):
    """Counts by a 64-bit hash of the n-gram: a tenth of the memory of the n-grams themselves.

    Of two million n-grams, two have the same hash with a probability of one in ten million.

    Args:
        hashes: uint64, in order.
        counts: of each hash.
    """

    def __init__(self, hashes: np.ndarray, counts: np.ndarray) -> None:
        self._hashes, self._counts = hashes, counts

    def __getitem__(self, ngram: str) -> int:
        sought = np.frombuffer(_digest(ngram), np.uint64)[0]
        place = int(np.searchsorted(self._hashes, sought))
        if place == len(self._hashes) or self._hashes[place] != sought:
            raise KeyError(ngram)
        return int(self._counts[place])

    def __len__(self) -> int:
        return len(self._hashes)

    def __iter__(self) -> Iterator[str]:
        raise TypeError("the n-grams themselves are not kept")


def frequencies_of(
    captions: Iterable[Sequence[str]], train: Split, cache: ArrowCache
) -> DocumentFrequencies:
    """The frequencies of these captions, one item per picture, kept under the split's key."""
    chosen = hashlib.sha256(train.numbers.tobytes()).hexdigest()
    table = cache.table("cider", (*train.key, chosen), lambda: [_counted(captions)])
    num_images = json.loads(table.schema.metadata[b"num_images"])
    hashes, counts = (table[name].combine_chunks().to_numpy() for name in ("hash", "count"))
    return DocumentFrequencies(num_images=num_images, counts=HashedCounts(hashes, counts))


def _counted(captions: Iterable[Sequence[str]]) -> Any:
    """One record batch of the n-grams that describe two pictures or more."""
    import pyarrow as pa

    num_images, parts, pending = 0, [np.zeros(0, np.uint64)], bytearray()
    for references in captions:
        num_images += 1
        grams = {gram for text in references for gram in ngrams(caption_tokens(text))}
        pending += b"".join(map(_digest, grams))
        if len(pending) > 2**24:
            parts.append(np.frombuffer(bytes(pending), np.uint64))
            pending = bytearray()
    parts.append(np.frombuffer(bytes(pending), np.uint64))
    hashes, counts = np.unique(np.concatenate(parts), return_counts=True)
    common = counts > 1
    columns = [pa.array(hashes[common]), pa.array(counts[common].astype(np.int32))]
    fields = [("hash", pa.uint64()), ("count", pa.int32())]
    schema = pa.schema(fields, metadata={"num_images": json.dumps(num_images)})
    return pa.record_batch(columns, schema=schema)


def _digest(ngram: str) -> bytes:
    return hashlib.blake2b(ngram.encode("utf-8", "surrogatepass"), digest_size=8).digest()
