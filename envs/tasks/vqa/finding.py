"""One search for everything that a data set has on disk: annotation files and folders of pictures.

Publishers, mirrors and toolkits lay the same files out in different ways. A loader names what it
wants; the search says where that is or, in one line, what it looked for and what it found.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from envs.spec import DataError

MAX_DEPTH = 5
"""Depth of nested folders that are searched."""

MAX_PICTURES = 5_000
"""Pictures of one folder that are listed; its other files and folders are all listed."""

MAX_ENTRIES = 5_000_000
"""Entries of one folder that are looked at."""

MAX_FOLDERS = 4_000
"""Folders that are looked at in one search."""

ANNOTATION_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
PACKED_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".zst")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".gif", ".webp", ".bmp")

Folder = tuple[Path, list[str], list[str]]
"""A folder, its folders and its files."""


def walk(root: Path) -> Iterator[Folder]:
    """The folders below a root, the nearest first, in a fixed order; links are followed.

    Folders that cannot be read, hidden ones and those beyond the limits above are left out.
    """
    level, num_seen = [root], 0
    for _ in range(MAX_DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            num_seen += 1
            if num_seen > MAX_FOLDERS:
                return
            folders, files = _entries(folder)
            yield folder, folders, files
            below += [folder / name for name in folders]
        level = below


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    folders, files = [], []
    try:
        with os.scandir(folder) as found:
            num_pictures = 0
            for entry, _ in zip(found, range(MAX_ENTRIES), strict=False):
                is_picture = entry.name.endswith(PICTURE_SUFFIXES)
                num_pictures += is_picture
                if entry.name.startswith(".") or (is_picture and num_pictures > MAX_PICTURES):
                    continue
                (folders if entry.is_dir() else files).append(entry.name)
    except OSError:
        return [], []
    return sorted(folders), sorted(files)


def find_file(root: Path, names: Sequence[str], what: str) -> Path:
    """The one file with one of these names, the first name before the others, the nearest first.

    Args:
        root: folder that is searched with the folders in it.
        names: file names; letter case, spaces, `-` and `_` are ignored.
        what: what the file is, for the message.

    Raises:
        DataError: there is none, or several at the same distance; says what was found instead.
    """
    for name in names:
        if (root / name).is_file():  # also among more pictures than are listed
            return root / name
    tree = list(walk(root))
    for name in names:
        for depth in range(MAX_DEPTH + 1):
            found = [
                folder / file
                for folder, _, files in tree
                if len(folder.relative_to(root).parts) == depth
                for file in files
                if plain(file) == plain(name)
            ]
            if len(found) > 1:
                places = " and ".join(str(path.relative_to(root)) for path in found[:3])
                raise DataError(
                    f"{root} has {what} several times ({places}): name the folder of one of them"
                )
            if found:
                return found[0]
    raise DataError(
        f"{root} has no {' or '.join(names)} ({what}; folders {MAX_DEPTH} levels deep were "
        f"searched too): {what_is_in(root, tree)}"
    )


def what_is_in(root: Path, tree: Iterable[Folder] | None = None) -> str:
    """What a search that failed found instead, and what to do about it.

    Args:
        root: the folder.
        tree: the result of `walk`, if known.
    """
    tree = walk(root) if tree is None else tree
    paths = [folder / file for folder, _, files in tree for file in files]
    packed = [path for path in paths if path.suffix.lower() in PACKED_SUFFIXES]
    others = [path for path in paths if path.suffix.lower() in ANNOTATION_SUFFIXES]
    if packed:
        names = _listed([str(path.relative_to(root)) for path in packed])
        return f"found {names}, still packed: unpack it there"
    if others:
        names = _listed([str(path.relative_to(root)) for path in others])
        return f"found {names}: is it this data set, and complete?"
    if paths:
        return f"found {len(paths)} files, none of them annotations: download them into it"
    return "found nothing in it: is it the right folder, and are the data unpacked?"


def packed_in(root: Path) -> str:
    """The archives below a folder, in words; empty if there are none."""
    paths = [place / name for place, _, names in walk(root) for name in names]
    packed = [path for path in paths if path.suffix.lower() in PACKED_SUFFIXES]
    return _listed([str(path.relative_to(root)) for path in packed])


def _listed(names: Sequence[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def plain(name: str) -> str:
    """A name without letter case and separators: VisualGenome is visual_genome."""
    return re.sub(r"[\s_-]+", "", name).lower()


@dataclass(frozen=True, kw_only=True)
class PictureFolders:
    """Where the pictures of a data set are.

    A picture is looked for at its published path below the root, then in every folder whose path
    ends like the published one, with folder names replaced by `aliases`, then in the root itself,
    and finally with other suffixes (`.JPG`, `.png`).

    Attributes:
        root: folder that holds the pictures or the folders of pictures.
        aliases: other names of a published folder, by its name; "" for the root itself.
    """

    root: Path
    aliases: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @cached_property
    def _by_name(self) -> Mapping[str, tuple[Path, ...]]:
        """All folders below the root by their plain names, the nearest first."""
        found: dict[str, list[Path]] = {}
        for folder, _, _ in walk(self.root):
            found.setdefault(plain(folder.name), []).append(folder)
        return {name: tuple(paths) for name, paths in found.items()}

    def paths(self, names: Sequence[str]) -> Iterator[Path]:
        """The files that may hold a picture, the most likely first.

        Args:
            names: published relative path, and others under which the same picture is published.
        """
        given = list(dict.fromkeys(path for name in names for path in self._places(name)))
        yield from given
        for path in given:
            for suffix in PICTURE_SUFFIXES:
                if suffix != path.suffix:
                    yield path.with_suffix(suffix)

    def _places(self, name: str) -> Iterator[Path]:
        yield self.root / name
        path = PurePosixPath(name)
        if len(path.parts) > 1:
            *parents, file = path.parts
            for folder in self._folders(parents):
                yield folder / file
            yield self.root / file

    def _folders(self, parents: Sequence[str]) -> Iterator[Path]:
        """The folders whose path ends with these names, or with aliases of the last one."""
        *above, last = (plain(name) for name in parents)
        for name in (last, *map(plain, self.aliases.get(parents[-1], ()))):
            for folder in self._by_name.get(name, ()):
                own = [plain(part) for part in folder.parts[:-1]]
                if not above or own[-len(above) :] == list(above):
                    yield folder
