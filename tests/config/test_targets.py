"""Tests of public names: a ``_target_`` is signed by one, which stays when a file moves; a stale one is refused."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import neumann.optim
from neumann.config import make_spec
from neumann.config.from_record import TRUSTED
from neumann.config.targets import EXPORTED, TARGETS
from neumann.errors import UserError
from neumann.training import rate_schedules
from neumann.training.instantiate import SCHEDULE_BOUNDS, build_schedule, locate

CONF = Path(__file__).resolve().parents[2] / "conf"
NAMED = {
    str(path.relative_to(CONF)): target
    for path in sorted(CONF.rglob("*.yaml"))
    for target in re.findall(r"^_target_: *(\S+)", path.read_text(), re.MULTILINE)
}


def test_some_files_name_targets_of_ours_and_some_those_of_others() -> None:
    ours = {target for target in NAMED.values() if target.startswith("neumann.")}
    assert set(TARGETS) < ours < set(NAMED.values())


@pytest.mark.parametrize(("file", "target"), NAMED.items(), ids=NAMED.keys())
def test_every_target_of_our_files_is_public_and_trusted_in_a_record(file: str, target: str) -> None:
    if target.startswith("neumann."):
        exported = [f"neumann.optim.{name}" for name in neumann.optim.__all__ if name[0].isupper()]
        assert target in [*TARGETS, *exported], f"{file} signs {target}, which moves with its file"
    assert target in TARGETS or TRUSTED.fullmatch(target)


@pytest.mark.parametrize(("target", "place"), TARGETS.items(), ids=TARGETS.keys())
def test_every_public_name_leads_to_its_function(target: str, place: str) -> None:
    found = locate(target, "x._target_")
    assert f"{found.__module__}.{found.__qualname__}" == place


def test_what_optim_exports_is_public_as_it_is() -> None:
    classes = [name for name in neumann.optim.__all__ if name[0].isupper()]
    assert "Neumann" in classes
    for name in classes:
        assert EXPORTED.fullmatch(f"neumann.optim.{name}")
        assert locate(f"neumann.optim.{name}", "x._target_") is getattr(neumann.optim, name)


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("neumann.training.rate_schedules.constant", "write neumann.schedules.constant"),
        ("neumann.training.schedules.constant", "did you mean 'neumann.schedules.constant'?"),
        ("neumann.schedules.constent", "did you mean 'neumann.schedules.constant'?"),
        ("neumann.optim.neumann.Neumann", "write neumann.optim.Neumann"),
        ("neumann.training.instantiate.get_object", "is not a public name of neumann"),
    ],
)
def test_a_name_that_moves_with_its_file_is_not_signed(target: str, hint: str, tmp_path: Path) -> None:
    group = "optimizer" if "optim." in target else "schedule"
    (tmp_path / group).mkdir()
    (tmp_path / group / "mine.yaml").write_text(f"_target_: {target}\n")
    with pytest.raises(UserError) as caught:
        make_spec([f"{group}=mine"], [str(tmp_path)])
    assert f"{group}._target_={target} is not a public name of neumann" in str(caught.value)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_that_optim_does_not_export_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"optimizer\._target_=neumann\.optim\.Neuman cannot be imported: .*Neuman"):
        locate("neumann.optim.Neuman", "optimizer._target_")


OWN_SCHEDULES = [name for name in TARGETS if name.startswith("neumann.schedules.")]


def test_every_setting_of_our_schedules_has_bounds_and_every_bound_a_setting() -> None:
    settings = {
        name
        for target in OWN_SCHEDULES
        for name, parameter in inspect.signature(getattr(rate_schedules, target.rpartition(".")[2])).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert settings == set(SCHEDULE_BOUNDS)


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("factor", 0.0, "must be above 0"),
        ("every_steps", 0, "must be at least 1"),
        ("ramp_steps", -1, "must be at least 0"),
        ("ramp_steps", None, "null is not a whole number"),
        ("factor", float("inf"), "out of range"),
        ("ramp_steps", 1.5, "is not a whole number"),
        ("every_steps", 2.5, "is not a whole number"),
    ],
)
def test_the_bounds_hold_for_our_schedules_wherever_they_lie(setting: str, value: Any, words: str) -> None:
    section = {"_target_": "neumann.schedules.synchronous", "factor": 0.3, "every_steps": 10, "ramp_steps": 1}
    with pytest.raises(UserError, match=rf"schedule\.{setting}=.*{words}"):
        build_schedule(section | {setting: value})
