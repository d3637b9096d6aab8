"""CIFAR-10, CIFAR-100, MNIST and Fashion-MNIST in small files of the real formats: read, fetched, damaged, missing."""

from __future__ import annotations

import functools
import hashlib
import http.server
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets as theirs

from neumann.config import make_spec
from neumann.data import embedded, facts, idx, settings, torchvision_sets
from neumann.data.checked_settings import parse
from neumann.data.module import build
from neumann.errors import UserError
from tests.support import data_files
from tests.support.data_files import Python2Pickle

WRITE: dict[str, Callable[[Path], Path]] = {
    "cifar10": data_files.cifar10,
    "cifar100": data_files.cifar100,
    "mnist": lambda root: data_files.mnist(root / "MNIST" / "raw"),
    "fashion_mnist": lambda root: data_files.mnist(root / "FashionMNIST" / "raw", suffix=".gz"),
}
SIZES = {"cifar10": (90, 10, 20), "cifar100": (36, 4, 40), "mnist": (180, 20, 20), "fashion_mnist": (180, 20, 20)}
SETS = sorted(WRITE)


def of(kind: str, root: Path, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "root": str(root)} | more


def refused(data: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        facts(data)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for write in WRITE.values():
        write(tmp_path)
    return tmp_path


def trust(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Have torchvision expect the small files that lie in ``root``."""

    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()

    for kind in (theirs.CIFAR10, theirs.CIFAR100):
        folder = root / kind.base_folder
        for names in ("train_list", "test_list"):
            monkeypatch.setattr(kind, names, [[name, md5(folder / name)] for name, _ in getattr(kind, names)])
        monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5(folder / kind.meta["filename"])})


@pytest.mark.parametrize("kind", SETS)
def test_images_labels_and_names_are_those_that_torchvision_reads(root, monkeypatch, kind):
    trust(monkeypatch, root)
    for file in (root / "FashionMNIST" / "raw").glob("*.gz"):  # torchvision unpacks them
        file.with_suffix("").write_bytes(idx.pack(idx.read(file)))
    found = facts(of(kind, root))
    reader = getattr(theirs, settings.KINDS[kind].torchvision_name)
    train, test = (reader(root, train=part) for part in (True, False))
    images = np.concatenate([np.asarray(train.data), np.asarray(test.data)])
    images = images.transpose(0, 3, 1, 2) if found.channels == 3 else images[:, None]
    ours = torchvision_sets.read(parse(of(kind, root)))
    assert np.array_equal(ours.images, images)
    assert ours.examples.labels.tolist() == [*map(int, train.targets), *map(int, test.targets)]
    if found.channels == 3:
        assert list(ours.class_names) == train.classes
    assert found.test_count == len(test)


@pytest.mark.parametrize("kind", SETS)
def test_the_test_split_is_the_official_one_and_validation_is_cut_by_split_seed(root, kind):
    found, other = facts(of(kind, root)), facts(of(kind, root, split_seed=1, val_fraction=0.5))
    assert (found.train_count, found.validation_count, found.test_count) == SIZES[kind]
    total = sum(SIZES[kind])
    assert found.examples.test.tolist() == other.examples.test.tolist() == list(range(total - SIZES[kind][2], total))
    assert sorted([*found.examples.train, *found.examples.validation]) == list(range(total - SIZES[kind][2]))
    assert found.split_digest != other.split_digest
    assert found.fingerprint == other.fingerprint
    assert other.validation_count == (total - SIZES[kind][2]) // 2
    assert found == facts(of(kind, root))


@pytest.mark.parametrize("kind", SETS)
def test_batches_are_the_images_normalised_by_the_training_split(root, kind):
    data = of(kind, root, augmentation="none")
    found = facts(data)
    module = build(data, found, batch_size=4, seed=3)
    images = torchvision_sets.read(parse(data)).images.astype(np.float64) / 255
    train = images[found.examples.train]
    mean, std = train.mean((0, 2, 3)), train.std((0, 2, 3))
    assert module.mean == pytest.approx(mean)
    assert module.std == pytest.approx(std)
    expected = (images[found.examples.test] - mean[:, None, None]) / std[:, None, None]
    assert torch.cat([x for x, _ in module.test_dataloader()]).numpy() == pytest.approx(expected, abs=1e-4)
    assert (
        torch.cat([y for _, y in module.test_dataloader()]).tolist()
        == found.examples.labels[found.examples.test].tolist()
    )


def test_cifar_is_cropped_and_mirrored_unless_told_otherwise_and_takes_statistics(root):
    data = of("cifar10", root)
    assert build(data, facts(data), batch_size=4, seed=3).augmentation == "crop_flip"
    data |= {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
    module = build(data, facts(data), batch_size=4, seed=3)
    assert (module.mean, module.std) == ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


@pytest.mark.parametrize("kind", SETS)
def test_the_files_may_lie_in_the_root_itself(root, tmp_path, kind):
    files = WRITE[kind](tmp_path / "again")
    assert facts(of(kind, files)) == facts(of(kind, root))


def test_packed_and_plain_files_are_the_same_images(tmp_path):
    plain, packed = (data_files.mnist(tmp_path / f"set{suffix}", suffix=suffix) for suffix in ("", ".gz"))
    assert facts(of("mnist", plain)) == facts(of("mnist", packed))


def test_a_set_that_is_not_as_it_was_published_is_told_once(root, caplog):
    facts(of("mnist", root))
    facts(of("mnist", root))
    assert [record.getMessage() for record in caplog.records] == [
        f"'{root}': the files have 200 training and 20 test images, and MNIST as published has 60,000 training and "
        "10,000 test images"
    ]


def test_fashion_mnist_is_not_taken_for_mnist(root, monkeypatch):
    """The files of both have the same names, so a fingerprint tells them apart."""
    monkeypatch.setattr(torchvision_sets, "FASHION_MNIST", facts(of("mnist", root)).fingerprint)
    assert (
        refused(of("mnist", root))
        == f"the files in '{root / 'MNIST' / 'raw'}' are Fashion-MNIST's: use data=fashion_mnist"
    )


@pytest.mark.medium
def test_the_fingerprint_of_fashion_mnist_is_that_of_the_original_files():
    from tests.data.test_embedded import ORIGINALS

    if not ORIGINALS.is_dir():
        pytest.skip(f"the original files are not in {ORIGINALS} ($FASHION_MNIST, or Debian's dataset-fashion-mnist)")
    found = facts(of("fashion_mnist", ORIGINALS))
    assert found.fingerprint == torchvision_sets.FASHION_MNIST
    assert (found.train_count, found.validation_count, found.test_count) == (54_000, 6_000, 10_000)
    assert found.class_names == embedded.FASHION_CLASSES


# Missing and damaged -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SETS)
def test_what_is_missing_is_named_with_the_way_to_get_it(tmp_path, kind):
    layout, title = torchvision_sets.LAYOUTS[settings.KINDS[kind]], settings.KINDS[kind].title
    absent = refused(of(kind, tmp_path / "none"))
    assert absent.startswith(
        f"data.root '{tmp_path / 'none'}' does not exist: give the folder that holds {layout.folder}/"
    )
    assert absent.endswith(f", or have {title} fetched with data.download=true")
    files = WRITE[kind](tmp_path)
    lost = next(file for file in sorted(files.iterdir()))
    lost.unlink()
    name = lost.name.removesuffix(".gz")
    assert refused(of(kind, tmp_path)).startswith(
        f"data.root '{tmp_path}' has no {layout.folder}/{name}: give the folder"
    )


def test_another_set_and_an_archive_that_is_not_unpacked_are_named(tmp_path):
    data_files.cifar10(tmp_path)
    assert "has no cifar-100-python/train (it has cifar-10-batches-py): give" in refused(of("cifar100", tmp_path))
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"")
    assert f"run tar -xzf cifar-100-python.tar.gz in '{tmp_path}'" in refused(of("cifar100", tmp_path))


def batch(**more: Any) -> bytes:
    content: dict[str, Any] = {"data": np.zeros((4, 3072), dtype=np.uint8), "labels": [0, 1, 2, 3]}
    return Python2Pickle({key: value for key, value in (content | more).items() if value is not None}).bytes


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (batch()[:-400], "is not a whole file of plain data"),
        (b"", "is not a whole file of plain data"),
        (batch(data=None), "has no array 'data' of 3,072 bytes an image"),
        (batch(data=[1, 2]), "has no array 'data'"),
        (batch(data=np.zeros((4, 784), dtype=np.uint8)), "has no array 'data'"),
        (batch(labels=None), "has no list 'labels' of 4 labels, one for each image"),
        (batch(labels=[0, 1]), "has no list 'labels' of 4 labels"),
        (batch(labels=[0, 1, 2, 4]), "has the label 4, where labels are 0 to 3"),
        (batch(labels=[0, 1, 2, -1]), "has the label -1"),
        (batch(labels=[0, 1, 2, "cat"]), "has the label b'cat'"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_a_damaged_batch_of_cifar_is_one_sentence(tmp_path, content, words):
    file = data_files.cifar10(tmp_path) / "data_batch_3"
    file.write_bytes(content)
    told = refused(of("cifar10", tmp_path))
    assert told.startswith(f"'{file}' ")
    assert words in told


@pytest.mark.parametrize("names", [{}, {"label_names": "cat"}, {"label_names": [1, 2]}, {"label_names": ["cat"]}])
def test_class_names_that_are_missing_are_one_sentence(tmp_path, names):
    file = data_files.cifar10(tmp_path) / "batches.meta"
    file.write_bytes(Python2Pickle(names).bytes)
    assert refused(of("cifar10", tmp_path)) == f"'{file}' has no list 'label_names' of the classes' names"


def test_classes_of_one_name_are_one_sentence(tmp_path):
    file = data_files.cifar10(tmp_path, classes=("cat", "dog", "emu")) / "batches.meta"
    file.write_bytes(Python2Pickle({"label_names": ["cat", "dog", "cat"]}).bytes)
    assert refused(of("cifar10", tmp_path)) == (
        f"'{file}' calls both class 0 and class 2 'cat': each needs a name of its own"
    )


def test_a_class_without_images_is_named(tmp_path):
    data_files.cifar10(tmp_path, per_batch=3, classes=("cat", "dog", "emu", "fox"))
    assert "has 0 training image(s) of class 'fox': each class needs 2" in refused(of("cifar10", tmp_path))
    data_files.mnist(tmp_path, test=0)
    assert "has no test image" in refused(of("mnist", tmp_path))


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        (
            "train-images-idx3-ubyte",
            np.zeros((200, 14, 14), dtype=np.uint8),
            "has 200×14×14 bytes, not images of 28×28",
        ),
        ("train-labels-idx1-ubyte", np.zeros((199,), dtype=np.uint8), "has 199 labels for 200 images"),
        ("t10k-labels-idx1-ubyte", np.full((20,), 10, dtype=np.uint8), "has the label 10, where labels are 0 to 9"),
        ("t10k-images-idx3-ubyte", None, "is not a whole idx file"),
    ],
)
def test_a_damaged_file_of_mnist_is_one_sentence(tmp_path, name, array, words):
    file = data_files.mnist(tmp_path) / name
    file.write_bytes(idx.pack(array) if array is not None else file.read_bytes()[:-5])
    told = refused(of("mnist", tmp_path))
    assert told.startswith(f"'{file}' ")
    assert words in told


def test_files_that_change_between_signing_and_training_are_refused(root):
    data = of("mnist", root)
    found = facts(data)
    labels = root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match="the files of data=mnist have changed"):
        build(data, found, batch_size=4, seed=0)


# Fetched -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Serve the small files as torchvision's servers do the real ones; yields the paths that were asked for."""
    place = tmp_path / "served"
    place.mkdir()
    trust(monkeypatch, root)
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(place)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    for kind in (theirs.CIFAR10, theirs.CIFAR100):
        with tarfile.open(place / kind.filename, "w:gz") as archive:
            archive.add(root / kind.base_folder, kind.base_folder)
        md5 = hashlib.md5((place / kind.filename).read_bytes(), usedforsecurity=False).hexdigest()
        monkeypatch.setattr(kind, "url", address + kind.filename)
        monkeypatch.setattr(kind, "tgz_md5", md5)
    files = sorted(data_files.mnist(place, suffix=".gz").glob("*ubyte.gz"))
    md5s = [(file.name, hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()) for file in files]
    for kind in (theirs.MNIST, theirs.FashionMNIST):
        monkeypatch.setattr(kind, "mirrors", [address])
        monkeypatch.setattr(kind, "resources", md5s)
    yield asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", SETS)
def test_what_is_missing_is_fetched_once_and_nothing_where_all_is_there(served, root, tmp_path, capsys, kind):
    assert facts(of(kind, root, download=True)) == facts(of(kind, root))
    assert not served
    new = tmp_path / "new" / "deep"
    assert facts(of(kind, new, download=True)) == facts(of(kind, root))
    asked = len(served)
    assert asked >= 1
    assert facts(of(kind, new)) == facts(of(kind, new, download=True)) == facts(of(kind, root))
    assert len(served) == asked
    out, err = capsys.readouterr()
    assert out == ""  # it is the command's
    assert "100%" in err


def test_a_wrong_checksum_and_an_absent_server_are_one_sentence(served, tmp_path, monkeypatch):
    monkeypatch.setattr(theirs.CIFAR10, "tgz_md5", "0" * 32)
    told = refused(of("cifar10", tmp_path / "new", download=True))
    server = theirs.CIFAR10.url.split("/")[2]
    assert told == (
        f"CIFAR-10 cannot be fetched from {server} to '{tmp_path / 'new'}' (File not found or corrupted): where there "
        "is no network, put cifar-10-batches-py/ there from another machine, and leave out data.download"
    )
    monkeypatch.setattr(theirs.CIFAR100, "url", "http://127.0.0.1:9/nothing.tar.gz")
    told = refused(of("cifar100", tmp_path / "other", download=True))
    assert told.startswith(
        f"CIFAR-100 cannot be fetched from 127.0.0.1:9 to '{tmp_path / 'other'}' (Connection refused)"
    )


def test_a_server_that_does_not_answer_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision_sets, "SILENT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(theirs.MNIST, "mirrors", [f"http://{place}/", "http://127.0.0.1:9/"])
        told = refused(of("mnist", tmp_path / "new", download=True))
        assert told.startswith(f"MNIST cannot be fetched from {place} or 127.0.0.1:9 to '{tmp_path / 'new'}' (")
        monkeypatch.setattr(theirs.CIFAR10, "url", f"http://{place}/cifar.tar.gz")
        assert "(timed out)" in refused(of("cifar10", tmp_path / "new", download=True))
    assert socket.getdefaulttimeout() is None


def test_where_images_lie_and_how_they_got_there_is_not_signed_and_names_no_run(root, tmp_path):
    data_files.cifar10(tmp_path / "elsewhere")
    words = ["data=cifar10", f"data.root={root}"]
    one, other = make_spec(words), make_spec([words[0], f"data.root={tmp_path / 'elsewhere'}", "data.download=true"])
    assert one.signature == other.signature
    assert one.name == "cifar10-small_cnn-neumann-s0"
    assert make_spec([*words, "data.val_fraction=0.2"]).signature != one.signature
