"""Pictures of data sets: where their bytes are, how they are decoded, and what identifies them."""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from envs.spec import DataError

_COCO = re.compile(r"COCO_\w+?_0*(\d+)")
_VISUAL_GENOME = re.compile(r"(?:VG_100K(?:_2)?|visual_genome)/(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One encoded picture.

    Attributes:
        content: its bytes, if they are at hand.
        paths: files that may hold it otherwise; the first one that exists is taken.
    """

    content: bytes | None = None
    paths: tuple[Path, ...] = ()

    @classmethod
    def of_cell(cls, cell: Any, folder: Path | None) -> Picture | None:
        """The picture of a cell {bytes, path}, or the picture itself; None if the cell is null.

        Args:
            cell: the cell as the `datasets` library gives it without decoding.
            folder: folder that a relative path starts from.
        """
        if cell is None or isinstance(cell, Picture):
            return cell
        if not isinstance(cell, Mapping):
            raise DataError(f"an image column of {type(cell).__name__}: give bytes and path")
        if content := cell.get("bytes"):
            return cls(content=memoryview(content).tobytes())
        if not cell.get("path"):
            return None
        return cls(paths=((folder or Path()) / cell["path"],))

    def open(self, sample_id: str) -> Image.Image:
        """Opens and decodes the picture, in its own mode.

        Raises:
            DataError: there is no such file, or it cannot be decoded; names the sample.
        """
        source = self._source(sample_id)
        name = "its image" if isinstance(source, io.BytesIO) else f"image {source}"
        try:
            with warnings.catch_warnings():
                # Large scans are reduced later; only those beyond Pillow's limit are refused.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                image = Image.open(source)
                image.load()
        except Image.DecompressionBombError as error:
            raise DataError(f"sample {sample_id}: {name} is too large ({error})") from None
        except Exception as error:  # Pillow's decoders raise many kinds
            raise DataError(
                f"sample {sample_id}: {name} is broken ({error}): download it again"
            ) from None
        if min(image.size) < 2:
            width, height = image.size
            raise DataError(f"sample {sample_id}: {name} is only {width} x {height} pixels large")
        return image

    def _source(self, sample_id: str) -> Path | io.BytesIO:
        if self.content is not None:
            return io.BytesIO(self.content)
        for path in self.paths:
            if os.path.isfile(path):  # unlike Path.is_file, also for a name that is too long
                return path
        tried = " and ".join(map(str, self.paths[:2]))
        raise DataError(f"sample {sample_id}: its image is missing (looked for {tried})")


def picture_key(name: str, data_set: str) -> str:
    """Identifies a picture across data sets, by its file name.

    `coco:42` for every name with COCO_ in it, `vg:42` for Visual Genome, otherwise the name within
    its data set.
    """
    if found := _COCO.search(name):
        return f"coco:{int(found[1])}"
    if found := _VISUAL_GENOME.search(name):
        return f"vg:{int(found[1])}"
    return f"{data_set}:{name}"


def pixel_key(picture: Picture, data_set: str, sample_id: str) -> str:
    """Identifies a picture by a hash of its decoded pixels, where it has no name of its own.

    A picture that cannot be decoded is identified by its sample.
    """
    try:
        image = picture.open(sample_id).convert("RGB")
    except (OSError, ValueError):
        return f"{data_set}:{sample_id}"
    digest = hashlib.sha256(repr(image.size).encode() + image.tobytes())
    return f"{data_set}:{digest.hexdigest()[:16]}"


def coco_paths(folder: Path, image_id: int, splits: tuple[str, ...]) -> tuple[Path, ...]:
    """The files that may hold a COCO picture: by its name of 2014, then by that of 2017."""
    own = [folder / split / f"COCO_{split}_{image_id:012d}.jpg" for split in splits]
    later = [folder / split / f"{image_id:012d}.jpg" for split in ("train2017", "val2017")]
    return (*own, *later)
