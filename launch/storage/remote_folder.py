"""A folder of an object store; every call is retried several times."""

from __future__ import annotations

import pyarrow.fs

from launch.storage.retries import StoreError, retried

WRITABLE = ".writable"

ATOMIC_STORES = ("s3", "gcs", "abfs")
"""Stores in which an object appears whole or not at all; elsewhere it is renamed into place."""


class RemoteFolder:
    """A folder of an object store; failed calls are retried.

    Raises:
        ValueError: from the constructor, for a URI that cannot be used.
        StoreError: from every call, once all attempts have failed.
    """

    def __init__(self, uri: str) -> None:
        try:
            self.filesystem, path = pyarrow.fs.FileSystem.from_uri(uri.rstrip("/"))
        except (ValueError, OSError, pyarrow.ArrowException) as error:
            raise ValueError(f"{uri} cannot be used ({error})") from None
        self.uri, self.root = uri, path.rstrip("/")
        if not self.root:
            raise ValueError(f"{uri} names no bucket: give one, as in s3://bucket/run")

    def check_writable(self) -> None:
        """Raises ValueError if the folder cannot be written to."""
        try:
            self.put(WRITABLE, b"")
            self.filesystem.delete_file(f"{self.root}/{WRITABLE}")
        except (StoreError, OSError) as error:
            raise ValueError(
                f"--run-dir {self.uri} cannot be written to ({error}): check that the bucket "
                "exists, its endpoint and region, and your credentials"
            ) from None

    def list(self) -> set[str]:
        """Paths of all files, relative to the folder."""
        selector = pyarrow.fs.FileSelector(self.root, allow_not_found=True, recursive=True)
        found = retried(f"listing {self.uri}", lambda: self.filesystem.get_file_info(selector))
        files = (info.path for info in found if info.type == pyarrow.fs.FileType.File)
        return {path.removeprefix(f"{self.root}/") for path in files}

    def get(self, name: str) -> bytes:
        """The content of a file."""

        def read() -> bytes:
            with self.filesystem.open_input_stream(f"{self.root}/{name}") as stream:
                return stream.read()

        return retried(f"reading {name}", read)

    def put(self, name: str, content: bytes) -> None:
        """Writes a file, whole or not at all."""
        target = f"{self.root}/{name}"
        is_atomic = self.filesystem.type_name in ATOMIC_STORES

        def write() -> None:
            if is_atomic:
                with self.filesystem.open_output_stream(target) as stream:
                    stream.write(content)
                return
            folder, _, base = target.rpartition("/")
            self.filesystem.create_dir(folder, recursive=True)
            with self.filesystem.open_output_stream(f"{folder}/.{base}.partial") as stream:
                stream.write(content)
            self.filesystem.move(f"{folder}/.{base}.partial", target)

        retried(f"writing {name}", write)

    def remove_file(self, name: str) -> None:
        """Removes a file."""
        path = f"{self.root}/{name}"
        retried(f"removing {name}", lambda: self.filesystem.delete_file(path))

    def remove_folder(self, name: str) -> None:
        """Removes a folder with all that is in it."""
        path = f"{self.root}/{name}"
        retried(f"removing {name}", lambda: self.filesystem.delete_dir(path))
