"""Images that change between the command and the reading: a run trains on those that it is signed by, or not at all."""

from __future__ import annotations

import os
import shutil
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from neumann.data import facts, unchanged
from neumann.data.module import build
from neumann.data.timm_sets import listing_of
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


@pytest.mark.parametrize("where", ["", "train"])
def test_an_empty_folder_that_is_made_meanwhile_stops_no_run(make_folder, where):
    """It would be a class without images to the next command; no image that this run reads has changed."""
    named = f"{where}/" if where else ""
    root = make_folder({f"{named}cat": 9, f"{named}dog": 9} | ({"test/cat": 3, "test/dog": 3} if where else {}))
    module = stream(root)
    (root / where / "new").mkdir()
    for _ in range(2):
        module.check_stream()
    with pytest.raises(UserError, match="new"):  # a further command is told
        facts(settings(root))
    (root / where / "cat" / "000.png").unlink()
    with pytest.raises(UserError):
        module.check_stream()


def stream(root, **more):
    data = settings(root, in_memory=False, **more)
    return build(data, facts(data), batch_size=4, seed=0)


def read(module) -> list[torch.Tensor]:
    """Return what an epoch of training and the evaluations read."""
    loaders = (module.train_dataloader(), module.val_dataloader(), module.test_dataloader())
    return [images for loader in loaders for images, _ in loader]


def replace(path) -> None:
    """Put another file of the same size and time in its place, as a synchronisation does."""
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[:-1] + b"\x01")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def enlarge(path) -> None:
    Image.new("RGB", (20, 20)).save(path)


@pytest.fixture
def listings(monkeypatch) -> list[str]:
    """Note every time that a folder under a run is listed again."""
    listed: list[str] = []
    monkeypatch.setattr(unchanged, "listing_of", lambda wanted: listed.append(wanted.root) or listing_of(wanted))
    return listed


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.medium)])
@pytest.mark.parametrize("change", [edit, replace])
def test_an_image_that_changes_under_a_run_is_refused_when_it_is_read(make_folder, workers, change):
    root = make_folder({"cat": 9, "dog": 9}, suffix=".bmp")
    module = stream(root, workers=workers)
    change(root / "cat" / "003.bmp")
    with pytest.raises(UserError) as error:
        read(module)
    assert str(error.value).startswith(
        f"the images in '{root}' have changed since the command began ('cat/003.bmp' was written), so they are not"
    )


def test_an_image_of_another_size_under_a_run_is_refused(make_folder):
    root = make_folder({"cat": 9, "dog": 9})
    module = stream(root)
    enlarge(root / "cat" / "003.png")
    with pytest.raises(UserError, match=r"003.png' is not a readable image \(it is 20×20 pixels now and was 16×16\)"):
        read(module)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda cat: Image.new("RGB", (16, 16)).save(cat / "new.png"), "'cat/new.png' was added"),
        (lambda cat: Image.new("RGB", (16, 16)).save(cat / "nested" / "new.png"), "'cat/nested/new.png' was added"),
        (lambda cat: (cat / "003.png").unlink(), "'cat/003.png' was removed"),
        (lambda cat: (cat / "003.png").rename(cat.parent / "dog" / "x.png"), "'dog/x.png' was added"),
        (lambda cat: shutil.rmtree(cat / "nested"), "'cat/nested/0.png' was removed"),
    ],
)
def test_an_image_added_or_removed_under_a_run_is_noticed_by_an_evaluation(make_folder, change, said):
    root = make_folder({"cat": 9, "dog": 9})
    (root / "cat" / "nested").mkdir()
    Image.new("RGB", (16, 16)).save(root / "cat" / "nested" / "0.png")
    module = stream(root)
    module.check_stream()
    change(root / "cat")
    with pytest.raises(UserError, match="have changed since the command began") as error:
        module.check_stream()
    assert f"({said})" in str(error.value)


def test_an_evaluation_looks_at_folders_and_lists_none(make_folder, listings, monkeypatch):
    root = make_folder({"cat": 9, "dog": 9})
    results = root / "runs" / "study" / "run"
    results.mkdir(parents=True)
    (results / "status.json").write_text("{}")
    module = stream(root)
    (results / "wandb").mkdir()  # our own results, where data.root=. is trained
    looked = []
    monkeypatch.setattr(unchanged, "os", SimpleNamespace(stat=lambda path: looked.append(path) or os.stat(path)))
    read(module)
    module.check_stream()
    assert sorted(looked) == [str(root), str(root / "cat"), str(root / "dog")]
    assert listings == []


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.medium)])
def test_what_was_written_without_a_change_is_compared_once(make_folder, listings, workers):
    root = make_folder({"cat": 9, "dog": 9})
    module = stream(root, workers=workers)
    before = read(module)
    for path in root.rglob("*.png"):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    module.train_dataloader()
    assert all(map(torch.equal, read(module), before))
    module.check_stream()
    read(module)
    assert listings == [str(root)]


def test_of_a_folder_told_by_sizes_each_file_answers_for_itself(make_folder, listings, monkeypatch, caplog):
    monkeypatch.setattr("neumann.data.scan.CONTENT_LIMIT", 100)
    root = make_folder({"cat": 9, "dog": 9}, suffix=".bmp")
    module = stream(root)
    for path in root.rglob("*.bmp"):
        path.chmod(0o600)
    caplog.clear()
    read(module)
    assert not caplog.records
    edit(root / "cat" / "003.bmp")
    edit(root / "cat" / "004.bmp")
    read(module)
    read(module)
    assert [record.getMessage().count("was written while the run reads it") for record in caplog.records] == [1]
    assert listings == []
    Image.new("RGB", (16, 16)).save(root / "dog" / "new.bmp")
    monkeypatch.setattr("neumann.data.scan._look", None)  # no file need be read to see it
    with pytest.raises(UserError, match=r"'dog/new\.bmp' was added"):
        module.check_stream()
    (root / "dog" / "new.bmp").unlink()
    module.check_stream()
    with (root / "cat" / "003.bmp").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UserError, match=r"'cat/003\.bmp' was written"):
        read(module)


def test_a_tar_file_that_is_written_under_a_run_is_noticed(make_folder, tmp_path, listings):
    root = make_folder({"cat": 9, "dog": 9}, suffix=".bmp")
    place = tmp_path / "set.tar"

    def pack() -> None:
        with tarfile.open(place, "w") as tar:
            tar.add(root, arcname=".")

    pack()
    data = {"kind": "timm", "name": "", "root": str(place), "workers": 0, "in_memory": False}
    module = build(data, facts(data), batch_size=4, seed=0)
    read(module)
    module.check_stream()
    assert listings == []
    edit(root / "cat" / "003.bmp")
    pack()
    for look in (lambda: read(module), module.check_stream):
        with pytest.raises(UserError, match="have changed since the command began"):
            look()
