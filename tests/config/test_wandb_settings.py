"""A mirror is told by the run's configuration alone: what W&B refuses is refused first, what is ignored is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from neumann.config.schema import LoggerConfig, RunConfig
from neumann.config.wandb_settings import check_logger, hide_variables, ignored_variables
from neumann.errors import UserError


@pytest.mark.parametrize(
    ("variable", "asked", "said"),
    [
        ("WANDB_MODE", "online", "logger.mode=offline decides, and logger.mode=online changes it"),
        ("WANDB_MODE", "disabled", "logger.mode=offline decides, and logger=none changes it"),
        ("WANDB_MODE", "foo", "WANDB_MODE=foo has no effect: logger.mode=offline decides"),
        ("WANDB_MODE", "offline", None),
        ("WANDB_MODE", "", None),
        ("WANDB_DISABLED", "true", "logger=wandb decides, and logger=none changes it"),
        ("WANDB_DISABLED", "false", None),
        ("WANDB_PROJECT", "mine", "logger.project=neumann decides, and logger.project=mine changes it"),
        ("WANDB_PROJECT", "neumann", None),
        ("WANDB_TAGS", "a,b", "and 'logger.tags=[a,b]' changes it"),
        ("WANDB_RUN_GROUP", "g", "study=default decides, and study=g changes it"),
        ("WANDB_NAME", "n", "name=null decides, and name=n changes it"),
        ("WANDB_RUN_ID", "abc", "WANDB_RUN_ID=abc has no effect"),
        ("WANDB_RESUME", "must", "has no effect"),
        ("WANDB_FORK_FROM", "a?_step=3", "has no effect"),
        ("WANDB_CONFIG_PATHS", "x.yaml", "has no effect"),
        ("WANDB_NOTES", "hello", "has no effect"),
        ("WANDB_SILENT", "true", None),
        ("WANDB_API_KEY", "secret", None),
        ("WANDB_BASE_URL", "http://localhost", None),
        ("WANDB_ENTITY", "team", None),
    ],
)
def test_a_variable_without_effect_is_said(variable: str, asked: str, said: str | None) -> None:
    found = ignored_variables(RunConfig(), {variable: asked})
    if said is None:
        assert found == []
    else:
        (sentence,) = found
        assert sentence.startswith(f"{variable}={asked} has no effect: ")
        assert said in sentence
    assert ignored_variables(replace(RunConfig(), logger=LoggerConfig(kind="none")), {variable: asked}) == []


def test_what_a_setting_stands_for_is_hidden_and_an_account_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    given = dict.fromkeys(("WANDB_RUN_ID", "WANDB_PROJECT", "WANDB_RESUME", "WANDB_MODE", "WANDB_REINIT"), "x")
    kept = {"WANDB_API_KEY": "x", "WANDB_ENTITY": "x", "PATH": "x"}
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    hide_variables(surroundings := {**given, **kept})
    assert surroundings == kept
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")  # its agent names the run by the first two
    hide_variables(surroundings := {**given, **kept})
    assert surroundings == {**kept, "WANDB_RUN_ID": "x", "WANDB_PROJECT": "x"}
    assert all("WANDB_RUN_ID" not in sentence for sentence in ignored_variables(RunConfig(), given))


@pytest.mark.parametrize("project", ["a/b", "", "x" * 129, "50%", "a:b"])
def test_a_project_that_wandb_refuses_is_refused_before_training(project: str) -> None:
    with pytest.raises(UserError, match="cannot be a project of W&B"):
        check_logger(LoggerConfig(project=project))
    check_logger(LoggerConfig(kind="none", project=project))


def test_a_tag_that_wandb_refuses_is_refused_before_training() -> None:
    check_logger(LoggerConfig(tags=["x" * 64], project="x" * 128))
    for tag in ("x" * 65, ""):
        with pytest.raises(UserError, match=f"has {len(tag)} characters, and a tag of W&B has 1 to 64"):
            check_logger(LoggerConfig(tags=["good", tag]))
