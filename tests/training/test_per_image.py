"""Answers to the test images are kept with the result: a bit an image in the order of the split, and confusion counts."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from neumann.data.batches import ShardPlan
from neumann.errors import UserError
from neumann.store import RunFolder, confusion, per_image
from neumann.training.distributed import RankGroup, WrongShards
from neumann.training.evaluation import _confused, _in_order
from neumann.training.trained import read
from tests.support.quick_runs import Train, quick
from tests.support.rank_groups import together

pytestmark = pytest.mark.medium


def recomputed(folder: RunFolder) -> tuple[NDArray[np.bool_], dict[tuple[int, int], int]]:
    """Return which test images the kept weights get right, and what they take for what, one image at a time."""
    from neumann.data.module import build

    spec = quick()
    model, _ = read(folder.path).network()
    data = build(spec.config.data, spec.facts, batch_size=64, eval_batch_size=1, seed=0)
    with torch.no_grad():
        answers = [(int(y), int(model(x).argmax(1))) for x, y in data.test_dataloader()]
    return np.array([label == answer for label, answer in answers]), dict(Counter(answers))


@pytest.mark.parametrize("more", [(), ("batch.max_per_device=16",)])
def test_it_is_what_the_kept_weights_answer(more: tuple[str, ...], train: Train) -> None:
    result, folder = train("optimizer=neumann", "recipe.recalibrate_batch_norm=2", *more)
    right = per_image.read(folder.path, result)
    points = ["held", "base", "average"]
    assert list(right) == [f"{split}.{point}" for split in ("test", "test_recalibrated") for point in points]
    for name, row in right.items():
        split, point = name.split(".")
        assert len(row) == 300
        assert int((~row).sum()) == result[split][point]["wrong"]
    expected, confused = recomputed(folder)
    assert (right["test.base"] == expected).all()
    pairs = confusion.read(folder.path, result)
    assert pairs is not None
    assert {(actual, answer): images for actual, answer, images in pairs.tolist()} == confused
    assert (result["test_confusion"]["point"], result["test_confusion"]["n"]) == ("base", 300)
    assert 0 < right["test.base"].sum() < 300
    assert (right["test.base"] != right["test.average"]).any()
    assert (folder.path / per_image.FILE).stat().st_size == 6 * 38


def test_a_file_that_is_not_the_runs_is_refused(train: Train) -> None:
    result, folder = train("optimizer=sgd")
    file = folder.path / per_image.FILE
    content = file.read_bytes()
    for spoilt in (bytes([content[0] ^ 128]) + content[1:], content[:-1], b""):
        file.write_bytes(spoilt)
        with pytest.raises(UserError, match=r"test-correct\.bin is missing or not what the run wrote"):
            per_image.read(folder.path, result)
    file.write_bytes(content)
    lying = json.loads(json.dumps(result))
    lying["test"]["held"]["wrong"] += 1
    with pytest.raises(UserError, match="not what the run wrote"):
        per_image.read(folder.path, lying)
    file.unlink()
    with pytest.raises(UserError, match="is missing"):
        per_image.read(folder.path, result)
    counts = folder.path / confusion.FILE
    counts.write_text(counts.read_text().replace("0,0,", "0,1,"))
    with pytest.raises(UserError, match=r"test-confusion\.csv is missing or not what the run wrote"):
        confusion.read(folder.path, result)


def test_an_earlier_result_and_a_diverged_one_say_that_they_have_none(train: Train) -> None:
    result, folder = train("optimizer=sgd", "optimizer.lr=1e38", "schedule=constant")
    assert per_image.KEY not in result
    assert not (folder.path / per_image.FILE).exists()
    assert not (folder.path / confusion.FILE).exists()
    assert confusion.read(folder.path, result) is None
    with pytest.raises(UserError, match="no answers by image, because it diverged"):
        per_image.read(folder.path, result)
    with pytest.raises(UserError, match="trained by an earlier version: study=NEW trains"):
        per_image.read(folder.path, {"status": "finished", "test": {}})


ANSWERS = np.arange(103) % 3 == 0


def gathered(group: RankGroup, twice: bool) -> list[bool]:
    plan = ShardPlan(np.arange(103), 7, rank=group.rank, world_size=group.world_size)
    places = plan.batches(0)
    if twice:
        places[0] = places[1][: len(places[0])]
    return _in_order(places, [torch.from_numpy(ANSWERS[at]) for at in places], 103, group).tolist()


def confused(group: RankGroup) -> list[list[int]]:
    mine = np.arange(103)[group.rank :: group.world_size]
    return _confused([torch.tensor([[at % 3, at % 2] for at in mine.tolist()])], group).tolist()


def test_the_ranks_together_count_every_pair_once() -> None:
    counts = Counter((at % 3, at % 2) for at in range(103))
    assert together(confused, 2) == [[[*pair, counts[pair]] for pair in sorted(counts)]] * 2


def test_the_ranks_together_have_every_image_in_order() -> None:
    assert together(gathered, 2, False) == [ANSWERS.tolist()] * 2
    for error in together(gathered, 2, True):
        assert isinstance(error, WrongShards)
        assert "never or more than once" in str(error)
