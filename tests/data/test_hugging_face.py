"""Hugging Face's sets in a folder of parquet files, made here: read without the network, damaged, of other shapes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neumann.data import facts
from neumann.data.module import build
from neumann.errors import UserError
from tests.data.test_timm_sets import encoded

datasets = pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed")
Labels = Sequence[Any]


def write(
    root: Path, splits: dict[str, tuple[list[bytes | None], Labels]], names: Sequence[str] | None = ("a", "b", "c")
) -> str:
    """Write a parquet file for each split of (encoded images, labels); return the set's name for timm."""
    kind = datasets.ClassLabel(names=list(names)) if names else None
    features = {"image": datasets.Image(), "label": kind} if kind else None
    for split, (images, labels) in splits.items():
        rows = [None if one is None else {"bytes": one, "path": None} for one in images]
        made = datasets.Dataset.from_dict(
            {"image": rows, "label": list(labels)}, features=datasets.Features(features) if features else None
        )
        if features is None:
            made = made.cast_column("image", datasets.Image())
        (root / "data").mkdir(parents=True, exist_ok=True)
        made.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return f"hfds/{root}"


@functools.cache
def png(number: int) -> bytes:
    return encoded(number, size=(8, 8))


def split(start: int, count: int, classes: int = 3) -> tuple[list[bytes | None], Labels]:
    return [png(number) for number in range(start, start + count)], [number % classes for number in range(count)]


@pytest.fixture
def hfds(tmp_path: Path) -> dict[str, Any]:
    name = write(tmp_path / "pets", {"train": split(0, 24), "test": split(100, 9)})
    return {"kind": "timm", "name": name, "root": str(tmp_path / "cache of datasets"), "workers": 0}


def refused(data: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        facts(data)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_rows_are_read_in_any_order_and_split_by_the_sets_own_names(hfds):
    found = facts(hfds)
    assert (found.train_count, found.validation_count, found.test_count) == (21, 3, 9)
    assert (found.class_names, found.native_size, found.in_memory) == (("a", "b", "c"), (8, 8), True)
    batches = {}
    for in_memory in (True, False):
        data = hfds | {"in_memory": in_memory, "augmentation": "crop_flip", "mean": [0.5] * 3, "std": [0.5] * 3}
        batches[in_memory] = list(build(data, facts(data), batch_size=6, seed=0).train_dataloader())
    for (a, x), (b, y) in zip(batches[True], batches[False], strict=True):
        assert torch.equal(a, b)
        assert torch.equal(x, y)


def test_what_is_read_is_what_timm_reads(hfds):
    import timm.data

    theirs = timm.data.create_dataset(hfds["name"], root=hfds["root"], split="test")
    data = hfds | {"mean": [0.0] * 3, "std": [1.0] * 3}
    images, labels = next(iter(build(data, facts(data), batch_size=6, eval_batch_size=9, seed=0).test_dataloader()))
    for index in range(9):
        image, label = theirs[index]
        assert label == labels[index]
        assert np.array_equal(np.asarray(image).transpose(2, 0, 1), (images[index] * 255).round().numpy())


def test_the_fingerprint_has_the_labels_and_not_the_place(hfds, tmp_path):
    before = facts(hfds).fingerprint
    images, labels = split(0, 24)
    same = write(tmp_path / "same", {"train": (images, labels), "test": split(100, 9)})
    other = write(tmp_path / "other", {"train": (images, [labels[1], labels[0], *labels[2:]]), "test": split(100, 9)})
    assert facts(hfds | {"name": same}).fingerprint == before
    assert facts(hfds | {"name": other}).fingerprint != before


@pytest.mark.parametrize(
    ("train", "names", "words"),
    [
        (([*split(0, 23)[0], None], split(0, 24)[1]), ("a", "b", "c"), "row 23 of split 'train'"),
        (
            ([*split(0, 23)[0], b"no image"], split(0, 24)[1]),
            ("a", "b", "c"),
            "row 23 of split 'train'' is not a readable image",
        ),
        (
            ([*split(0, 23)[0], png(23)[:80]], split(0, 24)[1]),
            ("a", "b", "c"),
            "row 23 of split 'train'' is not a readable image",
        ),
        (
            (split(0, 24)[0], [*split(0, 24)[1][:23], None]),
            ("a", "b", "c"),
            "has the label None, where labels are 0 to 2",
        ),
        (
            (split(0, 24)[0], [*split(0, 24)[1][:23], -5]),
            None,
            "has the label -5, where labels are class numbers from 0 on",
        ),
        ((split(0, 24)[0], ["x", "y"] * 12), None, "has the label 'x'"),
    ],
)
def test_damaged_rows_are_one_sentence(tmp_path, train, names, words):
    name = write(tmp_path / "pets", {"train": train}, names)
    assert words in refused({"kind": "timm", "name": name, "root": str(tmp_path / "cache of datasets")})


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"input_key": "picture"}, "has no column 'picture' (data.input_key)"),
        ({"target_key": "labels"}, "did you mean 'label'"),
        ({"input_key": "label"}, "holds no images: data.input_key names the one that does"),
        ({"train_split": "trian"}, "did you mean 'train'"),
        ({"name": "hfds/nobody/nothing"}, "data.download=true asks the hub for it"),
    ],
)
def test_wrong_settings_are_one_sentence(hfds, more, words):
    assert words in refused(hfds | more)


def test_a_cut_file_is_one_sentence(hfds, tmp_path):
    file = next((tmp_path / "pets" / "data").glob("train*"))
    file.write_bytes(file.read_bytes()[:-100])
    assert "cannot be loaded" in refused(hfds)


def test_without_the_library_it_is_named_with_its_extra(hfds, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert "pip install 'neumann[hfds]'" in refused(hfds)
