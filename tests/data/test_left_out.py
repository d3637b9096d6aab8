"""What lies in an image folder and is not what the user thinks: left out, and told in one line."""

from __future__ import annotations

import json
import logging
import os
import shutil
import unicodedata

import pytest

from neumann.data import facts
from neumann.errors import UserError


def look(root, caplog, **more):
    """Return the facts of ``root`` and the line that was said about it."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        found = facts({"kind": "image_folder", "root": str(root), **more})
    assert len(caplog.records) <= 1
    return found, caplog.records[0].getMessage() if caplog.records else ""


def refusal(root):
    with pytest.raises(UserError) as error:
        facts({"kind": "image_folder", "root": str(root)})
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_clean_folder_says_nothing(make_folder, caplog):
    root = make_folder({"cat": 5, "dog": 5})
    (root / "LICENSE").write_text("x")
    (root / "cat" / "Thumbs.db").write_text("x")
    (root / "cat" / ".DS_Store").write_text("x")
    assert look(root, caplog)[1] == ""


@pytest.mark.parametrize(
    "litter",
    [
        "@eaDir",
        "$RECYCLE.BIN",
        "RECYCLER",
        "__pycache__",
        "cat/@eaDir",
        "cat/.thumbnails",
        "cat/thumbs",
        "System Volume Information",
        "cat/#recycle",
    ],
)
def test_litter_is_no_data(make_folder, caplog, litter):
    clean = look(make_folder({"cat": 5, "dog": 5}), caplog)[0]
    root = make_folder({litter: 2}, size=(4, 4))
    found, said = look(root, caplog)
    assert found == clean
    assert found.image_size == (16, 16)
    assert said.endswith(f"left out: 1 folder(s) that are hidden, a system's or of thumbnails, e.g. '{litter}'")


def test_what_is_left_out_is_counted_in_one_line(make_folder, caplog):
    root = make_folder({"cat": 5, "dog": 5})
    for name in ("a.heic", "b.heic", "c.txt", "._000.png"):
        (root / "cat" / name).write_bytes(b"x")
    shutil.copy(root / "cat" / "000.png", root / "stray.png")
    (root / "emu").symlink_to(root / "nowhere")
    said = look(root, caplog)[1]
    assert "1 hidden image(s), e.g. 'cat/._000.png'" in said
    assert "3 file(s) that are not images by name (2 .heic, 1 .txt), e.g. 'cat/a.heic'" in said
    assert "1 image(s) beside the class folders, e.g. 'stray.png'" in said
    assert "1 link(s) that lead nowhere, e.g. 'emu'" in said
    caplog.clear()
    facts({"kind": "image_folder", "root": str(root)})
    assert not caplog.records  # once in a process


def test_folders_inside_a_class_count_as_it_and_that_is_said(make_folder, caplog):
    root = make_folder({"cat": 5, "cat/masks": 5, "dog": 5}, size=(16, 16))
    found, said = look(root, caplog)
    assert found.train_count + found.validation_count + found.test_count == 15
    assert "5 image(s) lie in folders inside a class folder and count as its class, e.g. 'cat/masks/000.png'" in said


def test_training_and_testing_are_splits(make_folder, caplog):
    root = make_folder({f"{part}/{name}": 5 for part in ("Training", "testing") for name in ("cat", "dog")})
    found = look(root, caplog)[0]
    assert found.class_names == ("cat", "dog")
    assert found.test_is == "the folder testing/"
    assert found.test_count == 10
    make_folder({"train/cat": 1})
    assert "both Training/ and train/" in refusal(root)


def test_a_split_of_another_name_is_told(make_folder, caplog):
    root = make_folder({f"{part}/{name}": 5 for part in ("train", "holdout") for name in ("cat", "dog")})
    said = look(root, caplog)[1]
    assert "1 folder(s) beside train/ that are no split by name (val/ and test/ are), e.g. 'holdout'" in said


@pytest.mark.parametrize(
    "names",
    [
        ("train_set", "test_set"),
        ("seg_train", "seg_test"),
        ("dev", "eval"),
        ("Training Data", "val2017"),
        ("trn", "tst"),
    ],
)
def test_class_folders_that_read_as_splits_are_refused(make_folder, caplog, names):
    root = make_folder({f"{part}/{name}": 5 for part in names for name in ("cat", "dog")})
    assert "read as splits and both hold 'cat': rename them to train and test (or val)" in refusal(root)
    shutil.rmtree(root)
    make_folder(dict.fromkeys(names, 5))  # images directly in them are those of classes
    assert set(look(root, caplog)[0].class_names) == set(names)
    shutil.rmtree(root)
    make_folder({f"{part}/{part}-day": 5 for part in names})  # other folders in each are no classes of both
    assert set(look(root, caplog)[0].class_names) == set(names)


def test_a_val_folder_that_is_the_test_split_is_told(make_folder, caplog):
    root = make_folder({f"{part}/{name}": 5 for part in ("train", "Val") for name in ("cat", "dog")})
    said = look(root, caplog)[1]
    assert "Val/ is the test split, the only labelled one beside train/, and validation is cut from train/" in said
    make_folder({"test/cat": 2, "test/dog": 2})
    assert "is the test split" not in look(root, caplog)[1]


@pytest.mark.parametrize("content", ["nothing", "an archive", "a link that leads nowhere"])
def test_a_split_folder_without_images_is_told(make_folder, caplog, content):
    root = make_folder({"train/cat": 5, "train/dog": 5})
    if content == "a link that leads nowhere":
        (root / "test").symlink_to(root / "missing")
        assert "left out: 1 link(s) that lead nowhere, e.g. 'test'" in look(root, caplog)[1]
        return
    (root / "test").mkdir()
    if content == "an archive":
        (root / "test" / "images.zip").write_bytes(b"x")
    found, said = look(root, caplog)
    assert "left out: 1 split folder(s) that hold no images, e.g. 'test'" in said
    assert found.test_is == "0.2 of train/, cut by us"


@pytest.mark.parametrize("content", ["a text", "a pipe"])
def test_a_split_that_is_no_folder_is_told(make_folder, caplog, content):
    """A checkout on Windows holds a link as a file with its target's name."""
    root = make_folder({"train/cat": 5, "train/dog": 5})
    if content == "a text":
        (root / "test").write_text("../images/test")
    else:
        os.mkfifo(root / "test")
    found, said = look(root, caplog)
    assert "left out: 1 thing(s) named as a split that are no folder, e.g. 'test'" in said
    assert found.test_is == "0.2 of train/, cut by us"


def test_a_cut_that_is_not_made_cannot_be_set(make_folder):
    def refused(root, **more):
        with pytest.raises(UserError) as error:
            facts({"kind": "image_folder", "root": str(root), **more})
        return str(error.value)

    root = make_folder({f"{part}/{name}": 8 for part in ("train", "val") for name in ("cat", "dog")})
    said = refused(root, test_fraction=0.3)
    assert said == f"data.test_fraction=0.3 has no effect on '{root}', which has val/ beside train/: leave it out"
    facts({"kind": "image_folder", "root": str(root), "test_fraction": 0.2, "val_fraction": 0.3, "split_seed": 1})
    make_folder({"test/cat": 3, "test/dog": 3})
    assert "has test/ and val/ beside train/: leave it out" in refused(root, val_fraction=0.3)
    assert "data.split_seed=1 has no effect" in refused(root, split_seed=1)


def test_a_hidden_class_is_not_dropped_in_silence(make_folder):
    root = make_folder({"java": 5, "python": 5, ".net": 5})
    assert f"'{root / '.net'}' holds images and is hidden" in refusal(root)


def test_our_own_results_are_no_class(make_folder, caplog, monkeypatch):
    root = make_folder({"cat": 5, "dog": 5})
    clean = look(root, caplog)[0]
    run = root / "runs" / "set" / "set-small_cnn-s0-0123456789ab"
    run.mkdir(parents=True)
    monkeypatch.chdir(root)
    (run / ".claim.1").touch()  # of the first run of all, before it has written anything
    assert look(".", caplog)[0] == clean
    (run / ".claim.1").unlink()
    (run / "status.json").write_text("{}")
    (run / "media").mkdir()
    shutil.copy(root / "cat" / "000.png", run / "media")
    assert look(".", caplog)[0] == clean
    shutil.rmtree(root / "dog")
    assert "only one class folder, 'cat'" in refusal(root)
    (root / "dog").mkdir()
    assert f"class folder '{root / 'dog'}' holds no images" in refusal(root)


def test_composed_and_decomposed_names_are_one_class(make_folder, caplog):
    nfc, nfd = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    root = make_folder({f"train/{nfc}": 5, "train/bar": 5, f"test/{nfd}": 3, "test/bar": 3})
    found = look(root, caplog)[0]
    assert found.class_names == ("bar", nfc)
    paths = [found.examples.paths[index] for index in found.examples.test]
    assert {
        (path.split("/")[1], int(found.examples.labels[index]))
        for path, index in zip(paths, found.examples.test, strict=True)
    } == {("bar", 0), (nfd, 1)}
    assert "two class folders that read 'café'" in refusal(make_folder({nfc: 5, nfd: 5, "bar": 5}, root="bare"))


def test_one_image_of_another_size_is_told(make_folder, caplog):
    root = make_folder({"cat": 5, "dog": 5})
    make_folder({"dog": 1}, size=(4, 9))
    found, said = look(root, caplog)
    assert found.image_size == (224, 224)
    assert (
        "9 of 10 images are 16×16 and the others are not, e.g. 'dog/000.png' is 4×9, so all are scaled to 224×224"
        in said
    )
    assert "scaled" not in look(root, caplog, image_size=16)[1]


def test_names_that_steer_a_terminal_are_spelt_out(make_folder, caplog):
    root = make_folder({"cat": 5, "dog": 5})
    (root / "cat" / "\x1b[2J.heic").write_bytes(b"x")
    assert "'cat/\\x1b[2J.heic'" in look(root, caplog)[1]


def test_counts_of_copies_are_recorded(make_folder):
    root = make_folder({"cat": 5, "dog": 5})
    record = facts({"kind": "image_folder", "root": str(root)}).as_record()
    assert json.loads(json.dumps(record))["copies"] == {
        "test_in_train": 0,
        "test_in_validation": 0,
        "validation_in_train": 0,
        "in_two_classes": 0,
    }
