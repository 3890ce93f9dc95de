"""Files out of a .tar.gz, read in memory: nothing is unpacked, so no name in the archive can reach another folder."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Collection
from pathlib import Path

from ..errors import DataError


__all__ = ["read_members"]

_MOST = 2**29
"""Bytes that an archive may hold once decompressed: the CIFAR sets have 1.9e8."""


def read_members(path: Path, wanted: Collection[str], again: str) -> dict[str, bytes]:
    """The contents of the regular files with these names in a ``.tar.gz``.

    Args:
        path: the archive.
        wanted: names, with their folders. Everything else is passed over.
        again: what to do about a bad archive, for messages.

    Raises:
        DataError: the archive is cut off or damaged, lacks one of the files, has one twice or as a link, or holds more than
            any of these sets.
    """
    found: dict[str, bytes] = {}
    try:
        with gzip.open(path, "rb") as stream, tarfile.open(fileobj=(bounded := _Bounded(stream)), mode="r|") as archive:
            for member in archive:
                if member.name not in wanted:
                    continue
                if not member.isreg() or member.name in found:
                    raise DataError(f"{path} has {member.name} as a link, or twice: {again}")
                file = archive.extractfile(member)
                assert file is not None  # a regular file
                found[member.name] = file.read()
            while bounded.read(2**20):  # only at its end is the checksum compared
                pass
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {error}): {again}") from error
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(f"{path} has no {missing[0]}: {again}")
    return found


class _Bounded(io.RawIOBase):
    """A stream that ends with an error once it has given more than any of these sets."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self.stream, self.given = stream, 0

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        content = self.stream.read(min(size, _MOST) if size >= 0 else _MOST)
        self.given += len(content)
        if self.given > _MOST:
            raise tarfile.ReadError(f"it holds more than {_MOST} bytes, which is more than any such set")
        return content
