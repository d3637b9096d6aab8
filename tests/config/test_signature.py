"""The signature covers the whole resolved configuration and the data, less a list of what cannot change a result."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from neumann.config import (
    NOT_SIGNED,
    RESULTS_VERSION,
    RunConfig,
    compose,
    launch_settings,
    make_spec,
    schema,
    signature,
)
from neumann.config.signature import sign, signed_part


def flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def changed(config: dict[str, Any], dotted: str) -> dict[str, Any]:
    *path, last = dotted.split(".")
    top = {**config}
    node = top
    for key in path:
        node[key] = {**node[key]}
        node = node[key]
    node[last] = "something else"
    return top


def test_every_leaf_is_signed_but_for_the_list() -> None:
    run = make_spec(["data=digits"])
    config = run.as_dict()
    config["data"] |= {"root": "/a", "workers": 2}
    config["model"]["checkpoint"] = "/a/eval-weights.pt"  # that there is one is signed, not where it lies
    before = sign(signed_part(config, run.facts, {}))
    unsigned = set()
    for key, _ in flat(config):
        if sign(signed_part(changed(config, key), run.facts, {})) == before:
            unsigned.add(key)
    expected = {key for key, _ in flat(config) if any(key == n or key.startswith(f"{n}.") for n in NOT_SIGNED)}
    assert unsigned == expected
    assert {
        "output",
        "study",
        "name",
        "data.root",
        "data.workers",
        "logger.mode",
        "checkpoint.keep",
        "launch.parallel",
    } <= unsigned


@pytest.mark.medium
def test_data_and_version_are_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_spec([])
    config = run.as_dict()
    for facts in (replace(run.facts, fingerprint="content:0"), replace(run.facts, split_digest="0")):
        assert sign(signed_part(config, facts, {})) != run.signature
    monkeypatch.setattr(signature, "RESULTS_VERSION", RESULTS_VERSION + 1)
    assert make_spec([]).signature != run.signature


@pytest.mark.medium
def test_the_same_request_has_one_signature() -> None:
    one = make_spec(["optimizer=sgd", "optimizer.lr=1", "seed=3"])
    other = make_spec(
        ["seed=3", "optimizer.lr=1.0", "optimizer=sgd", "study=other", "name=x", "output=y", "logger=none"]
    )
    assert one.signature == other.signature
    assert len(one.signature) == 12
    assert one.folder.as_posix() == f"runs/default/digits-small_cnn-sgd-s3-{one.signature}"
    assert other.folder.as_posix() == f"y/other/x-{one.signature}"


@pytest.mark.medium
def test_a_changed_setting_changes_the_signature() -> None:
    assert make_spec(["optimizer=nesterov"]).signature != make_spec(["optimizer=sgd"]).signature
    assert make_spec(["batch.size=16"]).signature != make_spec([]).signature


def test_what_is_not_signed_is_this_and_no_more() -> None:
    """A new line leaves a setting out of every signature, so it is repeated here, to be judged once more: it may change no result."""
    assert set(NOT_SIGNED) == {
        *("output", "study", "name", "logger", "checkpoint", "launch", "terms"),
        *("data.root", "data.name", "data.download", "data.workers", "model.checkpoint"),
        *("batch.max_per_device", "batch.round"),
        *("trainer.test", "trainer.log_every_n_steps", "trainer.track_grad_norm", "trainer.track_update_norm"),
        *("derived.asked_batch_size", "derived.micro_batch", "derived.rate_factor"),
    }
    assert all(len(reason) > 10 for reason in NOT_SIGNED.values())


def test_no_name_in_the_lists_of_settings_is_stale() -> None:
    """A misspelt or renamed one would silently be signed, or never be checked."""
    files = {path.stem: OmegaConf.load(path) for path in (compose.CONF / "data").glob("*.yaml")}
    keys = {f"data.{key}" for file in files.values() for key in file}
    sections = RunConfig()
    for f in fields(sections):
        keys.add(f.name)
        value = getattr(sections, f.name)
        keys |= {f"{f.name}.{key}" for key in (asdict(value) if is_dataclass(value) else ())}
    keys |= {f"launch.{key}" for kind in launch_settings.LAUNCHES.values() for key in asdict(kind())}
    keys |= {"optimizer.kwargs"} & {f"optimizer.{key}" for key in OmegaConf.load(compose.CONF / "optimizer/torch.yaml")}
    stale = {
        *NOT_SIGNED,
        *signature.CAME_LATER,
        *(f"data.{name}" for name in signature.CAME_LATER_TO),
        *schema.OPEN_NODES,
        *schema.FILLED_IN,
        *filter(None, launch_settings.TAKEN.values()),
    } - keys
    assert not stale


def test_every_section_is_typed_or_chosen_or_filled_in() -> None:
    assert set(schema.CHOSEN_SECTIONS) == {"data", "optimizer", "schedule"}
    groups = {path.name for path in compose.CONF.iterdir() if path.is_dir()} - {"ablation", "experiment", "sweeps"}
    assert set(schema.TYPED_SECTIONS) | set(schema.CHOSEN_SECTIONS) == groups | {"batch", "recipe", "terms"}


@pytest.mark.medium
@pytest.mark.parametrize(
    ("file", "before", "after", "signed"),
    [
        ("optimizer/sgd.yaml", "momentum: 0.9", "momentum: 0.8", True),
        ("optimizer/sgd.yaml", "_target_: torch.optim.SGD", "_target_: torch.optim.Adam", True),
        ("model/small_cnn.yaml", "kwargs: {}", "kwargs: {width: 24}", True),
        ("trainer/default.yaml", "max_epochs: 20", "max_epochs: 21", True),
        ("data/digits.yaml", "split_seed: 0", "split_seed: 1", True),
        ("logger/wandb.yaml", "project: neumann", "project: other", False),
        ("launch/local.yaml", "threads: null", "threads: 2", False),
        ("optimizer/sgd.yaml", "\n", "\n# a remark\n", False),
    ],
)
def test_a_default_that_is_edited_changes_the_signature(
    file: str, before: str, after: str, signed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_spec(["optimizer=sgd"]).signature
    ours = compose.CONF
    for folder in ("same", "edited"):
        shutil.copytree(ours, tmp_path / folder)
    text = (tmp_path / "edited" / file).read_text()
    assert before in text
    (tmp_path / "edited" / file).write_text(text.replace(before, after, 1))
    monkeypatch.setattr(compose, "CONF", tmp_path / "same")
    assert make_spec(["optimizer=sgd"]).signature == first
    monkeypatch.setattr(compose, "CONF", tmp_path / "edited")
    assert (make_spec(["optimizer=sgd"]).signature != first) == signed


@pytest.mark.medium
def test_a_file_of_the_users_own_that_is_edited_changes_the_signature(tmp_path: Path) -> None:
    file = tmp_path / "conf" / "optimizer" / "mine.yaml"
    file.parent.mkdir(parents=True)
    signatures = []
    for rate in (0.1, 0.2, 0.1):
        file.write_text(f"_target_: torch.optim.SGD\nlr: {rate}\n")
        signatures.append(make_spec(["optimizer=mine"], [str(tmp_path / "conf")]).signature)
    assert signatures[0] == signatures[2] != signatures[1]


@pytest.mark.medium
def test_composing_and_reporting_import_no_torch(python: Callable[[str], str]) -> None:
    code = (
        "import sys, neumann.config, neumann.store, neumann.studies.run, neumann.studies.analysis, neumann.studies.report.page, neumann.launch.local, neumann.cli.main, neumann.data;"
        "neumann.config.make_spec(['optimizer=neumann']);"
        "print([m for m in ('torch', 'pytorch_lightning', 'timm', 'wandb', 'pandas', 'matplotlib', 'sklearn') if m in sys.modules])"
    )
    assert python(code).strip() == "[]"
