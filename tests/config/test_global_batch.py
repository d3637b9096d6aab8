"""The global batch is split exactly, or refused with the nearest sizes that can be, and rounded on request alone."""

from __future__ import annotations

import math

import pytest

from neumann.config import load_spec, make_spec
from neumann.config.global_batch import BatchSolver, BatchSplit, rate_factor
from neumann.config.signature import why_not_tuned
from neumann.errors import UserError


def has_split(size: int, devices: int, most: int | None, ghost: int | None) -> bool:
    """Try every number of micro-batches, as the words of the solver ask for: up to twice the fewest."""
    if size % devices:
        return False
    share = size // devices
    fewest = next(a for a in range(1, share + 1) if most is None or a * (most // (ghost or 1)) * (ghost or 1) >= share)
    return any(share % a == 0 and (share // a) % (ghost or 1) == 0 for a in range(fewest, 2 * fewest + 1))


@pytest.mark.parametrize("devices", [1, 2, 3])
@pytest.mark.parametrize(("most", "ghost"), [(None, None), (16, None), (1, None), (None, 4), (12, 4), (7, 3)])
def test_every_size_is_split_exactly_or_refused_with_its_neighbours(
    devices: int, most: int | None, ghost: int | None
) -> None:
    solver = BatchSolver(devices, most, ghost)
    good = [size for size in range(1, 200) if has_split(size, devices, most, ghost)]
    for size in range(1, good[-2] + 1):
        if size in good:
            split = solver.split(size)
            assert split.size == size == split.micro_batch * split.accumulation * devices
            assert split.micro_batch <= (most or size)
            assert split.micro_batch % (ghost or 1) == 0
            assert solver.rounded(size, 200) == split
            continue
        near = [*[each for each in good if each < size][-1:], next(each for each in good if each > size)]
        with pytest.raises(UserError, match=f"choose {' or '.join(map(str, near))}, or batch.round=true"):
            solver.split(size)
        assert solver.rounded(size, 200).size == min(near, key=lambda each: (abs(each - size), each))


def test_few_micro_batches_are_taken() -> None:
    assert BatchSolver(8, 256).split(32_000) == BatchSplit(250, 16, 8)
    assert BatchSolver(1, 256, 32).split(32_000) == BatchSplit(256, 125, 1)
    assert BatchSolver(1, 200, 32).split(32_000) == BatchSplit(160, 200, 1)  # 1,000 ghost batches, 5 at once
    assert BatchSolver(4, 64).split(256) == BatchSplit(64, 1, 4)
    assert BatchSolver(1, 10**400).split(32) == BatchSplit(32, 1, 1)
    assert BatchSolver(1).split(32_000) == BatchSplit(32_000, 1, 1)


def test_a_prime_batch_is_not_taken_one_by_one_in_silence() -> None:
    with pytest.raises(UserError, match=r"less than half as large: choose 1008 or 1010"):
        BatchSolver(1, 256).split(1009)
    assert BatchSolver(1, 1).split(1009) == BatchSplit(1, 1009, 1)  # where it is asked for


def test_nothing_is_rounded_beyond_the_training_images() -> None:
    assert BatchSolver(4, None, 100).rounded(1100, 1197).size == 800
    with pytest.raises(UserError, match="choose fewer devices or a smaller norm_size"):
        BatchSolver(4, None, 300).rounded(1100, 1197)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["batch.size=48", "batch.norm_size=32"], "cannot be cut on one device into ghost batches of batch.norm_size=32: choose 32 or 64"),
        (["batch.norm_size=32", "batch.max_per_device=16"], "choose batch.max_per_device=32 or more"),
        (["batch.size=1194", "batch.max_per_device=597", "trainer.devices=4"], "cannot be shared evenly by 4 devices: choose 1192 or 1196"),
        (["batch.size=25", "batch.max_per_device=20"], "choose 24 or 26"),
        (["batch.max_per_device=0"], "batch.max_per_device=0 is out of range: it must be at least 1, or null"),
        (["batch.norm_size=-1"], "batch.norm_size=-1 is out of range"),
        (["batch.round=1"], "batch.round=1 is not true or false"),
        (["batch.size=2000", "batch.round=true"], "does not fit the 1197 training images"),
        (["recipe.lr_scaling=linear"], "needs recipe.lr_base_size"),
        (["recipe.lr_base_size=256"], "scales nothing under recipe.lr_scaling=none"),
        (["recipe.lr_scaling=cubic", "recipe.lr_base_size=256"], "recipe.lr_scaling=cubic is not a choice"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        make_spec(words)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_rounded_batch_is_the_run_of_that_batch_and_remembers_what_was_asked() -> None:
    rounded = make_spec(["batch.size=1009", "batch.max_per_device=256", "batch.round=true"])
    plain = make_spec(["batch.size=1008", "batch.max_per_device=252"])
    assert rounded.config.batch.size == 1008
    derived = rounded.config.derived
    assert (derived.asked_batch_size, derived.micro_batch, derived.accumulation) == (1009, 252, 4)
    assert rounded.signature == plain.signature
    assert load_spec(rounded.as_record()) == rounded


def test_what_changes_the_numbers_is_signed() -> None:
    """The bound is not, what follows from it is; an accumulated run has another batch for batch norm and for noise."""
    plain = make_spec([]).signature
    assert make_spec(["batch.max_per_device=32"]).signature == plain
    accumulated = make_spec(["batch.max_per_device=16"]).signature
    assert accumulated == make_spec(["batch.max_per_device=23"]).signature
    scaled = [f"recipe.lr_scaling={rule}" for rule in ("linear", "sqrt")]
    different = [
        make_spec([*words]).signature
        for words in (
            ["batch.max_per_device=8"],
            ["batch.norm_size=16"],
            ["batch.norm_size=32"],
            *([rule, f"recipe.lr_base_size={base}"] for rule in scaled for base in (32, 256)),
        )
    ]
    assert len({plain, accumulated, *different}) == 2 + len(different)


@pytest.mark.parametrize("key", ["batch.max_per_device", "+batch.round"])
def test_what_is_a_matter_of_memory_is_not_searched(key: str) -> None:
    assert "is a matter of memory" in str(why_not_tuned(key))
    assert why_not_tuned("batch.norm_size") is None


def test_settings_that_came_later_leave_earlier_signatures_alone() -> None:
    """These are what the configuration was signed as before there were ghost batches, accumulation and scaled rates."""
    signed = make_spec(["optimizer=sgd"]).signed()["config"]
    assert signed["batch"] == {"size": 32}
    assert set(signed["derived"]) == {"train_examples", "steps_per_epoch", "total_steps", "eval_every_steps"}
    assert not [key for key in signed["recipe"] if key.startswith("lr_")]


def test_the_rate_is_scaled_with_the_batch_that_is_trained() -> None:
    assert rate_factor("none", 1024, None) == 1
    assert rate_factor("linear", 1024, 256) == 4
    assert rate_factor("sqrt", 1024, 256) == 2
    spec = make_spec(["batch.size=1009", "batch.max_per_device=252", "batch.round=true", "recipe.lr_scaling=sqrt", "recipe.lr_base_size=252"])  # fmt: skip
    assert spec.config.derived.rate_factor == math.sqrt(1008 / 252)
    assert spec.config.optimizer["lr"] == 0.1  # as it was asked for


def test_an_optimizer_without_a_rate_is_not_scaled(tmp_path) -> None:
    file = tmp_path / "optimizer" / "mine.yaml"
    file.parent.mkdir()
    file.write_text("# Mine: neumann train optimizer=mine\n_target_: torch.optim.SGD\n")
    make_spec(["optimizer=mine"], [str(tmp_path)])
    with pytest.raises(UserError, match=r"recipe.lr_scaling=linear scales optimizer.lr, which is null"):
        make_spec(["optimizer=mine", "recipe.lr_scaling=linear", "recipe.lr_base_size=32"], [str(tmp_path)])
