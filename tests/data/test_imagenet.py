"""data=imagenet: class folders with ImageNet's conventions, also as torchvision unpacks them from the original files."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from pathlib import Path

import numpy as np
import torch
import torchvision.datasets.imagenet as theirs
from PIL import Image
from scipy import io as matlab

from neumann.config import make_spec
from neumann.data.batches import StreamBatches
from neumann.data.module import IMAGENET, build
from tests.support.markdown_pages import ROOT

WNIDS = ("n01440764", "n01443537")
SIZES = [(240, 300), (300, 230), (90, 120)]


def test_the_official_val_is_the_test_split_and_50000_of_train_validate(make_folder):
    root = make_folder(
        {f"{part}/{wnid}": count for part, count in (("train", 24), ("val", 4)) for wnid in WNIDS},
        size=SIZES,
        suffix=".JPEG",
    )
    spec = make_spec(["data=imagenet", f"data.root={root}", "data.workers=0", "model=timm", "model.name=test_resnet"])
    found = spec.facts
    assert round(spec.config.data["val_fraction"] * 1_281_167) == 50_000
    assert (found.train_count, found.validation_count, found.test_count) == (46, 2, 8)
    assert found.test_is == "the folder val/, the only labelled one beside train/"
    assert (found.image_size, found.channels, found.in_memory, found.class_names) == ((224, 224), 3, False, WNIDS)
    module = build(spec.config.data, found, batch_size=4, seed=0)
    assert (module.mean, module.std) == IMAGENET
    loader = module.train_dataloader()
    assert isinstance(loader, StreamBatches)
    assert loader.finish.augmentation == "random_resized_crop"
    assert next(iter(loader))[0].shape == (4, 3, 224, 224)


def test_evaluation_cuts_the_centre_out_of_256_pixels(make_folder):
    root = make_folder({f"{part}/{wnid}": 3 for part in ("train", "val") for wnid in WNIDS}, size=(300, 400))
    spec = make_spec(["data=imagenet", f"data.root={root}", "data.workers=0", "batch.size=2"])
    module = build(spec.config.data, spec.facts, batch_size=2, seed=0)
    file = root / spec.facts.examples.paths[spec.facts.examples.test[0]]
    with Image.open(file) as image:
        usual = image.resize((341, 256), Image.Resampling.BILINEAR).crop((58, 16, 282, 240))
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    ours = (next(iter(module.test_dataloader()))[0][0] * std + mean) * 255
    assert (ours - torch.from_numpy(np.asarray(usual).transpose(2, 0, 1).copy())).abs().max() < 1.5


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def jpeg(seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def write_originals(root: Path) -> None:
    """Write ImageNet's three archives with 24 training and 2 validation images a class."""
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as outer:
        for wnid in WNIDS:
            content = io.BytesIO()
            with tarfile.open(fileobj=content, mode="w") as inner:
                for number in range(24):
                    add(inner, f"{wnid}_{number}.JPEG", jpeg(number + 100 * WNIDS.index(wnid)))
            add(outer, f"{wnid}.tar", content.getvalue())
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as archive:
        for number in range(1, 5):
            add(archive, f"ILSVRC2012_val_{number:08}.JPEG", jpeg(1000 + number))
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    synsets = np.array(
        [(1, WNIDS[0], "tench", "", 0), (2, WNIDS[1], "goldfish", "", 0), (3, "n0", "fish", "", 2)], kinds
    )
    content = io.BytesIO()
    matlab.savemat(content, {"synsets": synsets})
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        add(archive, "ILSVRC2012_devkit_t12/data/meta.mat", content.getvalue())
        add(archive, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", b"2\n1\n1\n2\n")


def test_the_documented_command_unpacks_the_original_files(tmp_path, monkeypatch):
    write_originals(tmp_path)
    for key, (name, _) in theirs.ARCHIVE_META.items():
        md5 = hashlib.md5((tmp_path / name).read_bytes(), usedforsecurity=False).hexdigest()
        monkeypatch.setitem(theirs.ARCHIVE_META, key, (name, md5))
    page = (ROOT / "docs" / "how-to" / "data-sets.md").read_text()
    command = re.search(r'^python -c "(from torchvision.+)"$', page, flags=re.MULTILINE)
    assert command is not None
    exec(command[1].replace("/data/imagenet", str(tmp_path)), {})
    found = make_spec(["data=imagenet", f"data.root={tmp_path}"]).facts
    assert (found.train_count, found.validation_count, found.test_count, found.class_names) == (46, 2, 4, WNIDS)
    first = tmp_path / "val" / WNIDS[1] / "ILSVRC2012_val_00000001.JPEG"  # the ground truth's first line is class 2
    assert first.read_bytes() == jpeg(1001)
