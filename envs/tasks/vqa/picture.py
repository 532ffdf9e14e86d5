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

from envs.pixels import to_rgb
from envs.spec import DataError
from envs.tasks.vqa.finding import PictureFolders

_COCO = re.compile(r"COCO_\w+?_0*(\d+)|(?:train|val|test)20\d\d/0*(\d+)\.", re.IGNORECASE)
_VISUAL_GENOME = re.compile(r"(?:VG_100K(?:_2)?|visual[_ -]?genome|\bvg)/(\d+)\.", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:.*[_/])?(\d+)(?:\.[A-Za-z]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One encoded picture.

    Attributes:
        content: its bytes, if available.
        paths: files that may hold it otherwise; the first one that exists is taken.
    """

    content: bytes | None = None
    paths: tuple[Path, ...] = ()

    @classmethod
    def of_cell(cls, cell: Any, folders: PictureFolders | None) -> Picture | None:
        """The picture of a cell {bytes, path}; None if the cell is null.

        Args:
            cell: the cell as the `datasets` library gives it without decoding.
            folders: where pictures are that have only a path.
        """
        if cell is None:
            return None
        if not isinstance(cell, Mapping):
            raise DataError(f"an image column of {type(cell).__name__}: give bytes and path")
        if content := cell.get("bytes"):
            return cls(content=memoryview(content).tobytes())
        if not cell.get("path"):
            return None
        if folders is None:
            return cls(paths=(Path(cell["path"]),))
        return cls(paths=tuple(folders.paths(published_names(cell["path"]))))

    def open(self, sample_id: str) -> Image.Image:
        """Opens and decodes the picture, in its own mode.

        Raises:
            DataError: there is no such file, or it cannot be decoded; names the sample.
        """
        source = self.find(sample_id)
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

    def find(self, sample_id: str) -> Path | io.BytesIO:
        """Its file or its bytes; raises DataError naming the sample if there is neither."""
        if self.content is not None:
            return io.BytesIO(self.content)
        for path in self.paths:
            if os.path.isfile(path):  # unlike Path.is_file, also for a name that is too long
                return path
        tried = " and ".join(map(str, self.paths[:2]))
        more = f" and {len(self.paths) - 2} other names and folders" if self.paths[2:] else ""
        raise DataError(f"sample {sample_id}: its image is missing (looked for {tried}{more})")


def picture_key(name: str, data_set: str) -> str:
    """Identifies a picture across data sets, by its file name.

    `coco:42` for every name with COCO_ in it or in a folder of COCO, `vg:42` for a number in a
    folder of Visual Genome, in any spelling, otherwise the name within its data set.
    """
    if found := _COCO.search(name):
        return f"coco:{int(found[1] or found[2])}"
    if found := _VISUAL_GENOME.search(name):
        return f"vg:{int(found[1])}"
    return f"{data_set}:{name}"


def coco_key(cell: Any) -> str:
    """Identifies a COCO picture by its number, or by a file name that ends in it.

    Raises:
        DataError: there is no number.
    """
    found = _NUMBERED.fullmatch(str(cell).strip())
    if found is None:
        raise DataError(f"{cell!r} has no number of a COCO picture, such as 42 or COCO_42.jpg")
    return f"coco:{int(found[1])}"


def pixel_key(picture: Picture, data_set: str, place: str) -> str:
    """Identifies a picture by a hash of the pixels that the model sees, where it has no name.

    A picture that cannot be decoded is identified by its place.

    Args:
        picture: the picture.
        data_set: name of its data set.
        place: split and row.
    """
    try:
        pixels = to_rgb(picture.open(place))
    except (OSError, ValueError):
        return f"{data_set}:{place}"
    size = pixels.shape[1::-1]
    digest = hashlib.sha256(repr(size).encode() + pixels.tobytes())
    return f"{data_set}:{digest.hexdigest()[:16]}"


def coco_name(image_id: int, split: str) -> str:
    """The published path of a COCO picture of 2014."""
    return f"{split}/COCO_{split}_{image_id:012d}.jpg"


def published_names(name: str) -> tuple[str, ...]:
    """A relative path, and those that other releases give to the same picture.

    The release of COCO of 2017 has the pictures of 2014 without `COCO_...`, divided differently.
    """
    found = _COCO.search(name)
    if found is None:
        return (name,)
    later = f"{int(found[1] or found[2]):012d}.jpg"
    return (name, f"train2017/{later}", f"val2017/{later}")
