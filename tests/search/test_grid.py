"""`-m` expands overrides as Hydra does, and specifications made together equal those made one by one."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from neumann.config import LocalLaunchConfig, RunSpec, make_spec, make_specs
from neumann.config.signature import sign
from neumann.errors import UserError
from neumann.search.grid import expand, read_sweep, varying
from neumann.search.space import Search

SWEEPS = sorted((Path(__file__).resolve().parents[2] / "sweeps").glob("*.yaml"))
assert SWEEPS, "a test of every file needs files"


@pytest.mark.parametrize(
    ("words", "jobs"),
    [
        ([], [[]]),
        (["seed=3"], [["seed=3"]]),
        (["optimizer=neumann,sgd", "seed=0,1"], [[f"optimizer={o}", f"seed={s}"] for o in ("neumann", "sgd") for s in (0, 1)]),
        (["seed=range(1,4)"], [["seed=1"], ["seed=2"], ["seed=3"]]),
        (["optimizer.lr=range(0.1,0.3,0.1)"], [["optimizer.lr=0.1"], ["optimizer.lr=0.2"]]),
        (["seed=choice(2,1)"], [["seed=2"], ["seed=1"]]),
        (["ablation=glob(no_*)"], [["ablation=no_alpha"], ["ablation=no_beta"], ["ablation=no_regularizers"]]),
        (["optimizer=glob(*,exclude=[a*,l*,n*,r*,t*,sgd_*])"], [["optimizer=sgd"]]),
        (["name='a,b'"], [["name='a,b'"]]),
        (["optimizer.momentum=[0.5,0.9],0.9"], [["optimizer.momentum=[0.5,0.9]"], ["optimizer.momentum=0.9"]]),
        (["seed=0,1", "seed=5"], [["seed=5"]]),
        (["optimizer.lr=0.1,1e-1,0.10,0.1"], [["optimizer.lr=0.1"]]),
        (["optimizer.lr=1,1.0,choice"], [["optimizer.lr=1"], ["optimizer.lr=choice"]]),
        (["seed=10,010"], [["seed=10"], ["seed=010"]]),
        (["+model.kwargs.a=x_1_0,/a/1_0,'1_0'"], [[f"+model.kwargs.a={v}"] for v in ("x_1_0", "/a/1_0", "'1_0'")]),
        (["optimizer.lr=1e30,0.10"], [["optimizer.lr=1e+30"], ["optimizer.lr=0.1"]]),
        (["name=1.1,1.10"], [["name=1.1"], ["name=1.10"]]),
        (["study=2024_01", "seed=0,1"], [["study=2024_01", f"seed={s}"] for s in (0, 1)]),
        (["optimizer.nesterov=true,1,True"], [["optimizer.nesterov=True"], ["optimizer.nesterov=1"]]),
        (["+model.kwargs.width=8,16"], [["+model.kwargs.width=8"], ["+model.kwargs.width=16"]]),
    ],
    ids=lambda x: " ".join(map(str, x)) or "nothing",
)  # fmt: skip
def test_the_syntax_is_hydras(words: list[str], jobs: list[list[str]]) -> None:
    assert expand(words) == jobs


def test_shuffle_keeps_what_it_shuffles() -> None:
    assert sorted(expand(["seed=shuffle(range(0,9))"])) == [[f"seed={i}"] for i in range(9)]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["+sweeps=rate"], ["there is no sweep 'rate': did you mean 'rates'?"]),
        (["+sweeps=rates,ablations"], ["one command runs one sweep"]),
        (["+sweeps=rates", "+sweeps=ablations"], ["one command runs one sweep"]),
        (["~sweeps"], ["there is no sweep"]),
        (["seed=interval(0,1)"], ["'seed=interval(0,1)' is a continuous range"]),
        (["optimizer=glob(zz*)"], ["holds no run"]),
        (["seed=1_0,2"], ["'seed=1_0,2': write 10 for the number"]),
        (["seed=choice(1_0,2)"], ["write 10 for the number"]),
        (["seed=range(0,1_0)"], ["write 10 for the number"]),
        (["seed=range(0,3,0)"], ["'seed=range(0,3,0)': a range with the step 0 has no end"]),
        (["optimzer=glob(*)"], ["did you mean 'optimizer'?"]),
        (["launch.parallel=1,2"], ["all runs of one command are launched alike"]),
        (["launch=local,other"], ["all runs of one command are launched alike"]),
        (["hydra/launcher=joblib"], ["set launch.parallel=N"]),
        (["hydra/sweeper=ax"], ["there is no hydra/sweeper 'ax': choose from basic, optuna"]),
        (["hydra.sweeper.params.seed='0,1'"], ["the setting itself is given, as KEY=A,B"]),
        (["hydra.sweeper.n_trials=3"], ["a setting of the Optuna sweeper: add hydra/sweeper=optuna"]),
        (["hydra/sweeper=optuna", "optimizer.lr=interval(0.1,1)"], ["cannot be listed beforehand"]),
        (["hydra.sweep.dir=x"], ["runs go to output=FOLDER"]),
        (["nonsense"], ["cannot read 'nonsense'"]),
    ],
    ids=lambda x: " ".join(x),
)
def test_wrong_input_gets_one_sentence(words: list[str], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        expand(words)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_m_a_sweep_says_what_is_missing() -> None:
    for words in (["+sweeps=rates"], ["sweeps=rates"]):
        with pytest.raises(UserError, match="is a sweep, which is several runs: add -m to the command"):
            make_spec(words)
    for words in (["hydra/sweeper=optuna"], ["hydra.sweeper.n_trials=3"], ["hydra/sweeper/sampler=tpe"]):
        with pytest.raises(UserError, match="is about a sweep, which is several runs: add -m to the command"):
            make_spec(words)
    with pytest.raises(UserError, match=r"names several values.* add -m"):
        make_spec(["seed=0,1"])


@pytest.mark.medium
@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_every_sweep_of_ours_opens_with_its_command_and_composes(path: Path) -> None:
    sentence = path.read_text().splitlines()[1]
    assert sentence.startswith("# ")
    assert sentence.endswith(f"neumann train -m +sweeps={path.stem}")
    asked = read_sweep([f"+sweeps={path.stem}"])
    jobs = asked.corners() if isinstance(asked, Search) else asked
    assert len(jobs) > 1
    specs = make_specs(jobs)
    assert len({spec.signature for spec in specs}) == len(jobs)
    assert not any("sweeps" in word for job in jobs for word in job if not word.startswith("study="))
    assert not any("sweeps" in spec.choices for spec in specs)


def own_sweep(folder: Path, name: str, text: str) -> list[str]:
    (folder / "sweeps").mkdir(parents=True, exist_ok=True)
    (folder / "sweeps" / f"{name}.yaml").write_text("# @package _global_\n" + text)
    return [str(folder)]


@pytest.mark.medium
def test_an_own_sweep_file_brings_fixed_settings_and_the_command_line_wins(tmp_path: Path) -> None:
    text = (
        "hydra: {sweeper: {params: {optimizer: 'sgd,adam', seed: 'range(0,3)'}}}\n"
        "trainer: {max_epochs: 2}\nmodel: {kwargs: {width: 8}}\nstudy: 'it''s: [odd]'\n"
        "name: ${study}-${seed}\nlogger: {tags: [a, '3', \"true\"]}\nbatch: {size: 64}\n"
    )
    dirs = own_sweep(tmp_path, "mine", text)
    jobs = expand(["+sweeps=mine", "seed=7", "batch.size=32"], dirs)
    assert len(jobs) == 2
    assert not any("sweeps" in word for job in jobs for word in job)
    sgd, adam = (spec.config for spec in make_specs(jobs, dirs))
    assert (sgd.optimizer["_target_"], adam.optimizer["_target_"]) == ("torch.optim.SGD", "torch.optim.Adam")
    for config in (sgd, adam):
        assert (config.seed, config.batch.size, config.trainer.max_epochs) == (7, 32, 2.0)
        assert config.model.kwargs == {"width": 8}
        assert config.study == "it's: [odd]"
        assert config.name == "it's: [odd]-7"
        assert config.logger.tags == ["a", "3", "true"]
    alone = make_spec(["optimizer=sgd", "seed=7", "trainer.max_epochs=2", "model.kwargs.width=8"])
    assert alone.signature == make_specs(jobs, dirs)[0].signature


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("trainer: {max_epochs: 2}\n", "hydra.sweeper.params"),
        ("hydra: {launcher: {n_jobs: 2}, sweeper: {params: {seed: '0,1'}}}\n", "nothing else of Hydra"),
        ("hydra: {sweeper: {n_trials: 3, params: {seed: '0,1'}}}\n", "add hydra/sweeper=optuna"),
        ("defaults: [{override /optimizer: sgd}]\nhydra: {sweeper: {params: {seed: '0,1'}}}\n", "not in a defaults list"),
        ("hydra: {sweeper: {params: {seed: '0,1', sweeps: rates}}}\n", "cannot name another"),
        ("hydra: {sweeper: {params: {seed: '0,1'}}}\nseed: 5\n", "both set seed"),
        ("hydra: {sweeper: {params: {optimizer: 'sgd,adam'}}}\noptimizer: adam\n", "both set optimizer"),
        ("hydra: {sweeper: {params: {seed: '0,1'}}}\nbatch: {size: 8}\nbatch.size: 16\n", "both set batch.size"),
        ("hydra: {sweeper: {params: {seed: '0,1', +seed: 4}}}\n", "both set seed"),
        ("hydra: {sweeper: {params: {optimizer: {lr: [0.1, 0.2]}}}}\n", "write 'optimizer.lr: A,B'"),
        ("hydra: {sweeper: {params: {seed: '0,1}}}\n", "cannot be read"),
        ("- a\n", "holds a list"),
    ],
)  # fmt: skip
def test_a_sweep_file_that_says_something_else_is_refused(text: str, part: str, tmp_path: Path) -> None:
    dirs = own_sweep(tmp_path, "mine", text)
    with pytest.raises(UserError, match=part) as caught:
        expand(["+sweeps=mine"], dirs)
    assert "\n" not in str(caught.value)


def test_a_typing_error_in_a_sweep_file_is_refused(tmp_path: Path) -> None:
    dirs = own_sweep(tmp_path, "mine", "hydra: {sweeper: {params: {seed: '0,1'}}}\ntrainer: {max_epoch: 2}\n")
    with pytest.raises(UserError, match="did you mean 'max_epochs'"):
        make_specs(expand(["+sweeps=mine"], dirs), dirs)


def test_what_varies_tells_the_runs_apart() -> None:
    jobs = expand(["optimizer=neumann,sgd", "study=x", "seed=0,1"])
    assert varying(jobs)[2] == ["optimizer=sgd", "seed=0"]
    assert varying([["seed=0"]]) == [[]]


def own(folder: Path, group: str, name: str, text: str) -> None:
    (folder / group).mkdir(parents=True, exist_ok=True)
    (folder / group / f"{name}.yaml").write_text(text)


def same(a: RunSpec, b: RunSpec) -> bool:
    return a == b and a.as_dict() == b.as_dict() and repr(a.config) == repr(b.config) and a.folder == b.folder


@pytest.mark.medium
def test_many_specs_are_those_of_each_alone(tmp_path: Path) -> None:
    own(tmp_path, "optimizer", "mine", "_target_: torch.optim.Adagrad\nlr: 0.05\nsub: {a: 1}\nkwargs: {}\n")
    own(tmp_path, "data", "odd", "kind: digits\nsplit_seed: ${seed}\naugmentation: none\n")
    own(tmp_path, "experiment", "good", "# @package _global_\ndefaults: [{override /optimizer: sgd}]\noptimizer: {lr: 0.3}\n")  # fmt: skip
    dirs = [str(tmp_path)]
    jobs = [
        *expand(["optimizer=neumann,sgd", "seed=1", "optimizer.lr=1,0.5"]),
        *expand(["ablation=null,literal", "optimizer.beta=3"]),
        *expand(["timing=paper,relative", "trainer.max_epochs=2.5", "batch.size=64"]),
        *expand(["+model.kwargs.width=8,16", "optimizer=torch", "optimizer.name=Adagrad", "optimizer.kwargs.eps=1e-6"]),
        ["batch.size=${seed}", "seed=64"],
        ["batch.size=${seed}", "seed=32"],
        ["timing.burn_in=${optimizer.lr}", "optimizer.lr=2"],
        ["data=odd", "seed=2"],
        ["data=odd", "seed=3"],
        ["optimizer=mine", "optimizer.sub.a=2"],
        ["optimizer=mine", "optimizer.sub={a: 5}"],
        ["+experiment=good"],
        ["+experiment=good", "optimizer.lr=4", "launch.parallel=3"],
        ["checkpoint=last", "name=x", "study=y", "output=z", "logger.tags=[a,b]"],
        [],
    ]
    together = make_specs(jobs, dirs)
    assert len(together) == len(jobs)
    for job, spec in zip(jobs, together, strict=True):
        assert same(spec, make_spec(job, dirs)), job
    backwards = make_specs(jobs[::-1], dirs)
    assert all(same(a, b) for a, b in zip(together, backwards[::-1], strict=True))


@pytest.mark.medium
def test_specs_share_nothing_that_can_be_changed() -> None:
    a, b = make_specs([["+model.kwargs.width=8"], ["+model.kwargs.width=8"]])
    a.config.model.kwargs["width"] = 9
    a.config.optimizer["lr"] = 7
    a.config.trainer.max_epochs = 1
    a.choices["optimizer"] = "x"
    assert same(b, make_spec(["+model.kwargs.width=8"]))


@pytest.mark.medium
def test_what_a_spec_keeps_of_itself_is_that_of_its_seed_and_logger() -> None:
    one, other = make_specs([["optimizer=neumann", "seed=3"], ["optimizer=neumann", "seed=4"]])
    assert same(other, make_spec(["optimizer=neumann", "seed=4"]))
    tagged = other.with_logger(replace(other.config.logger, job_type="tuning"))
    for spec in (one, other, tagged, tagged.at_seed(5)):
        assert spec.plain == spec.as_dict() == asdict(spec.config)
        assert spec.signed_json == json.loads(json.dumps(spec.signed()))
        assert spec.signature == sign(spec.signed())
    assert (one.config.seed, other.config.seed, tagged.at_seed(5).config.seed) == (3, 4, 5)
    assert tagged.signature == other.signature
    assert same(one.at_precision("16-mixed"), make_spec(["optimizer=neumann", "seed=3", "trainer.precision=16-mixed"]))
    assert other.config.logger.job_type != "tuning"


@pytest.mark.medium
def test_the_wrong_one_of_many_is_named() -> None:
    with pytest.raises(UserError, match=r"'alpha'.* \(in the run 'optimizer=sgd optimizer.alpha=0'\)"):
        make_specs(expand(["optimizer=neumann,sgd", "optimizer.alpha=0"]))
    with pytest.raises(UserError) as alone:
        make_specs([["optimizer=sgd", "optimizer.alpha=0"]])
    assert "in the run" not in str(alone.value)


def test_files_may_change_between_calls(tmp_path: Path) -> None:
    own(tmp_path, "optimizer", "mine", "_target_: torch.optim.Adagrad\nlr: 0.05\n")
    before = make_spec(["optimizer=mine"], [str(tmp_path)])
    own(tmp_path, "optimizer", "mine", "_target_: torch.optim.Adagrad\nlr: 0.06\n")
    after = make_spec(["optimizer=mine"], [str(tmp_path)])
    assert (before.config.optimizer["lr"], after.config.optimizer["lr"]) == (0.05, 0.06)
    assert before.signature != after.signature


def test_a_yaml_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    own(tmp_path, "optimizer", "mine", "_target_: {torch\n")
    with pytest.raises(UserError, match=r"mine.yaml, line 2 cannot be read") as caught:
        make_spec(["optimizer=mine"], [str(tmp_path)])
    assert "\n" not in str(caught.value)


@pytest.mark.medium
def test_a_further_run_costs_little() -> None:
    jobs = expand(["optimizer.lr=0.1,0.2", "seed=range(0,20)", "trainer.max_epochs=3", "+model.kwargs.width=8"])
    make_specs(jobs[:1])
    clock = time.process_time()
    make_specs(jobs[:1])
    one = time.process_time() - clock
    clock = time.process_time()
    make_specs(jobs)
    further = (time.process_time() - clock - one) / (len(jobs) - 1)
    assert further < 0.06  # about 0.015 s on an idle core; 0.47 s when each was composed for itself


@pytest.mark.medium
def test_the_launch_is_checked_and_unsigned() -> None:
    spec = make_spec(["launch.parallel=4", "launch.threads=2"])
    assert spec.config.launch == LocalLaunchConfig(parallel=4, threads=2)
    assert spec.signature == make_spec([]).signature
    assert make_spec([]).config.launch == LocalLaunchConfig()
    for word in ("launch.parallel=0", "launch.threads=-1", "launch.parallel=1.5", "launch.threads=many"):
        with pytest.raises(UserError, match=word.split("=")[0]):
            make_spec([word])


def test_a_specification_is_plain_data_to_any_process() -> None:
    import pickle

    spec = make_spec(["optimizer=neumann"])
    assert same(pickle.loads(pickle.dumps(spec)), spec)
    assert replace(spec) == spec
    assert OmegaConf.create(spec.as_dict()).seed == 0


def test_the_size_of_a_sweep_is_bounded_before_it_is_expanded() -> None:
    for words, sentence in (
        (["seed=range(0,1e9)"], "'seed=range(0,1e9)' has 1,000,000,000 values"),
        (
            ["seed=range(0,5000)", "optimizer.lr=1,2,3"],
            "the sweep has 15,000 runs, and one command trains at most 10,000",
        ),
        (["seed=range(0,3,0)"], "has no end"),
        (["hydra/sweeper=optuna", "optimizer.lr=range(0,1e9)"], "has 1,000,000,000 values"),
    ):
        with pytest.raises(UserError, match=re.escape(sentence)):
            read_sweep(words)
    assert len(expand(["seed=range(0,3)", "optimizer.lr=range(0.1,0.25,0.1)"])) == 6
    assert len(expand(["seed=range(3)", "optimizer.lr=0.1,0.2"])) == 6
