"""The signature covers the whole resolved configuration and the data, less a list of what cannot change a result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from neumann.config import NOT_SIGNED, RESULTS_VERSION, make_spec, spec
from neumann.config.spec import sign, signed_part


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
    before = sign(signed_part(config, run.facts))
    unsigned = set()
    for key, _ in flat(config):
        if sign(signed_part(changed(config, key), run.facts)) == before:
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


def test_data_and_version_are_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_spec([])
    config = run.as_dict()
    for facts in (replace(run.facts, fingerprint="content:0"), replace(run.facts, split_digest="0")):
        assert sign(signed_part(config, facts)) != run.signature
    monkeypatch.setattr(spec, "RESULTS_VERSION", RESULTS_VERSION + 1)
    assert make_spec([]).signature != run.signature


def test_the_same_request_has_one_signature() -> None:
    one = make_spec(["optimizer=sgd", "optimizer.lr=1", "seed=3"])
    other = make_spec(
        ["seed=3", "optimizer.lr=1.0", "optimizer=sgd", "study=other", "name=x", "output=y", "logger=none"]
    )
    assert one.signature == other.signature
    assert len(one.signature) == 12
    assert one.folder.as_posix() == f"runs/default/digits-small_cnn-sgd-s3-{one.signature}"
    assert other.folder.as_posix() == f"y/other/x-{one.signature}"


def test_a_changed_default_changes_the_signature() -> None:
    assert make_spec(["optimizer=nesterov"]).signature != make_spec(["optimizer=sgd"]).signature
    assert make_spec(["batch.size=16"]).signature != make_spec([]).signature


def test_composing_and_reporting_import_no_torch(python: Callable[[str], str]) -> None:
    code = (
        "import sys, neumann.config, neumann.runs, neumann.studies.study, neumann.studies.assemble, neumann.studies.report, neumann.runs.launch, neumann.cli, neumann.data;"
        "neumann.config.make_spec(['optimizer=neumann']);"
        "print([m for m in ('torch', 'pytorch_lightning', 'timm', 'wandb', 'pandas', 'matplotlib', 'sklearn') if m in sys.modules])"
    )
    assert python(code).strip() == "[]"
