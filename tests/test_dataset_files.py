"""Standard sets from files: every published format reads back what was written, and no file is trusted."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_sym.datasets import cifar10, cifar100, download, fashion_mnist, from_npz, mnist, placements, quadrant_mnist
from bayes_sym.datasets.download import ORIGINS, Origin
from bayes_sym.errors import DataError, OptionError


# MNIST and its like


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder, *, side=28, classes=10, compressed=False, counts=(30, 12)):
    """Four tiny files in the published format; returns their arrays."""
    rng, arrays = np.random.default_rng(0), []
    for prefix, count in zip(("train", "t10k"), counts, strict=True):
        x, y = rng.integers(0, 256, (count, side, side), np.uint8), rng.integers(0, classes, count, np.uint8)
        arrays += [x, y]
        for name, content in ((f"{prefix}-images-idx3-ubyte", idx(x)), (f"{prefix}-labels-idx1-ubyte", idx(y))):
            (folder / (name + ".gz" * compressed)).write_bytes(gzip.compress(content) if compressed else content)
    return arrays


@pytest.mark.parametrize("compressed", [False, True])
def test_mnist_reads_what_was_written(tmp_path, compressed):
    x, y, x_test, y_test = write_mnist(tmp_path, compressed=compressed)
    split = mnist(str(tmp_path))
    assert split.train.x.shape == (30, 28, 28, 1) and split.train.x.dtype == np.float32 and split.train.y.dtype == np.int32
    assert (split.train.y == y).all() and (split.test.y == y_test).all()
    mean, sd = (x / 255).mean(), (x / 255).std()
    assert np.abs(split.train.x[..., 0] - (x / 255 - mean) / sd).max() < 1e-6
    assert np.abs(split.test.x[..., 0] - (x_test / 255 - mean) / sd).max() < 1e-6


def test_mnist_reads_other_spellings_and_sizes(tmp_path):
    x, *_ = write_mnist(tmp_path, side=5, classes=40)
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert mnist(tmp_path, num_classes=None).train.x.shape == (30, 5, 5, 1)
    with pytest.raises(DataError, match="labels up to 39, and 10 classes have labels 0..9: the labels are damaged"):
        mnist(tmp_path)
    with pytest.raises(DataError, match=r"28x28 images with labels 0..9, .* has images of shape \(5, 5, 1\)"):
        quadrant_mnist(tmp_path)


def test_quadrants_of_mnist_are_the_resized_canvas_and_commute_with_rolls(tmp_path):
    x, y, *_ = write_mnist(tmp_path)
    split, digit = quadrant_mnist(tmp_path, seed=4, task="quadrant"), quadrant_mnist(tmp_path, seed=4)
    assert (split.train.x == digit.train.x).all() and (split.train.y % 10 == digit.train.y).all() and (digit.train.y == y).all()
    canvas = np.zeros((30, 56, 56), np.float32)
    for i, q in enumerate(split.train.y // 10):
        canvas[i, 28 * (q in (2, 3)) :, 28 * (q in (1, 3)) :][:28, :28] = x[i] / np.float32(255)
    resized = np.asarray(jax.image.resize(jnp.asarray(canvas), (30, 32, 32), "bilinear", antialias=False))
    mean, sd = resized.astype(np.float64).mean(), resized.astype(np.float64).std()
    assert np.abs(split.train.x[..., 0] - (resized - mean) / sd).max() < 1e-5
    assert len(np.unique(split.train.y // 10)) == 4
    # the resize itself commutes with rolls by half a side, up to the rounding of its weights in float32
    rolled = jax.image.resize(jnp.roll(jnp.asarray(canvas), (28, 28), (1, 2)), (30, 32, 32), "bilinear", antialias=False)
    assert np.abs(np.asarray(rolled) - np.roll(resized, (16, 16), (1, 2))).max() < 1e-5
    # and here exactly: another seed has the same digits in other quadrants
    other = quadrant_mnist(tmp_path, seed=5, task="quadrant")
    moved = split.train.y // 10 ^ other.train.y // 10
    assert len(np.unique(moved)) == 4
    assert (placements(split.train.x)[moved, np.arange(30)] == other.train.x).all()


DAMAGE = {
    "cut off": (lambda b: b[:-7], r"announces 23520 bytes of shape \(30, 28, 28\) and holds 23513"),
    "too long": (lambda b: b + b"x", "and holds more"),
    "no header": (lambda b: b[:9], "no IDX file of bytes with 3 axes, it starts with 00 00 08 03"),
    "empty": (lambda b: b"", "no IDX file"),
    "another format": (lambda b: b"PK" + b, "it starts with 50 4b 00 00"),
    "floats": (lambda b: b"\0\0\x0d" + b[3:], "it starts with 00 00 0d 03"),
    "huge": (lambda b: b[:4] + b"\xff" * 12, "more than any such set has"),
    "fewer": (lambda b: idx(np.zeros((29, 28, 28), np.uint8)), "29 train images and 30 labels"),
    "flat": (lambda b: idx(np.zeros((30, 28, 28), np.uint8)), "all training pixels of a colour have one level"),
    "other shape": (lambda b: idx(np.zeros((30, 28, 27), np.uint8)), r"shape \(28, 27\) and others of \(28, 28\)"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_mnist_files_are_named(tmp_path, damage, message):
    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        mnist(tmp_path)


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:40] + b"junk" + b[44:], lambda b: b"junk" + b])
def test_damaged_archives_are_named(tmp_path, damage):
    write_mnist(tmp_path, compressed=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz cannot be read .* get it again from https"):
        mnist(tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match="has no train-images-idx3-ubyte, nor .*gz: get it from https"):
        mnist(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no data_batch_1: get https.*cifar-10-python.tar.gz"):
        cifar10(tmp_path)


def python2_pickle(x, labels, *, fortran=False, dtype=b"u1"):
    """A batch as Python 2 wrote it, which is how the files are published: strings of bytes, and numpy's old names."""

    def text(value):
        return b"U" + bytes([len(value)]) + value  # SHORT_BINSTRING

    def number(value):
        return b"J" + struct.pack("<i", value)

    content = x.tobytes(order="F" if fortran else "C")
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    kind = b"cnumpy\ndtype\n(" + text(dtype) + b"K\x00K\x01tR(K\x03U\x01|NNN" + number(-1) * 2 + b"K\x00tb"
    state = b"(K\x01(" + b"".join(map(number, x.shape)) + b"t" + kind + (b"\x88" if fortran else b"\x89")
    state += b"T" + struct.pack("<i", len(content)) + content + b"t"
    listed = b"](" + b"".join(map(number, labels)) + b"e"
    return (
        b"\x80\x02}("
        + text(b"batch_label")
        + text(b"batch")
        + text(b"data")
        + array
        + state
        + b"b"
        + text(b"labels")
        + listed
        + b"u."
    )


def write_cifar(folder, **options):
    rng, arrays = np.random.default_rng(1), []
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        x, y = rng.integers(0, 256, (4, 3072), np.uint8), rng.integers(0, 10, 4)
        arrays.append((x, y))
        (folder / name).write_bytes(python2_pickle(x, y.tolist(), **options))
    return arrays


def test_the_python_2_pickle_of_the_tests_is_a_pickle(tmp_path):
    x = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for fortran in (False, True):
        found = pickle.loads(python2_pickle(x, [1, 2], fortran=fortran), encoding="bytes")
        assert (found[b"data"] == x).all() and found[b"labels"] == [1, 2]


@pytest.mark.parametrize("fortran", [False, True])
def test_cifar10_reads_what_was_written(tmp_path, fortran):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    arrays = write_cifar(folder, fortran=fortran)
    split = cifar10(tmp_path)
    assert split.train.x.shape == (20, 32, 32, 3) and split.test.x.shape == (4, 32, 32, 3)
    assert split.train.x.dtype == np.float32 and split.train.y.dtype == np.int32
    pixels = np.concatenate([x for x, _ in arrays[:5]]).reshape(-1, 3, 32, 32) / 255
    mean, sd = (reduce(pixels, axis=(0, 2, 3), keepdims=True) for reduce in (np.mean, np.std))
    assert np.abs(split.train.x - ((pixels - mean) / sd).transpose(0, 2, 3, 1)).max() < 1e-6
    assert (split.train.y == np.concatenate([y for _, y in arrays[:5]])).all()
    assert np.abs(split.test.x[2, 7, 9, 1] - (arrays[5][0][2, 1024 + 7 * 32 + 9] / 255 - mean[0, 1]) / sd[0, 1]).max() < 1e-6
    assert (split.test.y == cifar10(folder).test.y).all()


class Attack:
    """Makes a directory when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_runs_nothing(tmp_path, protocol):
    write_cifar(tmp_path)
    target = tmp_path / "attacked"
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps({"data": Attack(target), "labels": [1]}, protocol))
    with pytest.raises(DataError, match=r"data_batch_3 is no batch of CIFAR-10 .*asks for posix.mkdir"):
        cifar10(tmp_path)
    assert not target.exists()


BATCH = python2_pickle(np.zeros((2, 3072), np.uint8), [0, 1])
BAD_BATCHES = {
    "cut off": (BATCH[:-900], "expected 6144 bytes in a string4, but only"),
    "empty": (b"", "pickle exhausted before seeing STOP"),
    "text": (b"<html>not found</html>", "no batch of CIFAR-10"),
    "no data": (pickle.dumps({b"labels": [1]}), "KeyError: b'data'"),
    "a list": (pickle.dumps([1, 2]), "no batch of CIFAR-10"),
    "no array": (pickle.dumps({b"data": [1], b"labels": [1]}), "no batch of CIFAR-10"),
    "a dtype": (b"\x80\x02}(U\x04datacnumpy\ndtype\nU\x06labels](K\x01eu.", "no batch of CIFAR-10"),
    "objects": (python2_pickle(np.zeros((2, 3072), np.uint8), [0, 1], dtype=b"O8"), "no array of unsigned bytes"),
    "floats": (python2_pickle(np.zeros((2, 3072), np.uint8), [0, 1], dtype=b"f4"), "no array of unsigned bytes"),
    "other shape": (python2_pickle(np.zeros((2, 3071), np.uint8), [0, 1]), r"shape \(2, 3071\), and there are 2 labels"),
    "more labels": (python2_pickle(np.zeros((2, 3072), np.uint8), [0, 1, 2]), "there are 3 labels"),
    "another class": (python2_pickle(np.zeros((2, 3072), np.uint8), [0, 10]), r"whole numbers 0..9"),
    "no labels": (BATCH.replace(b"labels", b"titles"), "KeyError: b'labels'"),
    "short content": (BATCH.replace(struct.pack("<i", 3072), struct.pack("<i", 3073)), "cannot reshape"),
}


@pytest.mark.parametrize(("content", "message"), BAD_BATCHES.values(), ids=BAD_BATCHES.keys())
def test_damaged_batches_are_named(tmp_path, content, message):
    write_cifar(tmp_path)
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        cifar10(tmp_path)
    assert f"{tmp_path / 'test_batch'} is no batch of CIFAR-10" in str(caught.value) and "cifar-10-python.tar.gz" in str(
        caught.value
    )


def global_of(module, name):
    """A pickle that names a function and stores it, without calling it."""
    return f"\x80\x02}}U\x04datac{module}\n{name}\ns.".encode("latin1")


HOSTILE = {
    "a name that is only stored": (global_of("os", "system"), "asks for os.system"),
    "a builtin": (global_of("builtins", "eval"), "asks for builtins.eval"),
    "another name of numpy": (global_of("numpy", "load"), "asks for numpy.load"),
    "an attribute of an allowed name": (
        b"\x80\x04}\x8c\x04data\x8c\x05numpy\x8c\x12ndarray.__reduce__\x93s.",
        "ndarray.__reduce__",
    ),
    "an extension": (b"\x80\x02}U\x04data\x82\x01s.", "uses EXT1"),
    "a persistent name": (b"\x80\x02}U\x04dataU\x01xQs.", "uses BINPERSID"),
    "an instance": (b"\x80\x02}U\x04data(ios\nsystem\ns.", "uses INST"),
    "an object": (b"\x80\x02}U\x04data)cnumpy\nndarray\n)\x81s.", "uses NEWOBJ"),
    "room for 2^60 bytes": (b"\x80\x05}\x8e" + struct.pack("<Q", 2**60) + b"x", "expected 1152921504606846976 bytes"),
    "room for 2^31 memories": (b"\x80\x02}r" + struct.pack("<I", 2**31) + b".", "remembers thing number 2147483648"),
    "two pickles": (BATCH + BATCH, "bytes follow its end"),
    "another codec": (b"\x80\x02}U\x04datac_codecs\nencode\nX\x01\x00\x00\x00xU\x05rot13\x86Rs.", "other than text as latin1"),
    "a record as its key": (b"\x80\x02}cnumpy\nndarray\nK\x01s.", "a key of type _Recorded"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_pickles_are_refused(tmp_path, content, message):
    write_cifar(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(DataError, match=rf"data_batch_1 is no batch of CIFAR-10 .*{message}"):
        cifar10(tmp_path)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pickles_of_this_python_are_read_too(tmp_path, protocol):
    """As who saves a part of the set anew would write them: with other names in numpy, and bytes by way of a codec."""
    arrays = write_cifar(tmp_path)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        x, y = arrays.pop(0)
        (tmp_path / name).write_bytes(pickle.dumps({"data": x, "labels": y.tolist()}, protocol))
        arrays.append((x, y))
    again = cifar10(tmp_path)
    write_cifar(tmp_path)
    assert (again.train.x == cifar10(tmp_path).train.x).all() and (again.test.y == arrays[5][1]).all()


# The other forms of CIFAR


def cifar_files(labels=10, coarse=None, seed=3):
    """Names to (images (N, 3072), fine labels, coarse labels)."""
    rng = np.random.default_rng(seed)
    names = ("train", "test") if coarse else (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
    return {
        name: (rng.integers(0, 256, (4, 3072), np.uint8), rng.integers(0, labels, 4), rng.integers(0, coarse or 1, 4))
        for name in names
    }


def as_binary(x, fine, coarse=None):
    columns = [fine] if coarse is None else [coarse, fine]
    return np.concatenate([*(column[:, None].astype(np.uint8) for column in columns), x], axis=1).tobytes()


def as_images(parts):
    return np.concatenate(parts).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def standard(x, like):
    mean, sd = (reduce(like / 255, axis=(0, 1, 2)) for reduce in (np.mean, np.std))
    return (x / 255 - mean) / sd


def tar(path, contents, **changes):
    """A .tar.gz with these files; `changes` are attributes of the first member."""
    with tarfile.open(path, "w:gz") as archive:
        for i, (name, content) in enumerate(contents.items()):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in changes.items() if i == 0 else ():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))


def write_archive(path, files, inner="cifar-10-batches-py", **changes):
    contents = {f"{inner}/{name}": python2_pickle(x, fine.tolist()) for name, (x, fine, _) in files.items()}
    tar(path, {f"{inner}/readme.html": b"<html>", **contents}, **changes)


def check_split(split, files, which=1):
    *train, test = files.values()
    x = as_images([part[0] for part in train])
    assert np.abs(split.train.x - standard(x, x)).max() < 1e-6
    assert np.abs(split.test.x - standard(as_images([test[0]]), x)).max() < 1e-6
    assert (split.train.y == np.concatenate([part[which] for part in train])).all() and (split.test.y == test[which]).all()


@pytest.mark.parametrize("above", [False, True])
def test_the_binary_version_of_cifar10(tmp_path, above):
    files, folder = cifar_files(), tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name, (x, fine, _) in files.items():
        (folder / f"{name}.bin").write_bytes(as_binary(x, fine))
    check_split(cifar10(tmp_path if above else folder), files)


@pytest.mark.parametrize("version", ["python", "binary"])
@pytest.mark.parametrize("labels", ["fine", "coarse"])
def test_cifar100_has_two_kinds_of_labels(tmp_path, labels, version):
    files = cifar_files(100, 20)
    for name, (x, fine, coarse) in files.items():
        if version == "binary":
            (tmp_path / f"{name}.bin").write_bytes(as_binary(x, fine, coarse))
        else:
            content = {b"data": x, b"fine_labels": fine.tolist(), b"coarse_labels": coarse.tolist()}
            (tmp_path / name).write_bytes(pickle.dumps(content, 2))
    check_split(cifar100(tmp_path, labels=labels), files, 1 if labels == "fine" else 2)


@pytest.mark.parametrize("by_name", [False, True])
def test_archives_are_read_without_unpacking(tmp_path, by_name):
    files, path = cifar_files(), tmp_path / "cifar-10-python.tar.gz"
    write_archive(path, files)
    check_split(cifar10(path if by_name else tmp_path), files)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_binary_archive_of_cifar100(tmp_path):
    files = cifar_files(100, 20)
    contents = {f"cifar-100-binary/{name}.bin": as_binary(x, fine, coarse) for name, (x, fine, coarse) in files.items()}
    tar(tmp_path / "cifar-100-binary.tar.gz", contents)
    check_split(cifar100(tmp_path), files)


def test_names_in_an_archive_reach_no_other_folder(tmp_path):
    files, inside = cifar_files(), tmp_path / "inside"
    inside.mkdir()
    contents = {f"cifar-10-batches-py/{name}": python2_pickle(x, fine.tolist()) for name, (x, fine, _) in files.items()}
    outside = {"../escaped": b"x", "/tmp/../escaped": b"x", "cifar-10-batches-py/../../escaped": b"x"}
    tar(inside / "cifar-10-python.tar.gz", {**outside, **contents})
    check_split(cifar10(inside), files)
    assert [path.name for path in tmp_path.iterdir()] == ["inside"] and len(list(inside.iterdir())) == 1


def bomb(path, after_the_end, size=2**29 + 2**20):
    """An archive that after decompression holds more than any of these sets, in a member or after its end."""
    info = tarfile.TarInfo("big")
    info.size = 0 if after_the_end else size
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(info.tobuf() + bytes(1024) * after_the_end)
        for _ in range(size // 2**20):
            file.write(bytes(2**20))


def test_hostile_archives_are_refused(tmp_path):
    files, path = cifar_files(), tmp_path / "cifar-10-python.tar.gz"
    first = "cifar-10-batches-py/data_batch_1"
    write_archive(path, files)
    whole = path.read_bytes()
    for damage, message in {
        whole[: len(whole) // 2]: "cannot be read .*get it again from https://www.cs.toronto.edu",
        whole[:-6] + b"\0" + whole[-5:]: "cannot be read .*CRC",
        b"<html>": "cannot be read .*Not a gzipped file",
        b"": "cannot be read",
    }.items():
        path.write_bytes(damage)
        with pytest.raises(DataError, match=message):
            cifar10(path)
    tar(path, {"readme": b"x"})
    with pytest.raises(DataError, match=f"has no {first}: get it again"):
        cifar10(path)
    tar(path, {first: b""}, type=tarfile.SYMTYPE, linkname="/etc/passwd")
    with pytest.raises(DataError, match=f"{first} as a link, or twice"):
        cifar10(path)
    with tarfile.open(path, "w:gz") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo(first))
    with pytest.raises(DataError, match=f"{first} as a link, or twice"):
        cifar10(path)


@pytest.mark.parametrize("after_the_end", [False, True])
def test_an_archive_that_swells_is_refused(tmp_path, after_the_end):
    path = tmp_path / "cifar-10-python.tar.gz"
    bomb(path, after_the_end)
    assert path.stat().st_size < 2**23
    with pytest.raises(DataError, match="holds more than 536870912 bytes"):
        cifar10(path)


def test_damaged_binary_batches_are_named(tmp_path):
    files = cifar_files()
    for name, (x, fine, _) in files.items():
        (tmp_path / f"{name}.bin").write_bytes(as_binary(x, fine))
    path = tmp_path / "data_batch_2.bin"
    whole = path.read_bytes()
    for content in (whole[:-1], whole + b"x", b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"data_batch_2.bin has {len(content)} bytes, and CIFAR-10 has records of 3073"):
            cifar10(tmp_path)
    path.write_bytes(b"\x0a" + whole[1:])
    with pytest.raises(DataError, match="labels up to 10, and 10 classes"):
        cifar10(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="has no data_batch_2.bin: get https"):
        cifar10(tmp_path)
    with pytest.raises(OptionError, match="labels must be 'fine' .* or 'coarse' .*, got 'rough'"):
        cifar100(tmp_path, labels="rough")


# .npz


def arrays(side=(28, 28), counts=(20, 8), classes=10):
    rng = np.random.default_rng(2)
    x, x_test = (rng.integers(0, 256, (count, *side), np.uint8) for count in counts)
    y, y_test = (rng.integers(0, classes, count) for count in counts)
    return {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_reads_what_was_written(tmp_path, save):
    given = arrays()
    save(tmp_path / "mnist.npz", **given)
    x = given["x_train"][..., None]
    for split in (mnist(tmp_path / "mnist.npz"), mnist(tmp_path), from_npz(str(tmp_path / "mnist.npz"))):
        assert np.abs(split.train.x - standard(x, x)).max() < 1e-6
        assert (split.train.y == given["y_train"]).all() and (split.test.y == given["y_test"]).all()
        assert split.train.x.dtype == np.float32 and split.test.y.dtype == np.int32
    fortran = {**given, "x_train": np.asfortranarray(given["x_train"]), "y_train": given["y_train"][:, None]}
    save(tmp_path / "other.npz", **fortran)
    assert (from_npz(tmp_path / "other.npz").train.x == split.train.x).all()


def test_npz_of_colour_images_and_of_clothes(tmp_path):
    given = arrays((32, 32, 3))
    np.savez(tmp_path / "colour.npz", **given)
    split = cifar10(tmp_path / "colour.npz")
    assert np.abs(split.train.x - standard(given["x_train"], given["x_train"])).max() < 1e-6
    np.savez(tmp_path / "grey.npz", **arrays())
    assert fashion_mnist(tmp_path / "grey.npz").test.x.shape == (8, 28, 28, 1)
    with pytest.raises(DataError, match=r"images of shape \(28, 28, 1\), those of CIFAR-10 have \(32, 32, 3\)"):
        cifar10(tmp_path / "grey.npz")
    with pytest.raises(DataError, match=r"images of shape \(32, 32, 3\), those of Fashion-MNIST have \(28, 28, 1\)"):
        fashion_mnist(tmp_path / "colour.npz")


def header(shape="(20, 28, 28)", descr="'|u1'", content=20 * 784):
    """The bytes of an .npy file with this header."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(content)


BAD_MEMBERS = {
    "objects": (header("(1,)", "'|O'", 30), "holds Python objects, which can run code"),
    "huge": (header("(1000000000000, 28, 28)"), "announces 784000000000000 bytes .* and 15680 follow"),
    "overflow": (header("(18446744073709551616,)"), "announces 18446744073709551616 bytes"),
    "negative": (header("(-20, 28, 28)"), "announces -15680 bytes"),
    "short": (header(content=20 * 784 - 1), "announces 15680 bytes .* and 15679 follow"),
    "long": (header(content=20 * 784 + 1), "and 15681 follow"),
    "code in the header": (header("__import__('os').mkdir('x')"), "cannot be read as .npz"),
    "no array": (b"<html>", "cannot be read as .npz"),
    "another version": (b"\x93NUMPY\x03\x00" + bytes(100), "version .3, 0. of the format"),
    "floats": (header(descr="'<f4'", content=4 * 20 * 784), "must hold unsigned bytes .*, got float32"),
    "flat": (header("(15680,)"), r"got uint8 of shape \(15680,\)"),
}


@pytest.mark.parametrize(("content", "message"), BAD_MEMBERS.values(), ids=BAD_MEMBERS.keys())
def test_hostile_npz_files_are_refused(tmp_path, content, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mnist.npz"
    np.savez(tmp_path / "good.npz", **arrays())
    with zipfile.ZipFile(tmp_path / "good.npz") as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            bad.writestr(name, content if name == "x_train.npy" else good.read(name))
    with pytest.raises(DataError, match=message) as caught:
        mnist(path)
    assert str(path) in str(caught.value) and not (tmp_path / "x").exists()


def test_pickled_arrays_in_npz_run_nothing(tmp_path):
    target = tmp_path / "attacked"
    np.savez(tmp_path / "mnist.npz", **{**arrays(), "y_train": np.array([Attack(target)] * 20, object)})
    with pytest.raises(DataError, match="y_train holds Python objects, which can run code when they are loaded"):
        mnist(tmp_path)
    assert not target.exists()


def test_damaged_npz_files_are_named(tmp_path):
    path = tmp_path / "mnist.npz"
    with pytest.raises(DataError, match="there is no file .*mnist.npz"):
        from_npz(path)
    np.savez(path, **arrays())
    whole = path.read_bytes()
    middle = whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]
    for content, message in ((whole[:-40], "not a zip file"), (middle, "Bad CRC-32"), (b"", "not a zip file")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"cannot be read as .npz .*{message}"):
            from_npz(path)
    for change, message in (
        ({"y_test": None}, r"no array 'y_test', only \['x_test.npy', 'x_train.npy', 'y_train.npy'\]"),
        ({"y_train": np.zeros(19, int)}, "20 train images and 19 labels"),
        ({"x_test": np.zeros((8, 27, 28), np.uint8)}, r"shape \(28, 28\) and others of \(27, 28\)"),
        ({"y_test": np.full(8, -1)}, "labels from -1 to -1"),
        ({"y_test": np.full(8, 2**40)}, "labels from 1099511627776"),
        ({"y_test": np.zeros(8)}, "must hold whole numbers"),
        ({"y_test": np.array(3)}, "must hold whole numbers"),
        ({"y_test": np.full(8, 10)}, "labels up to 10, and 10 classes"),
    ):
        np.savez(path, **{name: value for name, value in (arrays() | change).items() if value is not None})
        with pytest.raises(DataError, match=message):
            from_npz(path, num_classes=10)


# Downloads, from a server on this machine


class Files(BaseHTTPRequestHandler):
    """Serves what `Server.files` holds, and counts."""

    def do_GET(self):  # noqa: N802
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *arguments):
        """Keeps quiet."""


@pytest.fixture
def server(monkeypatch):
    """A server of its own, where MNIST is published with the right checksums."""
    pytest.importorskip("pooch")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as running:
        running.files, running.asked = {}, []
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def publish(server, monkeypatch, folder, mirrors=("a",), checksums=None):
    import hashlib

    folder.mkdir()
    write_mnist(folder, compressed=True)
    contents = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    server.files = {f"/{mirrors[-1]}/{name}": content for name, content in contents.items()}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()} | (checksums or {})
    urls = tuple(f"http://127.0.0.1:{server.server_port}/{mirror}" for mirror in mirrors)
    monkeypatch.setitem(ORIGINS, "mnist", Origin(urls, sums))
    return contents


def test_files_are_downloaded_once_into_the_cache(server, monkeypatch, tmp_path, capfd):
    import pooch

    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    contents = publish(server, monkeypatch, tmp_path / "published")
    split = mnist(progress=True)
    assert "100%" in capfd.readouterr().err
    where = tmp_path / "cache" / "bayes-sym" / "mnist"
    assert {path.name: path.read_bytes() for path in where.iterdir()} == contents and len(server.asked) == 4
    assert (split.train.x == mnist(tmp_path / "published").train.x).all()
    assert (mnist(progress=False).train.x == split.train.x).all() and len(server.asked) == 4  # from the cache
    assert "%" not in capfd.readouterr().err
    # what has been changed in the cache is fetched again
    (where / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    assert download("mnist", progress=False) == where and len(server.asked) == 5
    assert (where / "t10k-labels-idx1-ubyte.gz").read_bytes() == contents["t10k-labels-idx1-ubyte.gz"]


def test_another_server_is_tried_and_other_contents_are_refused(server, monkeypatch, tmp_path):
    publish(server, monkeypatch, tmp_path / "published", mirrors=("gone", "here"))
    where = download("mnist", tmp_path / "data", progress=False)
    assert where == tmp_path / "data" and len(server.asked) == 8
    assert mnist(where).train.x.shape == (30, 28, 28, 1)
    (tmp_path / "other").mkdir()
    publish(server, monkeypatch, tmp_path / "again", checksums={"t10k-labels-idx1-ubyte.gz": "0" * 64})
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte.gz of mnist could not be downloaded .*hash of downloaded file"):
        download("mnist", tmp_path / "other", progress=False)
    assert not (tmp_path / "other" / "t10k-labels-idx1-ubyte.gz").exists()


def test_downloads_that_cannot_be_made_are_named(server, monkeypatch, tmp_path):
    publish(server, monkeypatch, tmp_path / "published")
    server.files = {}
    with pytest.raises(DataError, match="could not be downloaded into .*404.*get it by other means"):
        download("mnist", tmp_path / "data", progress=False)
    with pytest.raises(OptionError, match="no set 'svhn' to download, only 'mnist', 'fashion-mnist', 'cifar-10', 'cifar-100'"):
        download("svhn")
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    for load in (mnist, fashion_mnist, cifar10, cifar100, quadrant_mnist):
        with pytest.raises(DataError, match=r'needs pooch, which is not installed: pip install "bayes-sym\[data\]"'):
            load()


def test_published_checksums_are_whole():
    for urls, files in ORIGINS.values():
        assert urls and all(url.startswith("http") and not url.endswith("/") for url in urls)
        assert all(len(checksum) == 64 and int(checksum, 16) >= 0 for checksum in files.values())
    assert {len(files) for _, files in ORIGINS.values()} == {1, 4}
