"""A run's record, from which a worker on another machine, or another user with the folder, makes it again."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from neumann.config import load_spec, make_spec
from neumann.errors import UserError


def record(*overrides: str) -> dict[str, Any]:
    written = json.dumps(make_spec([*overrides]).as_record())
    loaded: dict[str, Any] = json.loads(written)
    return loaded


@pytest.mark.medium
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("optimizer=adam", "optimizer.lr=1", "seed=3", "name=mine", "output=elsewhere", "ablation=null"),
        ("ablation=no_alpha", "trainer.max_epochs=0.5", "recipe.weight_average=0.99", "optimizer=neumann"),
        ("model=timm", "model.name=resnet18", "+model.kwargs.drop_rate=0.1", "schedule=constant"),
    ],
)
def test_a_record_gives_the_same_run(overrides: tuple[str, ...]) -> None:
    spec = make_spec(overrides)
    again = load_spec(json.loads(json.dumps(spec.as_record())))
    assert again == spec
    assert again.folder == spec.folder
    assert again.signed() == spec.signed()


def test_targets_of_other_projects_need_trust() -> None:
    foreign = record()
    foreign["config"]["optimizer"]["_target_"] = "os.system"
    with pytest.raises(UserError, match=r"optimizer\._target_=os\.system would run code .* --trust"):
        load_spec(foreign)
    with pytest.raises(UserError, match="now gives run"):  # trusted, and still another run than it says
        load_spec(foreign, trust=True)


def test_a_record_of_an_older_version_is_one_clear_sentence() -> None:
    """Before version 2 a record named the module that a function lay in."""
    old = record()
    old["config"]["schedule"]["_target_"] = "neumann.training.schedules.synchronous"
    for trust in (False, True):
        with pytest.raises(UserError) as refused:
            load_spec(old, trust=trust)
        assert str(refused.value) == (
            f"the record of run {old['signature']} does not fit this version: "
            "schedule._target_=neumann.training.schedules.synchronous is not a public name of neumann: "
            "did you mean 'neumann.schedules.synchronous'?"
        )


def test_nothing_is_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    foreign = record()
    foreign["config"]["name"] = "${oc.env:WANDB_API_KEY}"
    with pytest.raises(UserError, match="no interpolations") as refused:
        load_spec(foreign)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("broken", [{}, {"config": {}}, {"config": {}, "choices": [], "signature": "x"}, [], None])
def test_what_is_no_record_is_refused(broken: Any) -> None:
    with pytest.raises(UserError, match="not a record of a run"):
        load_spec(broken)


@pytest.mark.medium
def test_what_does_not_fit_is_one_sentence() -> None:
    for change, words in (
        ({"seeed": 3}, "does not fit this version"),
        ({"trainer": {"devices": "many"}}, "does not fit this version"),
        ({"seed": 4}, "now gives run"),
        ({"data": {"kind": "digits", "split_seed": 1, "augmentation": "none"}}, "now gives run"),
    ):
        foreign = copy.deepcopy(record())
        foreign["config"] |= change
        with pytest.raises(UserError, match=words) as refused:
            load_spec(foreign)
        assert "\n" not in str(refused.value)
