"""CIFAR-10 and CIFAR-100: downloaded with a checksum, or from files on this machine in any of their published forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError, OptionError
from .archive import read_members
from .digits import Images
from .download import download, origin
from .npz import read_npz
from .pickled import read_pickle
from .split import LARGEST, Split, check_labels, standardised


__all__ = ["cifar10", "cifar100"]

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Edition:
    """How one of the two sets is published.

    Attributes:
        title, name: what it is called, and in `download`.
        python, binary: the folders and the archives' stems of the versions for Python and in binary.
        train, test: names of the files, without the ending ``.bin`` of the binary version.
        labels: the key of the labels in a pickle.
        num_classes: how many there are.
        label_bytes, position: how many bytes of labels stand before an image in the binary version, and which one is meant.
    """

    title: str
    name: str
    python: tuple[str, str]
    binary: tuple[str, str]
    train: tuple[str, ...]
    test: str
    labels: bytes
    num_classes: int
    label_bytes: int
    position: int

    @property
    def again(self) -> str:
        """What to do about a bad or missing file."""
        return f"get {origin(self.name)} and unpack it"


def _ten() -> _Edition:
    batches = tuple(f"data_batch_{i}" for i in range(1, 6))
    python, binary = ("cifar-10-batches-py", "cifar-10-python"), ("cifar-10-batches-bin", "cifar-10-binary")
    return _Edition("CIFAR-10", "cifar-10", python, binary, batches, "test_batch", b"labels", 10, 1, 0)


def _hundred(labels: str) -> _Edition:
    if labels not in ("fine", "coarse"):
        raise OptionError(f"labels must be 'fine' (100 classes) or 'coarse' (20 classes), got {labels!r}")
    python, binary = ("cifar-100-python", "cifar-100-python"), ("cifar-100-binary", "cifar-100-binary")
    fine = labels == "fine"
    key, classes = f"{labels}_labels".encode(), 100 if fine else 20
    return _Edition("CIFAR-100", "cifar-100", python, binary, ("train",), "test", key, classes, 2, int(fine))


def cifar10(folder: str | Path | None = None, *, progress: bool = True) -> Split:
    """CIFAR-10 as images (N, 32, 32, 3) with labels 0..9: 50,000 to train on and 10,000 to test on.

    Levels are divided by 255, then standardised as ``(x - mean) / sd`` with one mean and one standard deviation per
    colour of all training pixels. The version for Python consists of pickles, which can run any code when they are
    loaded; here nothing in them is called, and names other than those of a numpy array are refused. Archives are read
    without being unpacked.

    Args:
        folder: where ``data_batch_1``, ..., ``data_batch_5`` and ``test_batch`` lie (each with the ending ``.bin`` in the binary
            version), or the folder above, or a folder with ``cifar-10-python.tar.gz`` or ``cifar-10-binary.tar.gz``; or
            one of these archives; or an ``.npz`` file as for `from_npz`. None to download the first archive once, see
            `download`.
        progress: whether to show a bar while downloading.

    Raises:
        DataError: a file is missing, cut off, damaged, or asks for anything but arrays, labels are out of range, or the
            download failed.
    """
    return _read(_ten(), folder, progress)


def cifar100(folder: str | Path | None = None, *, labels: str = "fine", progress: bool = True) -> Split:
    """CIFAR-100 as images (N, 32, 32, 3): 50,000 to train on and 10,000 to test on; all else as for `cifar10`.

    Args:
        folder: where ``train`` and ``test`` lie, or ``train.bin`` and ``test.bin``, or their archive, as for `cifar10`.
        labels: ``"fine"`` for 100 classes, ``"coarse"`` for 20.
        progress: whether to show a bar while downloading.

    Raises:
        DataError: as for `cifar10`.
        OptionError: other labels.
    """
    return _read(_hundred(labels), folder, progress)


def _read(edition: _Edition, folder: str | Path | None, progress: bool) -> Split:
    path = Path(folder) if folder is not None else download(edition.name, progress=progress)
    if path.suffix == ".npz":
        split = read_npz(path)
        if split.train.x.shape[1:] != (32, 32, 3):
            raise DataError(f"{path} has images of shape {split.train.x.shape[1:]}, those of {edition.title} have (32, 32, 3)")
    else:
        files, binary = _files(edition, path)
        batch = _binary_batch if binary else _python_batch
        *batches, test = (batch(edition, where, content) for where, content in files.items())
        train = Images(np.concatenate([part.x for part in batches]), np.concatenate([part.y for part in batches]))
        split = Split(train, test)
    return standardised(check_labels(split, edition.num_classes, path))


def _files(edition: _Edition, path: Path) -> tuple[Mapping[Path, bytes], bool]:
    """The contents of all files, those of the training set first, and whether they are of the binary version."""
    versions = {
        False: (edition.python, [*edition.train, edition.test]),
        True: (edition.binary, [f"{name}.bin" for name in (*edition.train, edition.test)]),
    }
    for binary, ((inner, _), names) in versions.items():
        for folder in (path / inner, path):
            if (folder / names[0]).is_file():
                return {folder / name: _content(folder / name, edition) for name in names}, binary
    for binary, ((inner, stem), names) in versions.items():
        archive = path if path.name == f"{stem}.tar.gz" else path / f"{stem}.tar.gz"
        if archive.is_file():
            members = [f"{inner}/{name}" for name in names]
            contents = read_members(archive, members, f"get it again from {origin(edition.name)}")
            return {archive / member: contents[member] for member in members}, binary
    raise DataError(f"{path} has no {edition.train[0]}: {edition.again} there")


def _content(path: Path, edition: _Edition) -> bytes:
    if not path.is_file():
        raise DataError(f"{path.parent} has no {path.name}: {edition.again} there")
    if path.stat().st_size > LARGEST:
        raise DataError(f"{path} has {path.stat().st_size} bytes, more than any batch of {edition.title}: {edition.again} anew")
    return path.read_bytes()


def _python_batch(edition: _Edition, where: Path, content: bytes) -> Images:
    """A pickled dictionary whose ``data`` is an array (N, 3 * 32 * 32) and whose labels are a list."""
    try:
        batch = read_pickle(content)
        x, labels = batch[b"data"], batch[edition.labels]
        highest = edition.num_classes - 1
        if type(labels) is not list or any(type(label) is not int or not 0 <= label <= highest for label in labels):
            raise ValueError(f"its labels are no list of whole numbers 0..{highest}")
        if not isinstance(x, np.ndarray):
            raise ValueError("its data are no array")
        if not labels or x.shape != (len(labels), _PIXELS):
            raise ValueError(f"its data have the shape {x.shape}, and there are {len(labels)} labels")
    except Exception as error:  # damaged pickles raise anything
        raise DataError(
            f"{where} is no batch of {edition.title} ({type(error).__name__}: {error}): {edition.again} anew"
        ) from error
    return Images(_upright(x), np.array(labels, np.int32))


def _binary_batch(edition: _Edition, where: Path, content: bytes) -> Images:
    """Records of one or two bytes of labels and 3 * 32 * 32 bytes of levels."""
    record = edition.label_bytes + _PIXELS
    if not content or len(content) % record:
        raise DataError(
            f"{where} has {len(content)} bytes, and {edition.title} has records of {record}: it is cut off or another file; "
            f"{edition.again} anew"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return Images(_upright(records[:, edition.label_bytes :]), records[:, edition.position].astype(np.int32))


def _upright(rows: np.ndarray) -> np.ndarray:
    """Rows of 1024 levels of red, of green and of blue as images (N, 32, 32, 3)."""
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
