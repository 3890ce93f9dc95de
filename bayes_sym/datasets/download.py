"""Published files, fetched once into a cache and compared with their published checksums."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError, OptionError


__all__ = ["ORIGINS", "Origin", "download", "origin"]


class Origin(NamedTuple):
    """Where a set is published.

    Attributes:
        urls: folders on servers with the same files; they are tried in this order.
        files: the SHA-256 of every file, by its name.
    """

    urls: tuple[str, ...]
    files: dict[str, str]


# The sums of MNIST and Fashion-MNIST are those that TensorFlow Datasets records, the sums of CIFAR those in Keras; other
# projects record the same beside the MD5 sums that the publishers of Fashion-MNIST and CIFAR give.
ORIGINS = {
    "mnist": Origin(
        ("https://storage.googleapis.com/cvdf-datasets/mnist", "https://ossci-datasets.s3.amazonaws.com/mnist"),
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion-mnist": Origin(
        (
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        ),
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
    "cifar-10": Origin(
        ("https://www.cs.toronto.edu/~kriz",),
        {"cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"},
    ),
    "cifar-100": Origin(
        ("https://www.cs.toronto.edu/~kriz",),
        {"cifar-100-python.tar.gz": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"},
    ),
}
"""All sets that can be downloaded."""


def origin(name: str) -> str:
    """Where to get a set by hand, for messages: its archive, or the folder of its files."""
    urls, files = ORIGINS[name]
    return f"{urls[0]}/{next(iter(files))}" if len(files) == 1 else urls[0]


def download(name: str, folder: str | Path | None = None, *, progress: bool = True) -> Path:
    """Fetches the files of a set that are not there yet, and compares all of them with their published checksums.

    `mnist`, `fashion_mnist`, `cifar10` and `cifar100` call this when they are given no folder. 12 MB, 31 MB, 170 MB and 169 MB.

    Args:
        name: ``"mnist"``, ``"fashion-mnist"``, ``"cifar-10"`` or ``"cifar-100"``.
        folder: where to put them. None for ``<cache>/<name>`` in the user's cache folder, as ``pooch.os_cache("bayes-sym")``
            names it.
        progress: whether to show a bar.

    Returns:
        The folder.

    Raises:
        OptionError: an unknown name.
        DataError: pooch is not installed, no server could be reached, or what came has another checksum.
    """
    if name not in ORIGINS:
        raise OptionError(f"there is no set {name!r} to download, only {', '.join(map(repr, ORIGINS))}")
    pooch = _pooch(name)
    where = Path(folder) if folder is not None else Path(pooch.os_cache("bayes-sym")) / name
    urls, files = ORIGINS[name]
    for file, checksum in files.items():
        failures = []
        for url in urls:
            try:
                pooch.retrieve(f"{url}/{file}", f"sha256:{checksum}", fname=file, path=where, progressbar=progress)
                break
            except (OSError, ValueError) as error:  # no connection, no such page, no room; another checksum
                failures.append(f"{url}: {type(error).__name__}: {error}")
        else:
            raise DataError(
                f"{file} of {name} could not be downloaded into {where} ({'; '.join(failures)}): get it by other means, put it into "
                "a folder and give that folder"
            )
    return where


def _pooch(name: str) -> Any:
    try:
        import pooch
    except ImportError as error:
        raise DataError(
            f'downloading {name} needs pooch, which is not installed: pip install "bayes-sym[data]", or get {origin(name)} yourself and '
            "give its folder"
        ) from error
    return pooch
