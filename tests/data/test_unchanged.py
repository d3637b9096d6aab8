"""Images that change between the command and the reading: a run trains on those that it is signed by, or not at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from neumann.data import facts
from neumann.data.module import build
from neumann.errors import UserError


def edit(path) -> None:
    """Write other pixels at the same size, as a tool that corrects images does."""
    shape = np.asarray(Image.open(path)).shape
    Image.fromarray(np.full(shape, 7, np.uint8)).save(path)


def settings(root, **more):
    return {"kind": "image_folder", "root": str(root), "workers": 0, **more}


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("change", ["edit", "add", "remove"])
def test_images_that_changed_since_the_command_are_not_trained_on(make_folder, in_memory, change):
    root = make_folder({"cat": 9, "dog": 9})
    data = settings(root, in_memory=in_memory)
    found = facts(data)
    if change == "edit":
        edit(root / "cat" / "003.png")
    elif change == "add":
        Image.new("RGB", (16, 16)).save(root / "cat" / "new.png")
    else:
        (root / "cat" / "003.png").unlink()
    with pytest.raises(UserError) as error:
        build(data, found, batch_size=4, seed=0)
    assert "\n" not in str(error.value)
    if (change, in_memory) != ("remove", True):  # which is met as a file that cannot be read
        assert f"the images in '{root}' have changed since the command began" in str(error.value)


def test_pixels_in_the_cache_are_the_ones_signed(make_folder):
    """What was decoded before an edit needs no folder, and an edit never enters the cache under the old fingerprint."""
    root = make_folder({"cat": 9, "dog": 9})
    data = settings(root)
    found = facts(data)
    before = build(data, found, batch_size=4, seed=0)
    edit(root / "cat" / "003.png")
    after = build(data, found, batch_size=4, seed=0)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(before.val_dataloader(), after.val_dataloader(), strict=True))


def test_the_same_bytes_written_again_are_no_change(make_folder):
    root = make_folder({"cat": 9, "dog": 9})
    data = settings(root, in_memory=False)
    found = facts(data)
    for path in root.rglob("*.png"):
        path.write_bytes(path.read_bytes())
        path.touch()
    build(data, found, batch_size=4, seed=0).check_stream()
