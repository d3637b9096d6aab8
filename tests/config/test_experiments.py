"""The paper's experiments compose, state the paper's numbers, and train a few steps at full image size.

`PRINTED` and `RESULTS` are copied from the paper (Krishnan, Xiao and Saurous, ICLR 2018).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from docs.generate.experiments import Experiment, experiments, read_experiment
from neumann.cli.main import main
from neumann.config import RunSpec, make_spec
from neumann.config.compose import CONF, composing
from neumann.config.from_overrides import making_specs
from neumann.errors import UserError
from neumann.store.records import flat
from tests.support.markdown_pages import ROOT

# ImageNet's counts without its files: 50,000 of the 1,281,167 training images are the validation split
IMAGENET = ["data=fake", "data.train_count=1231167", "data.validation_count=50000", "data.test_count=50000"]
IMAGENET += ["data.num_classes=1000", "data.in_memory=false"]
NEUMANN = {  # the paper's section 4: the same in every experiment
    "optimizer.alpha": 1e-7,
    "optimizer.beta": 1e-5,
    "optimizer.gamma": 0.99,
    "optimizer.momentum": [0.5, 0.9],
    "timing.burn_in": 5,
    "timing.reset_period": 10,
    "optimizer.reset_growth": 2,
}
SYNCHRONOUS = {
    "timing.ramp": 5,
    "timing.drop_every": 40,
    "schedule.factor": 0.3,
    "recipe.lr_scaling": "linear",
}
INCEPTION = {"data.image_size": 299, "data.augmentation": "random_resized_crop"}
RESNET = {"data.image_size": 224, "data.augmentation": "random_resized_crop"}
RMSPROP = {"batch.size": 3200, "batch.norm_size": 64, "optimizer.alpha": 0.9, "optimizer.momentum": 0.9}
SGD = {
    "batch.norm_size": 32,
    "recipe.lr_base_size": 32,
    "optimizer.lr": 0.045,
    "optimizer.momentum": 0.9,
    "schedule.factor": 0.94,
    "timing.decay_every": 2,
}
TABLE_3 = {1600: (23.0, 226, 181.0), 4000: (23.0, 230, 73.6), 8000: (23.1, 258, 41.3)}  # error, epochs, 1,000 updates
TABLE_3 |= {16000: (23.5, 210, 16.8), 32000: (24.0, 237, 9.5)}
BATCHES = {
    size: {"batch.size": size, "batch.norm_size": 32, "trainer.max_epochs": epochs, **RESNET, **NEUMANN, **SYNCHRONOUS}
    for size, (_, epochs, _) in TABLE_3.items()
}
ASSUMED_OF_TABLE_3 = ("batch.size", "trainer.max_epochs")  # in table 2, which prints neither
PRINTED: dict[str, dict[str, Any]] = {
    "table2/inception_v3_baseline": {**RMSPROP, **INCEPTION, **SYNCHRONOUS},
    "table2/inception_v3_neumann": {**INCEPTION, **NEUMANN, **SYNCHRONOUS},
    "table2/resnet50_baseline": {**SGD, **RESNET},
    "table2/resnet50_neumann": {k: v for k, v in BATCHES[1600].items() if k not in ASSUMED_OF_TABLE_3},
    "table2/resnet101_baseline": {**SGD, **RESNET},
    "table2/resnet101_neumann": {**RESNET, **NEUMANN, **SYNCHRONOUS},
    "table2/inception_resnet_v2_baseline": {**RMSPROP, **INCEPTION, **SYNCHRONOUS},
    "table2/inception_resnet_v2_neumann": {**INCEPTION, **NEUMANN, **SYNCHRONOUS},
    **{f"table3/batch_{size}": printed for size, printed in BATCHES.items()},
    "table4/baseline": {"batch.size": 4000, "batch.norm_size": 32, "optimizer.momentum": 0.9, **RESNET, **SYNCHRONOUS},
    "table4/neumann": BATCHES[4000],
    "table4/no_regularizers": {
        **{key: value for key, value in BATCHES[4000].items() if key != "trainer.max_epochs"},
        "optimizer.alpha": 0,
        "optimizer.beta": 0,
    },
    "figure1/adam_eps_1": {"optimizer.eps": 1.0, **INCEPTION, **SYNCHRONOUS},
    "figure1/adam_eps_0_01": {"optimizer.eps": 0.01, **INCEPTION, **SYNCHRONOUS},
}
SAME = {  # a curve: the row that is the same run
    "figure1/neumann": "table2/inception_v3_neumann",
    "figure1/rmsprop": "table2/inception_v3_baseline",
    **{
        f"figure2/{model}_{by}": f"table2/{model}_{by}"
        for model in ("resnet50", "resnet101", "inception_resnet_v2")
        for by in ("neumann", "baseline")
    },
    **{f"figure3/neumann_{size}": f"table3/batch_{size}" for size in TABLE_3},
    "figure3/baseline": "table2/resnet50_baseline",
}
RESULTS = {  # final top-1 validation error (%)
    "table2/inception_v3_baseline": 21.7,
    "table2/inception_v3_neumann": 20.8,
    "table2/resnet50_baseline": 23.9,
    "table2/resnet50_neumann": 23.0,
    "table2/resnet101_baseline": 22.6,
    "table2/resnet101_neumann": 21.7,
    "table2/inception_resnet_v2_baseline": 20.3,
    "table2/inception_resnet_v2_neumann": 19.5,
    **{f"table3/batch_{size}": error for size, (error, _, _) in TABLE_3.items()},
    "table4/baseline": 24.3,
    "table4/no_regularizers": 23.5,
    "table4/neumann": 23.0,
}
NAMES = sorted({*PRINTED, *SAME})


@pytest.fixture(scope="module")
def specs() -> dict[str, RunSpec]:
    """Every experiment on eight devices, by its name."""
    with making_specs() as make:
        made = make([[f"experiment={name}", *IMAGENET, "trainer.devices=8"] for name in NAMES])
    return dict(zip(NAMES, made, strict=True))


@pytest.fixture(scope="module")
def said() -> dict[str, Experiment]:
    return {one.name: one for one in experiments()}


def value_of(spec: RunSpec, key: str) -> Any:
    # batch.round has taken the nearest size that eight devices can share
    return dict(flat(spec.as_dict()))["derived.asked_batch_size" if key == "batch.size" else key]


def test_every_row_and_curve_of_the_paper_has_its_file(said: dict[str, Experiment]) -> None:
    assert sorted(said) == NAMES
    for one in said.values():
        command = f"neumann train experiment={one.name} data.root=/data/imagenet trainer.devices=8"
        assert one.command == command


@pytest.mark.parametrize("name", NAMES)
def test_what_a_file_states_as_printed_is_what_the_paper_prints(name: str, said: dict[str, Experiment]) -> None:
    stated = {key: yaml.safe_load(one.value) for key, one in said[name].printed.items()}
    paper = PRINTED[SAME.get(name, name)]
    # YAML 1.1 takes 1e-7 for a text
    assert {k: float(v) if isinstance(v, str) and re.match(r"\d", v) else v for k, v in stated.items()} == paper
    assert not said[name].printed.keys() & said[name].assumed.keys()


@pytest.mark.parametrize("name", sorted(RESULTS))
def test_the_published_result_stands_in_the_file(name: str, said: dict[str, Experiment]) -> None:
    assert f"{RESULTS[name]} %" in said[name].published
    for curve in (curve for curve, row in SAME.items() if row == name):
        assert f"{RESULTS[name]} %" in said[curve].published


@pytest.mark.medium
def test_a_run_has_the_settings_that_its_file_states(specs: dict[str, RunSpec], said: dict[str, Experiment]) -> None:
    for name, spec in specs.items():
        for key, one in {**said[name].printed, **said[name].assumed}.items():
            value = value_of(spec, key)
            stated = yaml.safe_load(one.value)
            assert value == (float(stated) if isinstance(value, int | float) else stated), f"{name}: {key}"


@pytest.mark.medium
def test_nothing_that_decides_a_result_is_left_unsaid(said: dict[str, Experiment]) -> None:
    """What a file sets, and its header does not state, is a matter of memory or of devices."""
    for name, one in said.items():
        content = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8"))
        content.pop("defaults")
        unsaid = {key for key, _ in flat(content)} - {*one.printed, *one.assumed}
        assert unsaid <= {"batch.max_per_device", "batch.round", "schedule.ramp_steps"}, name


@pytest.mark.medium
def test_a_curve_is_the_run_of_its_row(specs: dict[str, RunSpec]) -> None:
    for curve, row in SAME.items():
        assert specs[curve].signature == specs[row].signature
    assert specs["table4/neumann"].signature == specs["table3/batch_4000"].signature
    assert specs["table2/resnet50_neumann"].signature == specs["table3/batch_1600"].signature
    rows = [name for name in NAMES if name not in SAME]
    assert len({specs[name].signature for name in rows}) == len(rows) - 2


@pytest.mark.medium
def test_the_updates_of_table_3_are_the_papers(specs: dict[str, RunSpec]) -> None:
    """With 50,000 training images held out for validation, an epoch has 3.9 % fewer."""
    for size, (_, _, thousands) in TABLE_3.items():
        spec = specs[f"table3/batch_{size}"]
        updates = spec.config.derived.total_steps * spec.config.batch.size / size  # as if the size were not rounded
        assert updates == pytest.approx(thousands * 1000 * 1231167 / 1281167, rel=0.02), size


@pytest.mark.medium
def test_eight_devices_take_the_nearest_batches_in_whole_ghost_batches(specs: dict[str, RunSpec]) -> None:
    page = (ROOT / "docs" / "how-to" / "paper.md").read_text(encoding="utf-8")
    sizes = {1600: 1536, 4000: 4096, 8000: 8192, 16000: 16128, 32000: 32000}
    for asked, size in sizes.items():
        spec = specs[f"table3/batch_{asked}"]
        batch, derived = spec.config.batch, spec.config.derived
        assert (derived.asked_batch_size, batch.size) == (asked, size)
        assert batch.size == 8 * derived.micro_batch * derived.accumulation
        assert derived.micro_batch % 32 == 0
        assert derived.rate_factor == pytest.approx(size / 256)
        assert f"| {asked:,} | {size:,} | {derived.micro_batch} × {derived.accumulation} |" in page


@pytest.mark.medium
def test_the_papers_own_numbers_of_workers_take_its_batches_exactly() -> None:
    exact = [
        ("table3/batch_1600", 50, 1600),
        ("table3/batch_4000", 125, 4000),
        ("table2/inception_v3_neumann", 50, 3200),
    ]
    exact += [(f"table3/batch_{size}", devices, size) for size in TABLE_3 for devices in (1, 5)]
    for name, devices, size in exact:
        spec = make_spec([f"experiment={name}", *IMAGENET, f"trainer.devices={devices}"])
        assert spec.config.batch.size == size
        assert spec.config.derived.micro_batch * spec.config.derived.accumulation == size // devices


def own(folder: Path, name: str, text: str) -> list[str]:
    file = folder / "experiment" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"# @package _global_\n{text}")
    return [str(folder)]


def test_the_command_replaces_what_an_experiment_sets() -> None:
    with composing() as composer:
        row = ["experiment=table2/resnet50_neumann", "data.root=x"]
        composed, choices = composer.compose([*row, "ablation=no_alpha", "optimizer.lr=0.5", "batch.size=64"])
        assert (choices["data"], choices["model"], choices["experiment"]) == ("imagenet", "resnet50", row[0][11:])
        assert (composed.optimizer.alpha, composed.optimizer.lr, composed.batch.size) == (0.0, 0.5, 64)
        composed, choices = composer.compose([*row, "model=small_cnn", "optimizer=nesterov_inner"])
        assert (choices["model"], composed.optimizer.lr, composed.recipe.lr_base_size) == ("small_cnn", 0.1, 256)


def test_an_experiment_of_the_users_own_may_lie_in_a_folder(tmp_path: Path) -> None:
    dirs = own(tmp_path / "a", "mine/first", "defaults: [override /optimizer: sgd]\noptimizer: {lr: 0.3}\n")
    own(tmp_path / "a", "second", "defaults: [/experiment/mine/first]\nseed: 7\n")
    assert make_spec(["experiment=mine/first"], dirs).config.optimizer["lr"] == 0.3
    second = make_spec(["+experiment=second"], dirs)
    assert (second.config.optimizer["lr"], second.config.seed) == (0.3, 7)
    own(tmp_path / "b", "table2/resnet50_neumann", "seed: 1\n")
    with pytest.raises(UserError, match="experiment=table2/resnet50_neumann cannot mean both"):
        make_spec([], [str(tmp_path / "b")])


@pytest.mark.parametrize(
    ("word", "part"),
    [
        (
            "experiment=table2/resnet50_neuman",
            "there is no experiment 'table2/resnet50_neuman': did you mean 'table2/res",
        ),
        (
            "experiment=table2/resnet50_neumann",
            "error: data=imagenet needs data.root: add data.root=... to the command",
        ),
    ],
)
def test_a_wrong_choice_is_one_sentence(word: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", word]) == 2
    err = capsys.readouterr().err
    assert part in err
    assert len(err.strip().splitlines()) == 1


def test_help_lists_the_experiments_by_their_folders(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^  experiment  figure1/: adam_eps_0_01, adam_eps_1, neumann, rmsprop$", text, re.MULTILINE)
    assert re.search(r"^ +table4/: baseline, neumann, no_regularizers$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("seed: 1\n", "does not open with"),
        ("# X: neumann train\n# Guessed: seed=1\n", "is none of"),
        ("# X: neumann train\n# Printed: about 3\n", "is not KEY=VALUE"),
    ],
)
def test_a_header_in_another_form_is_refused(tmp_path: Path, text: str, why: str) -> None:
    own(tmp_path, "mine", text)
    with pytest.raises(ValueError, match=why):
        read_experiment(tmp_path, "mine")


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like ImageNet's: two classes of JPEGs, larger than any crop, train/ and val/."""
    root = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for split, count in (("train", 9), ("val", 1)):
        for name in ("n01440764", "n01443537"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((350, 330)).save(root / split / name / f"{name}_{i}.JPEG")
    return root


@pytest.fixture(scope="module")
def shared_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One results folder: rows that differ in nothing but what is cut down here are one run."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[] if name == "table2/inception_v3_neumann" else pytest.mark.long
        )  # half a minute each
        for name in NAMES
        if name not in SAME
    ],
)
def test_an_experiment_trains_at_full_image_size(
    name: str, jpegs: Path, shared_runs: Path, specs: dict[str, RunSpec], capsys: pytest.CaptureFixture[str]
) -> None:
    """The batch alone is cut down; the rate follows it, and the time scales follow the run, so that every phase is met."""
    cut = ["batch.size=4", "batch.norm_size=2", "batch.max_per_device=2", "timing=relative", "trainer.max_epochs=1"]
    words = [f"experiment={name}", f"data.root={jpegs}", "data.workers=0", *cut, "logger=none", f"output={shared_runs}"]
    spec = make_spec(words)
    assert spec.facts.image_size == specs[name].facts.image_size
    assert spec.config.derived.accumulation == 2
    assert spec.config.derived.rate_factor == 4 / specs[name].config.recipe.lr_base_size
    assert main(["train", *words]) == 0
    assert "finished" in capsys.readouterr().out
