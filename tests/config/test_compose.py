"""Wrong input gets one sentence that names what is wrong and the nearest valid choice; nothing misspelt composes."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from neumann.config import make_spec, making_specs, unread_scales
from neumann.config.compose import sentences
from neumann.errors import UserError
from neumann.search.grid import expand
from neumann.training.instantiate import build_schedule

CONF = Path(__file__).resolve().parents[2] / "conf"


YAMLS = {str(path.relative_to(CONF)): path for path in sorted(CONF.rglob("*.yaml"))}


def command_of(path: Path) -> str | None:
    """Return the command after the sentence that a YAML opens with, None where it opens with anything else."""
    first = next(line for line in path.read_text().splitlines() if "@package" not in line)
    told = re.fullmatch(r"# \S.+: neumann train (.+)", first)
    return told[1] if told else None


@pytest.mark.parametrize("path", YAMLS.values(), ids=YAMLS.keys())
def test_every_yaml_opens_with_a_sentence_and_its_command(path: Path) -> None:
    assert command_of(path)


@pytest.mark.medium
def test_the_command_of_every_yaml_uses_it() -> None:
    jobs: dict[str, list[str]] = {}
    for name, path in YAMLS.items():
        words = (command_of(path) or "").split()
        if path.parent.name == "sweeps":
            assert f"+sweeps={path.stem}" in words
            continue
        jobs[name] = expand(words[1:])[0] if words[0] == "-m" else words
    assert len(jobs) > 30
    with making_specs() as make:
        for name, words in jobs.items():
            group, slash, option = name.removesuffix(".yaml").partition("/")
            if root := [word.removeprefix("data.root=") for word in words if word.startswith("data.root=/")]:
                assert f"{group}={option}" in words
                with pytest.raises(UserError, match=rf"^data\.root '{root[0]}' does not exist"):  # the reader's own
                    make([words])
                continue
            (spec,) = make([words])
            assert not slash or spec.choices[group] == option


@pytest.mark.medium
@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["optimizer=nuemann"], ["no optimizer 'nuemann'", "did you mean 'neumann'?"]),
        (["optimizer.alhpa=0"], ["optimizer=neumann has no setting 'alhpa'", "did you mean 'alpha'?"]),
        (
            ["optimizer=sgd", "optimizer.alpha=0"],
            ["optimizer=sgd has no setting 'alpha'", "lr, momentum, weight_decay"],
        ),
        (["optimizer=sgd", "+optimizer.alpha=0"], ["optimizer=sgd has no setting 'alpha'"]),
        (["+optimizer.alhpa=0"], ["optimizer=neumann has no setting 'alhpa'", "did you mean 'alpha'?"]),
        (["optimzer=sgd"], ["no setting or group 'optimzer'", "did you mean 'optimizer'?"]),
        (["trainer.max_epoch=3"], ["no setting 'max_epoch'", "did you mean 'max_epochs'?"]),
        (["schedule=synchronus"], ["no schedule 'synchronus'", "did you mean 'synchronous'?"]),
        (["optimizer=timm"], ["optimizer=timm needs optimizer.name"]),
        (["data=image_folder"], ["data=image_folder needs data.root"]),
        (["seed=0,1"], ["names several values"]),
        (["optimizer=[1"], ["cannot read"]),
        (["nonsense"], ["cannot read 'nonsense'"]),
        (["~data"], ["leaves data without a choice", "digits"]),
        (["~seed"], ["cannot be deleted"]),
        (["hydra.run.dir=x"], ["hydra's own settings have no effect"]),
        (["derived.total_steps=3"], ["cannot be set"]),
        (["optimizer.lr.x=3"], ["'optimizer.lr' is a single value"]),
        (["optimizer.lr=fast"], ["optimizer.lr=fast is not a number"]),
        (["optimizer.lr=true"], ["optimizer.lr=true is not a number"]),
        (["optimizer.lr=nan"], ["optimizer.lr=nan is not a finite number"]),
        (["trainer.max_epochs=many"], ["trainer.max_epochs", "many"]),
        (["trainer.max_epochs=0"], ["trainer.max_epochs", "out of range"]),
        (["trainer.max_epochs=-1"], ["trainer.max_epochs", "out of range"]),
        (["trainer.check_val_every_n_epoch=0"], ["trainer.check_val_every_n_epoch", "out of range"]),
        (["trainer.precision=b16"], ["trainer.precision=b16 is not a choice", "bf16-mixed"]),
        (["batch.size=33", "trainer.devices=2"], ["batch.size=33", "2 devices", "32 or 34"]),
        (["batch.size=3", "trainer.devices=2", "trainer.num_nodes=2"], ["batch.size=3", "4 devices", "choose 4"]),
        (["trainer.devices=0"], ["trainer.devices=0", "at least 1"]),
        (["batch.size=0"], ["batch.size=0", "choose from 1 to 1197"]),
        (["batch.size=5000"], ["batch.size=5000", "choose from 1 to 1197"]),
        (["recipe.label_smoothing=1"], ["recipe.label_smoothing=1", "at least 0 and below 1"]),
        (["recipe.weight_average=1"], ["recipe.weight_average=1", "at least 0 and below 1, or null"]),
        (["launch.parallel=0"], ["launch.parallel=0 is out of range: it must be at least 1 and below 32768, or null"]),
        (
            ["schedule=synchronous", "schedule.factor=small"],
            ["schedule.factor=small is not a number: its file has schedule.factor=0.3"],
        ),
        (["recipe.weight_decay_filter=norm"], ["recipe.weight_decay_filter=norm is not a choice"]),
        (["checkpoint.keep=all"], ["checkpoint.keep=all is not a choice"]),
        (["logger.mode=on"], ["logger.mode=on is not a choice", "'online'"]),
        (["seed=-1"], ["seed=-1 is out of range"]),
        (["seed=one"], ["seed", "one"]),
        (["study=a/b"], ["study='a/b'", "folder"]),
        (["timing.burn_in=-2"], ["timing.burn_in=-2", "out of range"]),
        (["timing.ramp=inf"], ["timing.ramp=inf", "out of range"]),
        (["batch=3"], ["'batch' is a section: set batch.size"]),
        (["output="], ["output is empty"]),
        (
            ["optimizer=torch", "optimizer.name=SGD", "+optimizer.kwargs.nesterov=no"],
            ["nesterov=no is a text here: write false"],
        ),
        (["+model.kwargs.pretrained=Off"], ["model.kwargs.pretrained=Off is a text here: write false"]),
        (["+model.kwargs.a=[{b:None}]"], ["model.kwargs.a.b=None is a text here: write null"]),
        (["schedule._target_=null"], ["schedule has no _target_"]),
        (["data.augmentation=crop_flip"], ["a mirrored digit is not a digit: use crop"]),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_wrong_input_gets_one_sentence(overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        make_spec(overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_free_settings_belong_under_kwargs() -> None:
    spec = make_spec(
        ["optimizer=torch", "optimizer.name=Adagrad", "+optimizer.kwargs.eps=1e-6", "+model.kwargs.width=8"]
    )
    assert spec.config.optimizer["kwargs"] == {"eps": 1e-6}
    assert spec.config.model.kwargs == {"width": 8}


def own(folder: Path, group: str, name: str, text: str) -> list[str]:
    (folder / group).mkdir(parents=True, exist_ok=True)
    (folder / group / f"{name}.yaml").write_text(text)
    return [str(folder)]


def test_an_own_optimizer_costs_one_yaml_and_is_as_strict(tmp_path: Path) -> None:
    dirs = own(tmp_path / "conf", "optimizer", "mine", "_target_: torch.optim.Adagrad\nlr: 0.05\neps: 1e-9\n")
    spec = make_spec(["optimizer=mine", "optimizer.lr=0.2"], dirs)
    assert spec.config.optimizer == {"_target_": "torch.optim.Adagrad", "lr": 0.2, "eps": 1e-9}
    with pytest.raises(UserError, match=r"no setting 'ep': did you mean 'eps'\?"):
        make_spec(["optimizer=mine", "optimizer.ep=1"], dirs)
    with pytest.raises(UserError, match=r"no optimizer 'mien': did you mean 'mine'\?"):
        make_spec(["optimizer=mien"], dirs)
    with pytest.raises(UserError, match="no such folder"):
        make_spec([], [str(tmp_path / "nowhere")])


@pytest.mark.medium
def test_a_typing_error_inside_an_experiment_file_is_refused(tmp_path: Path) -> None:
    good = "# @package _global_\ndefaults:\n  - override /optimizer: sgd\noptimizer:\n  lr: 0.3\n"
    dirs = own(tmp_path / "conf", "experiment", "good", good)
    own(tmp_path / "conf", "experiment", "bad", good.replace("lr:", "lrr:"))
    own(tmp_path / "conf", "experiment", "stray", good + "batchsize: 3\n")
    assert make_spec(["+experiment=good"], dirs).config.optimizer["lr"] == 0.3
    with pytest.raises(UserError, match="optimizer=sgd has no setting 'lrr'"):
        make_spec(["+experiment=bad"], dirs)
    with pytest.raises(UserError, match="no setting or group 'batchsize'"):
        make_spec(["+experiment=stray"], dirs)


@pytest.mark.medium
def test_epochs_become_steps_by_timing() -> None:
    """37 steps an epoch: 1,197 digits in batches of 32."""
    paper = make_spec(["schedule=synchronous", "timing=paper", "trainer.max_epochs=250"]).config
    assert paper.derived.steps_per_epoch == 37
    assert paper.derived.total_steps == 250 * 37
    assert (paper.optimizer["burn_in_steps"], paper.optimizer["reset_period"]) == (5 * 37, 10 * 37)
    assert (paper.schedule["ramp_steps"], paper.schedule["every_steps"]) == (5 * 37, 40 * 37)
    relative = make_spec(["schedule=synchronous", "timing=relative", "trainer.max_epochs=250"]).config
    assert relative.optimizer == paper.optimizer
    assert relative.schedule == paper.schedule
    short = make_spec(["schedule=synchronous", "timing=relative", "trainer.max_epochs=50"]).config
    assert (short.optimizer["burn_in_steps"], short.optimizer["reset_period"]) == (37, 74)
    assert short.schedule["every_steps"] == 8 * 37
    assert make_spec(["timing=paper", "timing.burn_in=0"]).config.optimizer["burn_in_steps"] == 0
    assert make_spec(["schedule=exponential", "timing=paper"]).config.schedule["every_steps"] == 74
    assert make_spec(["schedule=cosine", "trainer.max_epochs=3"]).config.schedule["total_steps"] == 111


@pytest.mark.medium
def test_neumanns_average_and_momentum_are_timed_in_epochs_on_request() -> None:
    """A quarter of the batch makes four times as many steps, in which as much is forgotten."""

    def optimizer(*overrides: str) -> dict[str, Any]:
        return make_spec(["batch.size=64", *overrides]).config.optimizer

    plain = optimizer()
    assert (plain["gamma"], plain["momentum_unit"]) == (0.99, 1)
    assert make_spec(["timing.average=null", "timing.momentum_unit=null"]).signature == make_spec([]).signature
    timed = ("timing.average=0.5", "timing.momentum_unit=0.1")
    large = optimizer(*timed)
    assert large["gamma"] == pytest.approx(math.exp(-1 / 9))  # 18 steps an epoch
    assert large["momentum_unit"] == pytest.approx(1.8)
    small = make_spec(["batch.size=16", *timed]).config.optimizer  # 74 steps
    assert small["gamma"] ** 37 == pytest.approx(math.exp(-1))
    assert small["momentum_unit"] == pytest.approx(7.4)
    assert optimizer("timing.average=0.5", "optimizer.gamma=0.9")["gamma"] == 0.9
    shared = make_spec(["timing.average=0.5", "recipe.weight_average='${decay:${timing.average},0.99}'"]).config
    assert shared.recipe.weight_average == shared.optimizer["gamma"]
    for wrong in ("timing.average=0", "timing.momentum_unit=-1", "optimizer.gamma='${decay:0,0.99}'"):
        with pytest.raises(UserError, match="above 0"):
            make_spec([wrong])


@pytest.mark.medium
def test_an_ablation_is_the_configuration_it_names_and_fails_where_there_is_no_such_term() -> None:
    def optimizer(*overrides: str) -> dict[str, object]:
        return make_spec(overrides).config.optimizer

    assert optimizer("ablation=no_alpha") == optimizer("optimizer.alpha=0")
    assert optimizer("ablation=no_beta") == optimizer("optimizer.beta=0")
    assert optimizer("ablation=no_regularizers") == optimizer("optimizer.alpha=0", "optimizer.beta=0")
    assert optimizer("ablation=literal") == optimizer("optimizer=neumann_literal")
    assert optimizer("ablation=no_beta", "optimizer.beta=3")["beta"] == 3  # the command line has the last word
    assert make_spec(["ablation=no_beta"]).signature == make_spec(["optimizer.beta=0"]).signature
    assert make_spec(["ablation=no_beta"]).name == "digits-small_cnn-neumann-no_beta-s0"
    for name in ("no_alpha", "no_beta", "no_regularizers", "literal"):
        with pytest.raises(UserError, match=f"ablation={name} does not fit: optimizer=nesterov has no setting"):
            make_spec([f"ablation={name}", "optimizer=nesterov"])
    with pytest.raises(UserError, match=r"no ablation 'no_gamma': choose from literal, no_alpha"):
        make_spec(["ablation=no_gamma"])
    assert make_spec(["ablation=null"]).signature == make_spec([]).signature
    assert make_spec(["+ablation=no_alpha"]).signature == make_spec(["ablation=no_alpha"]).signature
    assert make_spec(["model.kwargs={width:8}"]).signature == make_spec(["+model.kwargs.width=8"]).signature


@pytest.mark.medium
def test_the_literal_reading_differs_in_count_and_guard_alone() -> None:
    neumann, literal = (make_spec([f"optimizer={name}"]).config.optimizer for name in ("neumann", "neumann_literal"))
    assert {k: v for k, v in literal.items() if v != neumann[k]} == {"beta_count": "scalars", "min_distance": 0.0}


@pytest.mark.medium
def test_the_default_schedule_suits_runs_of_any_length_and_the_papers_is_named_where_it_is_reproduced() -> None:
    for epochs in (1, 3, 20):
        spec = make_spec([f"trainer.max_epochs={epochs}"])
        factor = build_schedule(spec.config.schedule)
        total = spec.config.derived.total_steps
        factors = [factor(step) for step in range(total)]
        assert max(factors) == 1
        assert factors.index(1) <= max(1, 0.03 * total)  # a short ramp
        assert factors[-1] < 0.01  # it comes down to zero, whatever the length
        assert sum(factors) / total == pytest.approx(0.5, abs=0.05)
    for sweep in CONF.glob("sweeps/*.yaml"):
        assert "schedule" in OmegaConf.load(sweep), sweep


OWN_FILES = {  # of a user's folder, with a mistake each: what is said of it
    "optimizer/unclosed": ("lr: ${trainer", "unclosed.yaml cannot be read: an interpolation in it, written ${...}"),
    "optimizer/base": ("defaults: [sgdd]", "optimizer/base.yaml: there is no optimizer 'sgdd': did you mean 'sgd'?"),
    "optimizer/elsewhere": ("# @package foo\nlr: 0.1", "its file has a '# @package' line"),
    "optimizer/other": ("defaults: [override /data: x]", "'override /data: OPTION' stands in files of experiment/"),
    "ablation/bare": ("alpha: 0", "ablation=bare: its file needs the first line '# @package optimizer'"),
    "experiment/bare": ("seed: 1", "experiment=bare: its file needs the first line '# @package _global_'"),
    "experiment/misspelt": ("# @package _global_\ndefaults: [override /optimizer: sgdd]", "did you mean 'sgd'?"),
    "experiment/inner": ("# @package _global_\ndefaults: [optimizer: sgd]", "write 'override /optimizer: sgd'"),
    "experiment/again": ("# @package _global_\ndefaults: [/optimizer: sgd]", "changes by 'override /optimizer: sgd'"),
    "experiment/group": ("# @package _global_\ndefaults: [override /nope: sgd]", "there is no group 'nope'"),
    "experiment/defaults": ("# @package _global_\ndefaults: 3", "defaults must be a list"),
    "timing/word": ("burn_in: ${share:abc}", "timing.burn_in: ${share:abc} is not a share of a run"),
    "timing/nothing": ("burn_in: ${share:null}", "is not a share of a run"),
    "timing/empty": ("burn_in: ${steps:}", "timing.burn_in: ${steps:...} has too few or too many arguments"),
    "timing/away": ("burn_in: ${nope}", "timing.burn_in: ${nope} stands for a setting that is not there"),
    "timing/resolver": ("burn_in: ${step:3}", "timing.burn_in: ${step:...} is not known: did you mean 'steps'?"),
    "timing/itself": ("burn_in: ${timing.burn_in}", "timing.burn_in: the value stands for itself"),
    "timing/variable": ("burn_in: ${oc.env:NOPE}", "timing.burn_in: the environment variable NOPE is not set"),
    "data/mine": ("kind: digits\naugmentation: none\nimgsize: 3", "data.kind=digits has no setting 'imgsize'"),
}


@pytest.mark.medium
def test_a_mistake_in_a_file_of_ones_own_is_told_in_the_words_of_that_file(tmp_path: Path) -> None:
    for name, (text, _) in OWN_FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(f"{text}\n")
    with making_specs([str(tmp_path)]) as make:
        for name, (_, told) in OWN_FILES.items():
            with pytest.raises(UserError) as caught:
                make([[name.replace("/", "=")]])
            assert told in str(caught.value), name
            assert "\n" not in str(caught.value)
            assert not re.search("full_key|object_type|AnyNode|DictConfig|NoneType|search path", str(caught.value))


@pytest.mark.medium
@pytest.mark.parametrize(
    ("words", "file", "line", "sentence"),
    [
        (["optimizer=mine"], "optimizer/mine.yaml", 3, "optimizer.lr=x is not a number"),
        (["model=wide"], "model/wide.yaml", 4, "model.kwargs.width=no is a text here: write false"),
        (["timing=ours"], "timing/ours.yaml", 2, "timing.burn_in"),
        (["experiment=all"], "experiment/all.yaml", 4, "batch.size=0 does not fit the 1197"),
        (["experiment=all", "batch.size=32"], "optimizer/mine.yaml", 3, "optimizer.lr=x is not a number"),
        (["optimizer=child"], "optimizer/mine.yaml", 3, "optimizer.lr=x is not a number"),
        (["data=odd"], "data/odd.yaml", 3, "data.kind=digits has no setting 'imgsize'"),
        (["checkpoint=kept"], "checkpoint/kept.yaml", 1, "checkpoint.keep=most is not a choice"),
    ],
)
def test_a_wrong_value_in_a_file_of_ones_own_is_told_with_its_place(
    words: list[str], file: str, line: int, sentence: str, tmp_path: Path
) -> None:
    texts = {
        "optimizer/mine": "_target_: torch.optim.SGD\n# the rate\nlr: x\nmomentum: 0.9\n",
        "optimizer/child": "defaults: [mine]\nmomentum: 0.5\n",
        "model/wide": "name: small_cnn\nauxiliary_weight: null\nkwargs:\n  width: no\n",
        "timing/ours": "# ours\nburn_in: ${share:abc}\n",
        "experiment/all": "# @package _global_\ndefaults: [override /optimizer: mine]\nbatch:\n  size: 0\n",
        "data/odd": "kind: digits\naugmentation: none\nimgsize: 3\n",
        "checkpoint/kept": "keep: most\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        make_spec(words, [str(tmp_path)])
    assert str(caught.value).startswith(f"{tmp_path / file}, line {line}: ")
    assert sentence in str(caught.value)


def test_a_value_of_the_command_is_not_told_as_a_files(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer/mine.yaml").write_text("_target_: torch.optim.SGD\nlr: 0.1\n")
    with pytest.raises(UserError, match=r"^optimizer\.lr=x is not a number"):
        make_spec(["optimizer=mine", "optimizer.lr=x"], [str(tmp_path)])


def test_an_error_that_begins_with_empty_lines_is_told_all_the_same() -> None:
    with pytest.raises(UserError, match=r"^it does not compose: no such key in it$"), sentences("it does not compose"):
        raise HydraException("\n\n  no such key\n  in it\nsome code\n")


@pytest.mark.parametrize(
    ("below", "root", "beginning"),
    [
        ("cats", ".", "cats-"),
        ("cats/train", "..", "cats-"),
        ("--cats", "./", "cats-"),
        (".cats", ".", "cats-"),
        ("-", ".", "image_folder-"),
        ("a\nb", ".", "a"),
        (".", "/", "image_folder-"),
    ],
)
def test_every_root_gives_a_safe_name(
    below: str, root: str, beginning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec()
    (tmp_path / below).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / below)
    config = replace(spec.config, data={**spec.config.data, "root": root})
    named = replace(
        spec, config=config, facts=replace(spec.facts, kind="image_folder"), choices={"data": "image_folder"}
    )
    assert named.name.startswith(beginning)
    assert named.name.isprintable()


@pytest.mark.parametrize("key", ["name", "study"])
def test_a_name_that_a_command_would_take_for_an_option_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=f"{key}=-x begins with a dash, so other commands would take it for an option"):
        make_spec([f"{key}=-x"])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "model={name: x}",
            "'model={name: x}' is a mapping, and model is one choice: choose a file, such as model=cifar_resnet18, and "
            "set each setting by its name, such as model.name=x",
        ),
        ("optimizer={}", "and set each setting by its name, such as optimizer.KEY=VALUE"),
        ("+experiment={seed: 1}", "'experiment={seed: 1}' is a mapping, and experiment is one choice"),
        ("checkpoint=true", "there is no checkpoint 'true': "),
        ("checkpoint=False", "there is no checkpoint 'False': "),
        ("model=1e3", "there is no model '1e3': "),
        ("schedule=1.50", "there is no schedule '1.50': "),
        ("launch=[null,true]", "write launch=null,true with -m"),
    ],
)
def test_a_choice_that_is_no_word_is_refused_as_it_was_written(override: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        make_spec([override])
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("jobs", "unread"),
    [
        ([["schedule=constant", "timing.ramp=3"]], ["timing.ramp=3"]),
        ([["schedule=cosine", "timing.ramp=3"]], []),
        ([["optimizer=sgd", "timing.burn_in=0.1"], ["optimizer=sgd", "timing.burn_in=0.2"]], ["timing.burn_in=0.1", "timing.burn_in=0.2"]),
        ([["optimizer=sgd", "timing.burn_in=0.1"], ["optimizer=neumann", "timing.burn_in=0.1"]], []),
        ([["optimizer=neumann", "timing.drop_every=2", "timing.burn_in=0.1"]], ["timing.drop_every=2"]),
        ([["schedule=synchronous", "timing.drop_every=2", "timing=paper"]], []),
    ],
)  # fmt: skip
def test_time_scales_that_nothing_reads_are_found(jobs: list[list[str]], unread: list[str]) -> None:
    assert unread_scales(jobs) == unread
