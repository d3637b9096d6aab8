"""CIFAR-10, CIFAR-100, MNIST and Fashion-MNIST, from the files that torchvision reads, without importing it.

`LAYOUTS` says where under data.root the files of each set lie. Where some are missing and data.download is true,
torchvision fetches them, shows a bar and checks MD5 sums. Files that are there are read as they are: what they hold is
the fingerprint's to say.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import socket
import sys
import tarfile
import urllib.parse
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neumann.cache_folder import cache_folder
from neumann.data import cache, idx, plain_pickle, settings
from neumann.data.array_set import ArraySet
from neumann.data.class_names import refuse_equal_names
from neumann.data.embedded import FASHION_CLASSES
from neumann.data.splits import Examples, stratified
from neumann.errors import UserError
from neumann.network import reason_of

NOT_FETCHED = (OSError, RuntimeError, ValueError, EOFError, http.client.HTTPException, tarfile.TarError, zlib.error)
SILENT_S = 20.0  # of a server, after which it is given up
# Fashion-MNIST's files have the names of MNIST's, so only this tells one from the other
FASHION_MNIST = "content:2cbc59191665e1ba3f2494648f17edac5974f748ab89fb2ae05597d658161f54"
Part = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images [N, C, H, W] and their labels [N]


@dataclass(frozen=True)
class Layout:
    """The files of a set.

    Args:
        folder: where torchvision has them, under its root; they may also lie in the root itself.
        train: names of the files of training images; ``test`` likewise. An idx file may end in .gz as well.
        test: see ``train``.
        archive: what torchvision fetches and unpacks, "" where it fetches the files themselves.
        official: (training, test) images of the set as it was published.
        side: height and width in pixels.
        names: the name of a CIFAR's file of class names, its key, and the key of a batch's labels.
        classes: the names of the classes, of a set whose files have none.
    """

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    archive: str
    official: tuple[int, int]
    side: int
    names: tuple[str, str, str] = ("", "", "")
    classes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """All names that must be there."""
        return (*self.train, *self.test, *(self.names[:1] if self.names[0] else ()))


IDX_TRAIN, IDX_TEST = ((f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte") for part in ("train", "t10k"))
LAYOUTS: dict[type[settings.TorchvisionSet], Layout] = {
    settings.Cifar10: Layout(
        "cifar-10-batches-py",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        ("test_batch",),
        "cifar-10-python.tar.gz",
        (50_000, 10_000),
        32,
        names=("batches.meta", "label_names", "labels"),
    ),
    settings.Cifar100: Layout(
        "cifar-100-python",
        ("train",),
        ("test",),
        "cifar-100-python.tar.gz",
        (50_000, 10_000),
        32,
        names=("meta", "fine_label_names", "fine_labels"),
    ),
    settings.Mnist: Layout("MNIST/raw", IDX_TRAIN, IDX_TEST, "", (60_000, 10_000), 28, classes=tuple("0123456789")),
    settings.FashionMnist: Layout(
        "FashionMNIST/raw", IDX_TRAIN, IDX_TEST, "", (60_000, 10_000), 28, classes=FASHION_CLASSES
    ),
}


def read(wanted: settings.TorchvisionSet) -> ArraySet:
    """Return the set that ``wanted`` names; its test split is the official one, and validation is cut from training.

    Raises UserError, one sentence, for files that are missing, damaged or of another set, for classes with too few
    images, and where the files cannot be fetched.
    """
    layout = LAYOUTS[type(wanted)]
    files = _files(wanted, layout)
    stats = _stat_digest(files)
    read_part = _cifar if layout.names[0] else _idx
    classes = _class_names(files, layout)
    train, test = (
        read_part([files[name] for name in names], layout, len(classes)) for names in (layout.train, layout.test)
    )
    images = np.concatenate([train[0], test[0]])
    found = ArraySet(
        images=images,
        examples=_examples(train[1], test[1], classes, wanted),
        class_names=classes,
        split_rule=(
            f"the official test images; validation is {wanted.val_fraction:g} of the training images, stratified, by "
            f"split seed {wanted.split_seed}"
        ),
        test_is=f"the official test images of {wanted.title}",
        told=_odd_counts(wanted.title, layout, (len(train[0]), len(test[0]))),
        stat_digest=stats,
    )
    if isinstance(wanted, settings.Mnist) and found.fingerprint() == FASHION_MNIST:
        raise UserError(f"the files in '{files[layout.train[0]].parent}' are Fashion-MNIST's: use data=fashion_mnist")
    return found


def stat_digest(wanted: settings.TorchvisionSet) -> str:
    """Return a digest of the names, sizes and times of the files of ``wanted``. Raises UserError as `read` does."""
    return _stat_digest(_files(wanted, LAYOUTS[type(wanted)]))


def _stat_digest(files: dict[str, Path]) -> str:
    stats = {str(path): path.stat() for path in files.values()}
    told = [(path, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for path, one in sorted(stats.items())]
    return hashlib.sha256(repr(told).encode(errors="surrogateescape")).hexdigest()


def _files(wanted: settings.TorchvisionSet, layout: Layout) -> dict[str, Path]:
    """Return {name: path} of all files of ``layout``, fetched where that is wanted and one is missing."""
    root = Path(wanted.root).expanduser().absolute()
    found = _look(root, layout)
    if wanted.download and len(found) < len(layout.files):
        # beside the scans, so that `neumann cache` knows it; of several runs started at once one fetches
        place = hashlib.sha256(str(root).encode(errors="surrogateescape")).hexdigest()[:24]
        with cache.lock(cache_folder() / "scans" / place):
            if len(_look(root, layout)) < len(layout.files):
                _fetch(wanted, layout, root)
        found = _look(root, layout)
    missing = [name for name in layout.files if name not in found]
    if not missing:
        return found
    fetch = "" if wanted.download else f", or have {wanted.title} fetched with data.download=true"
    if not root.exists():
        raise UserError(f"data.root '{root}' does not exist: give the folder that holds {layout.folder}/{fetch}")
    if layout.archive and (root / layout.archive).exists():
        raise UserError(f"'{root / layout.archive}' is not unpacked: run tar -xzf {layout.archive} in '{root}'{fetch}")
    others = [known.folder for known in LAYOUTS.values() if known is not layout and (root / known.folder).is_dir()]
    beside = f" (it has {' and '.join(others)})" if others else ""
    raise UserError(
        f"data.root '{root}' has no {layout.folder}/{missing[0]}{beside}: give the folder that holds {layout.folder}/"
        f"{fetch}"
    )


def _look(root: Path, layout: Layout) -> dict[str, Path]:
    """Return {name: path} of the files of ``layout`` that are there, in the first place that has any of them."""
    for place in (root / layout.folder, root):
        found = {}
        for name in layout.files:
            spellings = [place / name] if layout.archive else [place / name, place / f"{name}.gz"]
            if there := [path for path in spellings if path.is_file()]:
                found[name] = there[0]
        if found:
            return found
    return {}


def _fetch(wanted: settings.TorchvisionSet, layout: Layout, root: Path) -> None:
    from torchvision import datasets

    kind = getattr(datasets, wanted.torchvision_name)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENT_S)  # torchvision sets none, so a silent server would be waited for for minutes
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is the command's
            kind(root, download=True)
    except NOT_FETCHED as error:
        servers = [urllib.parse.urlsplit(url).netloc for url in getattr(kind, "mirrors", None) or [kind.url]]
        raise UserError(
            f"{wanted.title} cannot be fetched from {' or '.join(servers)} to '{root}' ({reason_of(error)}): where "
            f"there is no network, put {layout.folder}/ there from another machine, and leave out data.download"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _class_names(files: dict[str, Path], layout: Layout) -> tuple[str, ...]:
    file, key, _ = layout.names
    if not file:
        return layout.classes
    names = plain_pickle.load(files[file]).get(key)
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str | bytes) for name in names):
        raise UserError(f"'{files[file]}' has no list '{key}' of the classes' names")
    found = tuple(plain_pickle.text(name) for name in names)
    refuse_equal_names(found, files[file])
    return found


def _cifar(paths: list[Path], layout: Layout, classes: int) -> Part:
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    key = layout.names[2]
    for path in paths:
        content = plain_pickle.load(path)
        data, said = content.get("data"), content.get(key)
        if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3 * layout.side**2:
            raise UserError(f"'{path}' has no array 'data' of {3 * layout.side**2:,} bytes an image")
        if not isinstance(said, list) or len(said) != len(data):
            raise UserError(f"'{path}' has no list '{key}' of {len(data):,} labels, one for each image")
        if wrong := [label for label in said if type(label) is not int or not 0 <= label < classes]:
            raise UserError(f"'{path}' has the label {wrong[0]!r}, where labels are 0 to {classes - 1}")
        images.append(data)
        labels += said
    return np.concatenate(images).reshape(-1, 3, layout.side, layout.side), np.array(labels, dtype=np.int64)


def _idx(paths: list[Path], layout: Layout, classes: int) -> Part:
    images, labels = (idx.read(path) for path in paths)
    if images.ndim != 3 or images.shape[1:] != (layout.side, layout.side):
        sides = "×".join(str(side) for side in images.shape)
        raise UserError(f"'{paths[0]}' has {sides} bytes, not images of {layout.side}×{layout.side}")
    if labels.shape != images.shape[:1]:
        raise UserError(f"'{paths[1]}' has {labels.size:,} labels for {len(images):,} images")
    if labels.size and labels.max() >= classes:
        raise UserError(f"'{paths[1]}' has the label {labels.max()}, where labels are 0 to {classes - 1}")
    return images[:, None], labels.astype(np.int64)


def _examples(
    train: NDArray[np.int64], test: NDArray[np.int64], classes: tuple[str, ...], wanted: settings.TorchvisionSet
) -> Examples:
    counts = np.bincount(train, minlength=len(classes))
    if counts.min() < 2 or not len(test):
        few = int(counts.argmin())
        what = f"{counts[few]} training image(s) of class '{classes[few]}'" if len(test) else "no test image"
        raise UserError(
            f"{wanted.title} under '{wanted.root}' has {what}: each class needs 2, and the set a test image"
        )
    validation, kept = stratified(train, (round(wanted.val_fraction * len(train)),), wanted.split_seed)
    return Examples(
        labels=np.concatenate([train, test]),
        train=kept,
        validation=validation,
        test=np.arange(len(train), len(train) + len(test)),
    )


def _odd_counts(title: str, layout: Layout, counts: tuple[int, int]) -> tuple[str, ...]:
    if counts == layout.official:
        return ()
    has, official = (f"{train:,} training and {test:,} test images" for train, test in (counts, layout.official))
    return (f"the files have {has}, and {title} as published has {official}",)
