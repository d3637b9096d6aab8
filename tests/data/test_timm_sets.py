"""Sets by timm's names in small files of the real formats: webdataset shards, tar files of classes, torchvision's."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from neumann.config import make_spec
from neumann.data import facts, webdataset
from neumann.data.module import ImageData, build
from neumann.errors import UserError
from tests.data.test_tars import tar
from tests.support import data_files


def encoded(number: int, kind: str = "PNG", size: tuple[int, int] = (16, 16)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def samples(start: int, count: int, classes: int = 3) -> dict[str, bytes]:
    found = {}
    for number in range(start, start + count):
        found[f"{number:04}.png"] = encoded(number)
        found[f"{number:04}.cls"] = str(number % classes).encode()
    return found


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two training shards and one of test images."""
    root = tmp_path / "shards"
    root.mkdir()
    tar(root / "pets-train-000.tar", samples(0, 24))
    tar(root / "pets-train-001.tar", samples(24, 24))
    tar(root / "pets-test-000.tar", samples(48, 12))
    return root


def wds(root: Path, **more: Any) -> dict[str, Any]:
    return {"kind": "timm", "name": "wds/", "root": str(root)} | more


def refused(data: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        facts(data)
    assert "\n" not in str(error.value)
    return str(error.value)


def module(data: dict[str, Any], **more: Any) -> ImageData:
    return build(data, facts(data), **{"batch_size": 8, "seed": 0} | more)


def images_of(data: dict[str, Any]) -> dict[bytes, int]:
    """Return {pixels: label} of every image of the set."""
    made = module(data | {"mean": [0.0] * 3, "std": [1.0] * 3, "augmentation": "none"}, eval_batch_size=5)
    found = {}
    for loader in (made.val_dataloader(), made.test_dataloader()):
        for batch, labels in loader:
            pixels = (batch * 255).round().to(torch.uint8)
            found |= {one.numpy().tobytes(): int(label) for one, label in zip(pixels, labels, strict=True)}
    return found


def test_shards_are_split_by_their_names_and_labelled_by_their_cls(shards):
    found = facts(wds(shards))
    assert (found.kind, found.num_classes, found.native_size) == ("timm", 3, (16, 16))
    assert (found.train_count, found.validation_count, found.test_count) == (43, 5, 12)
    assert found.split_rule.startswith("'test' is the test split; validation is 0.1 of 'train'")
    assert found.test_is == "the split 'test'"
    for index, path in enumerate(found.examples.paths):
        assert found.examples.labels[index] == int(Path(path).stem) % 3
    for number in range(48, 60):
        pixels = np.asarray(Image.open(io.BytesIO(encoded(number)))).transpose(2, 0, 1)
        assert images_of(wds(shards))[pixels.tobytes()] == number % 3


def test_splits_may_be_told_by_info_json_by_folders_and_by_patterns(shards, tmp_path):
    by_name = facts(wds(shards))
    patterns = facts(wds(shards, train_split="pets-train-{000..001}.tar|48", test_split="pets-test-000.tar"))
    assert patterns.examples.digest() == by_name.examples.digest()
    info = {
        "splits": {
            "train": {
                "name": "train",
                "num_samples": 48,
                "filenames": ["pets-train-000.tar", "pets-train-001.tar"],
                "shard_lengths": [24, 24],
            },
            "test": {"name": "test", "num_samples": 12, "filenames": ["pets-test-000.tar"], "shard_lengths": [12]},
        }
    }
    (shards / "info.json").write_text(json.dumps(info))
    assert facts(wds(shards)).examples.digest() == by_name.examples.digest()
    info["splits"]["train"]["shard_lengths"][1] = 25
    (shards / "info.json").write_text(json.dumps(info))
    assert "pets-train-001.tar' has 24 samples where the set's info.json says 25" in refused(wds(shards))
    (shards / "info.json").unlink()
    for split in ("train", "test"):
        (tmp_path / "folders" / split).mkdir(parents=True)
        for file in shards.glob(f"*{split}*"):
            file.rename(tmp_path / "folders" / split / file.name)
    assert facts(wds(tmp_path / "folders")).examples.digest() == by_name.examples.digest()


def test_a_label_may_be_a_field_of_the_json_beside_an_image(tmp_path):
    content = {}
    for number in range(12):
        content |= {
            f"{number:02}.jpg": encoded(number, "JPEG"),
            f"{number:02}.json": json.dumps({"a": {"y": number % 2}}).encode(),
        }
    tar(tmp_path / "x.tar", content)
    found = facts(wds(tmp_path, target_key="a.y"))
    assert np.bincount(found.examples.labels).tolist() == [6, 6]
    assert "has no label under 'b'" in refused(wds(tmp_path, target_key="b"))
    assert "there is no '00.cls' in it" in refused(wds(tmp_path))


def one_shard(root: Path, content: dict[str, bytes]) -> dict[str, Any]:
    tar(root / "x.tar", content)
    return wds(root)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"0003.cls": None}, "has no label for '0003': there is no '0003.cls' in it"),
        ({"0003.png": None}, "has no image (.jpg, .png, .webp, .jpeg) for '0003', only .cls"),
        ({"0003.cls": b"cat"}, "'0003.cls' in the shard"),
        ({"0003.cls": b"-1"}, "has the label '-1', which is no class number from 0 on"),
        ({"0003.cls": b"9"}, "has the label 9, and no training image has label 3: labels must be 0 to the number"),
        ({"0003.png": b"no image"}, "x.tar: 0003.png' is not a readable image (no known image format)"),
        ({"0003.png": encoded(3)[:300]}, "x.tar: 0003.png' is not a readable image"),
        ({"0003.png": b""}, "the file is empty"),
    ],
)
def test_a_damaged_sample_is_one_sentence(tmp_path, change, words):
    content = samples(0, 24) | change
    assert words in refused(one_shard(tmp_path, {name: value for name, value in content.items() if value is not None}))


def test_a_key_that_is_there_twice_is_one_sentence(tmp_path):
    content = samples(0, 24)
    tar(tmp_path / "x.tar", content)
    import tarfile

    with tarfile.open(tmp_path / "x.tar", "a") as archive:
        info = tarfile.TarInfo("0003.png")
        info.size = len(content["0003.png"])
        archive.addfile(info, io.BytesIO(content["0003.png"]))
    assert "has two files '0003.png': every key must be there once" in refused(wds(tmp_path))


def test_a_shard_that_is_cut_short_is_one_sentence_wherever_it_is_cut(shards):
    whole = (shards / "pets-train-001.tar").read_bytes()
    for end in (700, 1024, 4096, 5000, 20_000):
        (shards / "pets-train-001.tar").write_bytes(whole[:end])
        assert "pets-train-001.tar' is not a whole tar file (it is cut short" in refused(wds(shards))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"train_split": "trian"}, "data.train_split=trian is not a split of"),
        ({"test_split": "tets"}, "did you mean 'test'"),
        ({"train_split": "pets-train-{000..002}.tar"}, "1 of 3 shards are missing, e.g."),
        ({"root": "/no/such/place"}, "data.root '/no/such/place' does not exist"),
        ({"root": None}, "data.root is missing"),
        ({"download": True}, "data.download=true has no effect on data.name=wds/"),
        ({"name": "tfds/mnist"}, "nor is TensorFlow among what neumann installs: use hfds/ for the same set"),
        ({"name": "hfids/food101"}, "could not be repeated or resumed to the bit: write hfds/"),
        ({"name": "hfd/food101"}, "did you mean 'hfds/'"),
        ({"name": "hfds/"}, "names no set"),
        ({"name": None}, "data.name is missing"),
        ({"name": "torch/imagenet"}, "use data=imagenet"),
        ({"name": "torch/cifar11"}, "did you mean 'cifar10'"),
        ({"crop_pct": 87.5}, "did you mean 0.875?"),
        ({"interpolation": "nearest"}, "data.interpolation=nearest is not a choice"),
        ({"val_fraction": 0.3, "val_split": "train"}, "data.val_split=train is not a split of"),
    ],
)
def test_wrong_settings_are_one_sentence(shards, more, words):
    assert words in refused(wds(shards) | more)


def test_a_folder_without_shards_and_shards_without_a_split_are_one_sentence(tmp_path, shards):
    (tmp_path / "empty").mkdir()
    assert "has no shards" in refused(wds(tmp_path / "empty"))
    tar(shards / "pets-000.tar", samples(90, 3))
    assert "'pets-000.tar', whose name says no split" in refused(wds(shards))


def test_an_unchanged_shard_is_not_read_through_again_and_a_changed_one_is(shards, monkeypatch):
    before = facts(wds(shards))
    with monkeypatch.context() as patch:
        patch.setattr(webdataset, "_index", lambda *_: pytest.fail("the shard is read again"))
        assert facts(wds(shards)) == before
    tar(shards / "pets-test-000.tar", samples(60, 12))
    assert facts(wds(shards)).fingerprint != before.fingerprint


def test_a_label_is_part_of_the_fingerprint(tmp_path):
    for name, label in (("a", b"0"), ("b", b"1")):
        (tmp_path / name).mkdir()
        one_shard(tmp_path / name, samples(0, 24) | {"0003.cls": label})
    assert facts(wds(tmp_path / "a")).fingerprint != facts(wds(tmp_path / "b")).fingerprint


def test_copies_in_shards_are_told(shards, caplog):
    tar(shards / "pets-test-000.tar", samples(0, 12))
    found = facts(wds(shards))
    assert found.copies["test_in_train"] + found.copies["test_in_validation"] == 12
    assert "so test errors are too good" in caplog.text


def test_shards_that_change_meanwhile_are_not_trained_on(shards):
    data = wds(shards, in_memory=False)
    found = facts(data)
    tar(shards / "pets-train-000.tar", samples(200, 24))
    with pytest.raises(UserError, match="have changed since the command began"):
        build(data, found, batch_size=8, seed=0)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("augmentation", ["crop_flip", "random_resized_crop"])
def test_order_and_augmentation_are_those_of_the_same_images_in_a_folder(shards, tmp_path, in_memory, augmentation):
    """The batches do not depend on workers, and a resumed epoch goes on at the next one, to the bit."""
    data = wds(shards, in_memory=in_memory, augmentation=augmentation, workers=0)
    batches = list(module(data).train_dataloader())
    for workers in (0,) if in_memory else (0, 2):
        resumed = module(data | {"workers": workers}).train_dataloader()
        resumed.load_state_dict({"epoch": 0, "position": 2})
        rest = list(resumed)
        assert len(rest) == len(batches) - 2
        for (a, x), (b, y) in zip(rest, batches[2:], strict=True):
            assert torch.equal(a, b)
            assert torch.equal(x, y)
    halves = [list(module(data, batch_size=4, rank=rank, world_size=2).train_dataloader()) for rank in (0, 1)]
    for whole, *parts in zip(batches, *halves, strict=True):
        assert torch.equal(whole[0], torch.cat([part[0] for part in parts]))
        assert torch.equal(whole[1], torch.cat([part[1] for part in parts]))


def write_classes(root: Path, form: Callable[[str, int], str]) -> dict[str, bytes]:
    return {
        form(name, number): encoded(number + 100 * label)
        for label, name in enumerate(("cat", "dog"))
        for number in range(12)
    }


def test_a_tar_file_of_class_folders_is_what_timm_reads(tmp_path):
    path = tar(tmp_path / "pets.tar", write_classes(tmp_path, lambda name, number: f"./{name}/{number:02}.png"))
    data = {"kind": "timm", "name": "", "root": str(path)}
    found = facts(data)
    theirs = timm.data.create_dataset("", root=str(path))
    labels = {Path(theirs.filename(index)).as_posix(): theirs[index][1] for index in range(len(theirs))}
    assert len(labels) == 24
    ours = {
        path_.split("pets.tar/")[1]: int(label)
        for path_, label in zip(found.examples.paths, found.examples.labels, strict=True)
    }
    assert sorted(ours.values()) == sorted(labels.values())
    assert found.class_names == ("cat", "dog")
    assert all(ours[f"./{name}/00.png"] == label for label, name in enumerate(("cat", "dog")))


def test_tar_files_may_be_splits_or_classes_or_hold_splits(tmp_path):
    (tmp_path / "splits").mkdir()
    (tmp_path / "classes").mkdir()
    for split, start in (("train", 0), ("val", 500)):
        files = {
            f"{name}/{number}.png": encoded(start + number + 100 * label)
            for label, name in enumerate(("cat", "dog"))
            for number in range(8)
        }
        tar(tmp_path / "splits" / f"{split}.tar", files)
    for label, name in enumerate(("cat", "dog")):
        tar(
            tmp_path / "classes" / f"{name}.tar",
            {f"{number}.png": encoded(number + 100 * label) for number in range(8)},
        )
    inside = {
        f"{split}/{name}": data
        for split in ("train", "test")
        for name, data in write_classes(tmp_path, lambda n, i: f"{n}/{i}.png").items()
    }
    tar(tmp_path / "both.tar", inside)
    counts = {}
    for name in ("splits", "classes", "both.tar"):
        found = facts({"kind": "timm", "name": "", "root": str(tmp_path / name)})
        assert found.class_names == ("cat", "dog")
        counts[name] = (found.train_count, found.validation_count, found.test_count)
    assert counts == {"splits": (14, 2, 16), "classes": (11, 2, 3), "both.tar": (22, 2, 24)}


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_torchvisions_sets_by_timms_names_are_ours(tmp_path, name):
    write = {"cifar10": data_files.cifar10, "mnist": lambda root: data_files.mnist(root / "MNIST" / "raw")}[name]
    write(tmp_path)
    ours = facts({"kind": name, "root": str(tmp_path)})
    theirs = facts({"kind": "timm", "name": f"torch/{name}", "root": str(tmp_path)})
    assert (theirs.fingerprint, theirs.split_digest) == (ours.fingerprint, ours.split_digest)
    data = {"kind": "timm", "name": f"torch/{name}", "root": str(tmp_path)}
    assert next(iter(module(data).train_dataloader()))[0].shape[1] == ours.channels
    assert "data.train_split=test has no effect" in refused(data | {"train_split": "test"})


def test_where_a_set_lies_and_how_it_is_called_is_not_signed_and_names_the_run(shards, tmp_path):
    specs = []
    for number in range(2):
        place = tmp_path / f"place{number}"
        shards.rename(place)
        shards = place
        specs.append(make_spec(["data=timm", "data.name=wds/", f"data.root={place}", "batch.size=4"]))
    assert specs[0].signature == specs[1].signature
    assert specs[0].name.startswith("place0-")
