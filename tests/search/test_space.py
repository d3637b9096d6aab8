"""A search is read in the syntax of Hydra's Optuna sweeper, and what has no meaning here is refused in one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from neumann.config import make_specs
from neumann.errors import UserError
from neumann.search.grid import expand, read_sweep
from neumann.search.space import Choices, Interval, Search

OPTUNA = "hydra/sweeper=optuna"


def read(*words: str, dirs: tuple[str, ...] = ()) -> Search:
    asked = read_sweep(words, dirs)
    assert isinstance(asked, Search)
    return asked


def test_two_spellings_of_one_number_are_one_choice() -> None:
    dimension = only("optimizer.lr=0.1,1e-1,0.10,1,1.0")
    assert isinstance(dimension, Choices)
    assert dimension.values == ("0.1", "1")


def only(word: str) -> Interval | Choices:
    (dimension,) = read(OPTUNA, word).space.values()
    return dimension


@pytest.mark.parametrize(
    ("text", "low", "high", "log", "integer"),
    [
        ("interval(0.01,1)", 0.01, 1.0, False, False),
        ("interval(1,4)", 1.0, 4.0, False, False),
        ("tag(log, interval(0.01, 1))", 0.01, 1.0, True, False),
        ("int(interval(8,64))", 8, 64, False, True),
        ("tag(log,int(interval(8,64)))", 8, 64, True, True),
    ],
)
def test_intervals(text: str, low: float, high: float, log: bool, integer: bool) -> None:
    dimension = only(f"optimizer.lr={text}")
    assert isinstance(dimension, Interval)
    assert (dimension.low, dimension.high, dimension.log, dimension.integer) == (low, high, log, integer)


@pytest.mark.parametrize(
    ("word", "ordered"),
    [
        ("optimizer=neumann,sgd", False),
        ("optimizer=glob(s*)", False),
        ("batch.size=choice(32,64)", False),
        ("ablation=null,literal", False),
        ("optimizer.momentum=[0.5,0.9],0.9", False),
        ("batch.size=range(8,33,8)", True),
        ("optimizer.lr=range(0.1,0.4,0.1)", True),
    ],
)
def test_what_is_listed_has_the_values_of_the_grid(word: str, ordered: bool) -> None:
    dimension = only(word)
    assert isinstance(dimension, Choices)
    assert [[f"{word.split('=')[0]}={value}"] for value in dimension.values] == expand([word])
    assert dimension.ordered == ordered


def test_a_shuffled_list_is_the_same_at_every_start() -> None:
    values = [only("batch.size=shuffle(range(1,9))") for _ in range(5)]
    assert all(value == values[0] for value in values)
    assert isinstance(values[0], Choices)
    assert (sorted(map(int, values[0].values)), values[0].ordered) == (list(range(1, 9)), False)


def test_seeds_are_of_every_trial_and_not_searched() -> None:
    search = read(
        OPTUNA, "optimizer=sgd", "optimizer.lr=interval(0.1,1)", "seed=range(3,5)", "+model.kwargs.width=8,16"
    )
    assert list(search.space) == ["optimizer.lr", "+model.kwargs.width"]
    jobs = search.runs({"optimizer.lr": "0.5", "+model.kwargs.width": "8"})
    assert jobs == [["optimizer=sgd", "optimizer.lr=0.5", "+model.kwargs.width=8", f"seed={s}"] for s in (3, 4)]
    assert read(OPTUNA, "optimizer.lr=interval(0.1,1)", "seed=7").runs({"optimizer.lr": "0.5"}) == [
        ["seed=7", "optimizer.lr=0.5"]
    ]


def test_values_are_written_exactly_and_compose() -> None:
    lr, size = only("optimizer.lr=tag(log,interval(1e-7,1))"), only("batch.size=int(interval(1,64))")
    assert isinstance(lr, Interval)
    assert isinstance(size, Interval)
    for value in (1e-07, 0.1 + 0.2, 1.0):
        (spec,) = make_specs([[f"optimizer.lr={lr.text(value)}", f"batch.size={size.text(7)}"]])
        assert (spec.config.optimizer["lr"], spec.config.batch.size) == (value, 7)


def test_edges() -> None:
    even, log = only("optimizer.lr=interval(0,1)"), only("optimizer.lr=tag(log,interval(0.0001,1))")
    assert [even.edge(x) for x in ("0.04", "0.06", "0.94", "0.96")] == ["lower", None, None, "upper"]
    assert [log.edge(x) for x in ("0.00015", "0.0002", "0.6", "0.7")] == ["lower", None, None, "upper"]
    assert [only("batch.size=range(8,33,8)").edge(x) for x in ("8", "16", "32")] == ["lower", None, "upper"]
    assert only("batch.size=32,64,128").edge("32") is None


def test_corners_hold_every_choice_and_both_ends() -> None:
    search = read(
        OPTUNA, "optimizer=neumann,sgd", "optimizer.lr=interval(0.1,1)", "seed=0,1", "batch.size=range(8,33,8)"
    )
    assert [" ".join(job) for job in search.corners()] == [
        f"optimizer={name} optimizer.lr={lr} batch.size={size} seed=0"
        for name in ("neumann", "sgd")
        for lr, size in (("0.1", "8"), ("1.0", "32"))
    ]
    many = read(OPTUNA, *(f"+model.kwargs.k{i}={','.join(map(str, range(10)))}" for i in range(4)))
    corners = many.corners()
    assert len(corners) == 40
    assert {word for job in corners for word in job} == {f"+model.kwargs.k{i}={j}" for i in range(4) for j in range(10)}


def test_settings_and_their_defaults() -> None:
    plain = read(OPTUNA, "optimizer.lr=interval(0.1,1)")
    assert (plain.sampler, plain.n_trials, plain.n_jobs, plain.settings["seed"]) == ("tpe", 20, None, 0)
    for choice in ("hydra/sweeper/sampler=tpe", "hydra.sweeper.sampler=tpe"):
        search = read(
            OPTUNA,
            choice,
            *("hydra.sweeper.n_trials=5", "hydra.sweeper.n_jobs=3", "hydra.sweeper.direction=minimize"),
            *("hydra.sweeper.sampler.seed=4", "hydra.sweeper.sampler.n_startup_trials=2"),
            "optimizer.lr=interval(0.1,1)",
        )
        assert (search.sampler, search.n_trials, search.n_jobs) == ("tpe", 5, 3)
        assert (search.settings["seed"], search.settings["n_startup_trials"]) == (4, 2)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["seed=0,1"], "there is nothing to search"),
        (["optimizer.lr=0.1"], "there is nothing to search"),
        (["seed=int(interval(0,9))"], "seeds are not searched, list those"),
        (["optimizer.lr=interval(1,0.1)"], "from a lower to a higher number"),
        (["optimizer.lr=interval(1e-400,1)"], "1e-400 is nearer to zero than a number can be"),
        (["optimizer.lr=0.1,1e-400"], "1e-400 is nearer to zero than a number can be"),
        (["optimizer.lr=interval(0.1,inf)"], "from a lower to a higher number"),
        (["optimizer.lr=tag(log,interval(0,1))"], "begins above 0"),
        (["optimizer.lr=tag(int,interval(0,1))"], "the tag 'int' has no meaning here"),
        (["batch.size=tag(log,range(1,9))"], "the tag 'log' has no meaning here"),
        (["optimizer=glob(zz*)"], "has no value"),
        (["batch.size=range(3,3)"], "has no value"),
        (["data.split_seed=0,1"], "data.split_seed decides which images a run is judged on"),
        (["data.val_fraction=interval(0.1,0.3)"], "data.val_fraction decides which images a run is judged on"),
        (["study=a,b"], "study cannot change a result"),
        (["logger.mode=online,offline"], "logger.mode cannot change a result"),
        (["data.workers=1,2"], "data.workers cannot change a result"),
        (["launch.parallel=1,2"], "all runs of one command are launched alike"),
        (["hydra/launcher=joblib"], "set launch.parallel=N"),
        (["hydra/sweeper/sampler=cma"], "there is no hydra/sweeper/sampler 'cma': choose from qmc, random, tpe"),
        (["hydra/sweeper/sampler=tpee"], "did you mean 'tpe'?"),
        (["hydra/sweeper/sampler=grid"], "a grid is what -m trains without"),
        (["hydra.sweeper.n_trial=3"], "did you mean 'n_trials'?"),
        (["hydra.sweeper.n_trials=0"], "a whole number, at least 1"),
        (["hydra.sweeper.n_trials=2.5"], "a whole number, at least 1"),
        (["hydra.sweeper.n_trials=2,3"], "a search has one n_trials"),
        (["hydra.sweeper.n_jobs=0"], "a whole number, at least 1"),
        (["hydra.sweeper.sampler.seed=-1"], "a whole number, at least 0"),
        (["hydra.sweeper.sampler.sed=1"], "did you mean 'seed'?"),
        (["hydra/sweeper/sampler=qmc", "hydra.sweeper.sampler.n_startup_trials=3"], "sampler=qmc has no setting"),
        (["hydra/sweeper/sampler=qmc", "hydra.sweeper.sampler.qmc_type=sobel"], "did you mean 'sobol'?"),
        (["hydra/sweeper/sampler=qmc", "hydra.sweeper.sampler.scramble=3"], "scramble is true or false"),
        (["hydra.sweeper.direction=maximize"], "did you mean 'minimize'? (it is validation error)"),
        (["hydra.sweeper.storage=sqlite:///x.db"], "has no meaning here: none is needed"),
        (["hydra.sweeper.study_name=x"], "has no meaning here: name the folder of the runs with study=NAME"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_what_has_no_meaning_is_one_sentence(words: list[str], part: str) -> None:
    space = [] if any(not word.startswith("hydra") for word in words) else ["optimizer.lr=interval(0.1,1)"]
    with pytest.raises(UserError) as caught:
        read_sweep([OPTUNA, *words, *space])
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_chooses_as_hydra_does_and_the_command_line_wins(tmp_path: Path) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /hydra/sweeper: optuna\n  - override hydra/sweeper/sampler: random\n  - _self_\n"
        "hydra:\n  sweeper:\n    sampler: {seed: 3}\n    n_trials: 7\n    n_jobs: 2\n    direction: minimize\n"
        "    params: {optimizer.lr: 'tag(log,interval(0.1,1))', seed: '0,1', batch.size: 64}\n"
        "optimizer: sgd\n"
    )
    dirs = (str(tmp_path),)
    search = read("+sweeps=mine", dirs=dirs)
    assert (search.sampler, search.settings, search.n_trials, search.n_jobs) == ("random", {"seed": 3}, 7, 2)
    assert (list(search.space), search.seeds, search.fixed) == (["optimizer.lr"], ("0", "1"), ("optimizer=sgd", "batch.size=64"))  # fmt: skip
    other = read("+sweeps=mine", "hydra.sweeper.n_trials=9", "seed=5", "hydra/sweeper/sampler=qmc", dirs=dirs)
    assert (other.n_trials, other.seeds, other.sampler, other.settings["seed"]) == (9, (), "qmc", 3)
    (tmp_path / "sweeps" / "mine.yaml").write_text(
        "defaults: [{override /hydra/launcher: x}]\nhydra: {sweeper: {params: {}}}\n"
    )
    with pytest.raises(UserError, match="not in a defaults list"):
        read("+sweeps=mine", dirs=dirs)


@pytest.mark.medium
def test_reading_a_search_imports_neither_optuna_nor_torch() -> None:
    code = (
        "import sys; from neumann.search.grid import read_sweep; import neumann.search.optuna, neumann.search.wandb;"
        "read_sweep(['hydra/sweeper=optuna', 'optimizer.lr=interval(0.1,1)']); print({'optuna', 'torch', 'wandb'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "set()", done.stderr
