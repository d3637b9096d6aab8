"""image_folder: layouts, split rules, and every way a folder can be wrong."""

from __future__ import annotations

import os

import numpy as np
import pytest

from neumann.data import facts
from neumann.data.scan import explain
from neumann.errors import UserError


def describe(root, **more):
    return facts({"kind": "image_folder", "root": str(root), **more})


def counts(found):
    return found.train_count, found.validation_count, found.test_count


def folders_of(found, part):
    return {found.examples.paths[index].split("/")[0] for index in getattr(found.examples, part)}


CAT_AND_DOG = ("cat", "dog")


def layout(**splits):
    return {f"{split}/{name}": count for split, count in splits.items() for name in CAT_AND_DOG}


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "Val"])
def test_three_folders_stay_as_they_are(make_folder, validation):
    found = describe(make_folder(layout(train=5, test=3, **{validation: 2})))
    assert counts(found) == (10, 4, 6)
    assert folders_of(found, "validation") == {validation}
    assert found.split_rule == f"train/, {validation}/ and test/ as they are"
    assert found.test_is == "the folder test/"


def test_train_and_test_cut_validation_from_train(make_folder):
    found = describe(make_folder(layout(train=20, test=3)))
    assert counts(found) == (36, 4, 6)
    assert folders_of(found, "test") == {"test"}
    assert folders_of(found, "validation") == {"train"}
    assert np.bincount(found.examples.labels[found.examples.validation]).tolist() == [2, 2]
    assert found.test_is == "the folder test/"


def test_train_and_val_make_val_the_test_split(make_folder):
    found = describe(make_folder(layout(train=20, val=3)))
    assert counts(found) == (36, 4, 6)
    assert folders_of(found, "test") == {"val"}
    assert folders_of(found, "train") == folders_of(found, "validation") == {"train"}
    assert "val/ is the test split" in found.split_rule
    assert "val/" in found.test_is


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_bare_class_folders_are_cut_twice(make_folder, prefix):
    found = describe(make_folder({f"{prefix}cat": 40, f"{prefix}dog": 20}))
    assert counts(found) == (43, 5, 12)  # a fifth of 60, a tenth of the other 48
    assert np.bincount(found.examples.labels[found.examples.test]).tolist() == [8, 4]
    assert "cut by us" in found.test_is
    assert "split seed 0" in found.split_rule


def test_the_test_split_depends_on_the_split_seed_alone(make_folder):
    root = make_folder({"cat": 40, "dog": 20})
    base = describe(root)
    assert np.array_equal(base.examples.test, describe(root, val_fraction=0.4, channels=1).examples.test)
    assert not np.array_equal(base.examples.test, describe(root, split_seed=1).examples.test)


def test_a_class_called_train_is_a_class(make_folder):
    found = describe(make_folder({"train": 5, "plane": 5}))
    assert found.class_names == ("plane", "train")


def test_hidden_and_foreign_files_are_ignored_and_any_case_counts(make_folder):
    root = make_folder({"cat": 5, "dog": 5, "cat/.hidden": 2, "__MACOSX": 1})
    make_folder({"cat": 1}, suffix=".JPEG")
    (root / "cat" / ".DS_Store").write_bytes(b"x")
    (root / "cat" / "._000.png").write_bytes(b"x")
    (root / "dog" / "notes.txt").write_text("x")
    (root / "LICENSE").write_text("x")
    found = describe(root)
    assert found.class_names == CAT_AND_DOG
    assert len(found.examples.paths) == 11


def test_files_are_sorted_and_nested_ones_and_links_found(make_folder, tmp_path):
    root = make_folder({"cat/b": 3, "dog": 4})
    make_folder({"more": 2}, root="outside")
    (root / "cat" / "a").symlink_to(tmp_path / "outside" / "more")
    (root / "cat" / "ring").symlink_to(root / "cat")
    found = describe(root)
    assert list(found.examples.paths) == sorted(found.examples.paths)
    assert sum(path.startswith("cat/a/") for path in found.examples.paths) == 2
    assert len(found.examples.paths) == 9


def test_folders_beside_train_without_images_are_ignored(make_folder):
    root = make_folder(layout(train=5, test=3))
    (root / "annotations").mkdir()
    (root / "annotations" / "list.txt").write_text("x")
    assert counts(describe(root)) == (8, 2, 6)


SUFFIXES = [".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".gif", ".PNG"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_image_kind_is_read(make_folder, suffix):
    found = describe(make_folder({"cat": 3, "dog": 3}, suffix=suffix, size=(9, 7)))
    assert found.native_size == found.image_size == (9, 7)


def test_sizes_and_memory(make_folder):
    mixed = make_folder({"cat": 4, "dog": 4}, size=[(8, 8), (8, 9)])
    assert describe(mixed).native_size is None
    assert describe(mixed).image_size == (224, 224)
    assert describe(mixed, image_size=32).image_size == (32, 32)
    assert describe(mixed, image_size=[16, 24]).image_size == (16, 24)
    assert describe(mixed).in_memory
    assert not describe(mixed, image_size=20_000).in_memory
    assert not describe(mixed, in_memory=False).in_memory


def sentence(root, **more):
    with pytest.raises(UserError) as error:
        describe(root, **more)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_no_class_folders(make_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "'" + str(tmp_path / "empty") + "' has no class folders" in sentence(tmp_path / "empty")
    flat = make_folder({"": 4})
    assert "images lie directly in it" in sentence(flat)
    assert str(flat) in sentence(flat)


def test_one_class_only(make_folder):
    assert "only one class folder, 'cat'" in sentence(make_folder({"cat": 9}))
    above = make_folder({"cifar/train/cat": 3, "cifar/train/dog": 3}, root="above")
    assert f"did you mean data.root={above / 'cifar'}?" in sentence(above)


def test_an_empty_class_folder(make_folder):
    root = make_folder({"cat": 5, "dog": 0, "emu": 5})
    assert f"class folder '{root / 'dog'}' holds no images" in sentence(root)
    (root / "dog" / "readme.txt").write_text("x")
    (root / "dog" / ".hidden.png").write_text("x")
    assert "its 1 file(s) are of other kinds" in sentence(root)
    assert "test/cat' holds no images" in sentence(make_folder(layout(train=5, test=0), root="split"))


def test_too_few_images_to_split(make_folder):
    text = sentence(make_folder({"cat": 5, "dog": 2}))
    assert "class 'dog'" in text
    assert "has 2 image(s)" in text
    assert "need at least 3" in text
    assert describe(make_folder({"cat": 5, "dog": 3}, root="enough")).train_count == 4
    text = sentence(make_folder(layout(train=1, test=4), root="split"))
    assert "split/train' has 1 image(s)" in text
    assert "need at least 2 (1 other class(es) have too few as well)" in text
    assert counts(describe(make_folder(layout(train=1, val=1, test=1), root="given"))) == (2, 2, 2)


def test_class_lists_must_agree(make_folder):
    root = make_folder(layout(train=5, test=3))
    make_folder({"test/emu": 2})
    assert "class folder 'emu' is in test/ and not in train/" in sentence(root)
    make_folder({"train/emu": 2, "train/fox": 2})
    assert "class folder 'fox' is in train/ and not in test/" in sentence(root)


def test_a_mix_of_splits_and_classes_is_refused(make_folder):
    assert "beside it the class folder 'cat'" in sentence(make_folder({**layout(train=5), "cat": 3}))
    flat = make_folder({**layout(train=5), "test": 3}, root="flat")
    assert f"'{flat / 'test'}' has no class folders" in sentence(flat)
    assert "both val/ and valid/" in sentence(make_folder(layout(train=5, val=2, valid=2), root="both"))
    assert "no train/" in sentence(make_folder(layout(val=2, test=2), root="trainless"))


def test_unreadable_files_are_named_and_counted(make_folder):
    root = make_folder({"cat": 5, "dog": 5})
    (root / "cat" / "001.png").write_bytes(b"")
    text = sentence(root)
    assert f"'{root / 'cat' / '001.png'}' is not a readable image (the file is empty)" in text
    (root / "dog" / "002.png").write_text("not a picture at all")
    assert "2 of the 10 image files cannot be read" in sentence(root)
    (root / "cat" / "001.png").unlink()
    assert "(no known image format)" in sentence(root)


@pytest.mark.parametrize("kind", ["pipe", "device", "ring"])
def test_what_is_no_file_is_named_and_not_waited_for(make_folder, kind):
    root = make_folder({"cat": 5, "dog": 5})
    odd = root / "cat" / "odd.png"
    {
        "pipe": lambda: os.mkfifo(odd),
        "device": lambda: odd.symlink_to("/dev/zero"),
        "ring": lambda: odd.symlink_to(odd),
    }[kind]()
    assert f"'{odd}' cannot be read (" in sentence(root)


def test_a_ring_of_links_beside_the_classes_is_no_class(make_folder):
    root = make_folder({"cat": 5, "dog": 5})
    (root / "ring").symlink_to(root / "ring")
    assert describe(root).class_names == CAT_AND_DOG
    assert "cannot be read (Too many levels of symbolic links)" in sentence(root / "ring")


@pytest.mark.parametrize("root", ["~nobody-of-this-name/x", "a\0b"])
def test_a_root_that_is_no_path_is_one_sentence(root):
    assert "cannot be read" in sentence(root)


def test_a_broken_link_is_named(make_folder):
    root = make_folder({"cat": 5, "dog": 5})
    (root / "cat" / "lost.png").symlink_to("/nowhere.png")
    assert "lost.png' cannot be read" in sentence(root)


def test_the_systems_refusal_is_told_in_its_words_without_a_number_or_the_path_again() -> None:
    assert explain(PermissionError(13, "Permission denied", "/a/b.png")) == "permission denied"
    assert explain(OSError("image file is truncated")) == "image file is truncated"


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_classes_that_differ_in_case_alone_are_told(make_folder, caplog, prefix):
    root = make_folder({f"{prefix}{name}": 12 for name in ("Cat", "cat", "dog")})
    found = describe(root)
    assert found.class_names == ("Cat", "cat", "dog")
    said = [record.getMessage() for record in caplog.records if str(root) in record.getMessage()]
    assert len(said) == 1
    assert "the class folders 'Cat' and 'cat' differ in upper and lower case alone and are two classes" in said[0]
    assert "dog" not in said[0]
