"""What a constructor of another's code raises is told in words of the settings, and a bug of the user's by its line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from neumann.errors import UserError
from neumann.models.classifiers import build_model
from neumann.training.instantiate import build_schedule
from neumann.training.optimizers import build_optimizer

OWN = """
import torch


def of_file(scale):
    return scale.items()


def unready(step, *, warmth):
    return step


def careless(step):
    return step.count


class Base(torch.optim.SGD):
    def __init__(self, params, lr=0.1, weight_decay=0.0, rate: float = None):
        super().__init__(params, lr=lr, weight_decay=weight_decay)


class Needs(Base):
    def __init__(self, params, *, gain, lr=0.1):
        super().__init__(params, lr=lr)


class NeedsTwo(Base):
    def __init__(self, params, gain, loss, **others):
        super().__init__(params, **others)


class Attribute(Base):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr)
        self.scale = self.sacle


class Kinds(Base):
    def __init__(self, params, lr=0.1, steps: int = 3, rate: "float" = None):
        super().__init__(params, lr=lr)
        self.scale = lr + steps + rate


class Calls(Base):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr, dampning=0)


class Helped(Base):
    def __init__(self, params, lr=0.1):
        of_file(lr)


class Keyed(Base):
    def __init__(self, params, lr=0.1):
        {}["lr"]


class Refuses(Base):
    def __init__(self, params, lr=0.1):
        raise ValueError("lr must be prime")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a module of the user's own, `own_code`, on the import path."""
    path = tmp_path / "own_code.py"
    path.write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "own_code", raising=False)
    return path


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def of_optimizer(target: str, **settings: object) -> str:
    section = {"_target_": target, **settings}
    return refusal(lambda: build_optimizer(torch.nn.Linear(2, 2), section, "norm_and_bias"))


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("Needs", {"lr": 0.1}, "optimizer: Needs needs 'gain', which is not set: add 'gain: VALUE' to its YAML"),
        ("NeedsTwo", {"lr": 0.1}, "optimizer: NeedsTwo needs 'gain' and 'loss', which are not set: add 'gain: VALUE'"),
        ("Kinds", {"steps": "x", "rate": 1}, "optimizer.steps=x is not a whole number: Kinds has steps=3 by itself"),
        ("Kinds", {"rate": "x"}, "optimizer.rate=x is not a number, as Kinds takes it"),
        ("Refuses", {"lr": 0.1}, "optimizer: Refuses refuses its settings: lr must be prime"),
    ],
)
def test_settings_of_ones_own_optimizer_are_told_by_their_names(
    name: str, settings: dict[str, object], sentence: str, own: Path
) -> None:
    assert of_optimizer(f"own_code.{name}", **settings).startswith(sentence)


@pytest.mark.parametrize(
    ("name", "source", "told"),
    [
        ("Attribute", "self.scale = self.sacle", "AttributeError in {}: 'Attribute' object has no attribute 'sacle'"),
        ("Calls", "super().__init__(params, lr=lr, dampning=0)", "TypeError in {}: Base.__init__() got an unexpected"),
        ("Helped", "return scale.items()", "AttributeError in {}: 'float' object has no attribute 'items'"),
        ("Keyed", '{}["lr"]', "KeyError in {}: 'lr'"),
    ],
)
def test_a_bug_in_ones_own_constructor_is_told_with_its_exception_and_line(
    name: str, source: str, told: str, own: Path
) -> None:
    line = next(number for number, text in enumerate(OWN.split("\n"), 1) if text.strip() == source)
    expected = f"optimizer: {name} fails with lr=0.1: " + told.format(f"{own}, line {line}")
    assert of_optimizer(f"own_code.{name}", lr=0.1).startswith(expected)


def test_a_module_of_ones_own_that_fails_is_told_with_its_line(own: Path) -> None:
    own.write_text("x = 1\ny = nothing\n")
    said = of_optimizer("own_code.Mine")
    assert said == (
        f"optimizer._target_=own_code.Mine cannot be imported: NameError in {own}, line 2: name 'nothing' is not defined"
    )
    own.write_text("x = 1\n\ny = = 2\n")
    said = of_optimizer("own_code.Mine")
    assert f"cannot be imported: SyntaxError in {own}, line 3: invalid syntax" in said


def test_a_schedule_of_ones_own_is_told_by_its_setting_or_its_line(own: Path) -> None:
    said = refusal(lambda: build_schedule({"_target_": "own_code.unready"}))
    assert said == "schedule: unready needs 'warmth', which is not set: add 'warmth: VALUE' to its YAML"
    said = refusal(lambda: build_schedule({"_target_": "own_code.careless"}))
    line = next(number for number, text in enumerate(OWN.split("\n"), 1) if text.strip() == "return step.count")
    assert said.startswith(f"schedule: careless fails at step 0: AttributeError in {own}, line {line}: ")


@pytest.mark.parametrize(
    ("kind", "name", "kwargs", "sentence"),
    [
        ("torch", "SGD", {"momentum": "x"}, "optimizer.kwargs.momentum=x is not a number: SGD has momentum=0"),
        ("torch", "ASGD", {"lambd": "x"}, "optimizer.kwargs.lambd=x is not a number: ASGD has lambd=0.0001 by itself"),
        ("timm", "sgdw", {"momentum": "x"}, "optimizer.kwargs.momentum=x is not a number: sgdw has momentum=0"),
    ],
)
def test_a_librarys_optimizer_refuses_in_words_of_the_settings(
    kind: str, name: str, kwargs: dict[str, object], sentence: str
) -> None:
    section = {"_target_": f"neumann.optimizers.{kind}", "name": name, "lr": 0.1, "weight_decay": 0.0, "kwargs": kwargs}
    assert refusal(lambda: build_optimizer(torch.nn.Linear(2, 2), section, "none")).startswith(sentence)


@pytest.mark.parametrize(
    ("name", "kwargs", "sentence"),
    [
        ("small_cnn", {"width": "x"}, "model.kwargs.width=x is not a whole number: small_cnn has width=32 by itself"),
        ("small_cnn", {"width": 1.5}, "model.kwargs.width=1.5 is not a whole number: small_cnn has width=32 by itself"),
        ("small_cnn", {"drop_rate": "x", "width": 8}, "model.kwargs.drop_rate=x is not a number"),
        ("small_cnn", {"width": [8]}, "model.kwargs.width=[8] is not a whole number"),
        ("test_resnet", {"stem_width": "x"}, "model.kwargs.stem_width=x is not a whole number"),
    ],
)
def test_a_networks_setting_of_another_kind_is_told_by_its_name(
    name: str, kwargs: dict[str, object], sentence: str
) -> None:
    said = refusal(lambda: build_model(name, kwargs, in_chans=1, num_classes=10, image_size=(8, 8)))
    assert said.startswith(sentence)
    assert not re.search(r"TypeError|NoneType|unsupported operand", said)
