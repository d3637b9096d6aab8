"""Tests of `neumann runs compare`: two runs side by side, whatever is in their folders."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from neumann.cli.main import main
from neumann.config import RunSpec, make_spec
from neumann.config.repeat import words_of
from neumann.store import RunFolder
from neumann.store.comparison import curves
from neumann.store.files import write_json
from neumann.store.vouching import sealed, with_curve

pytestmark = pytest.mark.medium


@functools.cache
def spec_of(*overrides: str) -> RunSpec:
    return make_spec(["trainer.max_epochs=30", "logger=none", *overrides])


def put(
    *overrides: str, errors: list[float] | None = None, over: bool = True, first: float = 1.0, **attempt: Any
) -> RunFolder:
    """Write what a run with these validation errors, one an epoch, leaves in ./runs."""
    spec = spec_of(*overrides)
    folder = RunFolder(spec.folder)
    folder.path.mkdir(parents=True)
    folder.config.write_text(OmegaConf.to_yaml(OmegaConf.create(spec.as_dict())))
    write_json(folder.signed, spec.signed())
    write_json(folder.provenance, {"attempts": [{"step": 0, "choices": spec.choices, **attempt}]})
    measured = []
    for i, error in enumerate(errors or [0.5, 0.25]):
        scores = {"held": {"loss": 0.5, "error": 0.9, "n": 300}, "base": {"loss": 0.4, "error": error, "n": 300}}
        measured.append(
            {"step": 9 * i + 9, "epoch": first + i, "validation": scores, "train_loss": None if i else 0.125}
        )
        folder.append_measurement(measured[-1])
    if over:
        scores = {"validation": measured[-1]["validation"], "test": None}
        result = {"status": "finished", "signature": spec.signature, "step": 9 * len(measured), **scores}
        folder.write_result(sealed(with_curve(result, measured)))
        folder.set_status("finished")
    return folder


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(["runs", "compare", *words]) == code
    out = capsys.readouterr()
    return " ".join((out.err if code else out.out).split())


def test_it_names_what_differs_and_pairs_the_curves(capsys: pytest.CaptureFixture[str]) -> None:
    host = {"processor": "One", "cores": 2}
    a = put("seed=1", code={"neumann": "aaaa", "mine.py": "1111"}, host=host, packages={"torch": "2.10"})
    b = put(
        *("seed=2", "recipe.label_smoothing=0.1", "name=other"),
        errors=[0.5, 0.2, 0.1],
        code={"neumann": "bbbb", "mine.py": "1111"},
        host={**host, "cores": 8},
        packages={"torch": "2.10"},
    )
    out = said(capsys, a.path.name, b.path.name)
    assert f"A: {a.path}, finished B: {b.path}, finished" in out
    assert "settings A B recipe.label_smoothing 0.0 0.1 seed 1 2 and what changes no result: name" in out
    assert "code A B neumann aaaa bbbb environment A B host.cores 2 8 validation error" in out
    assert "epoch A B B − A loss A loss B 1 50.00 50.00 +0.00 0.1250 0.1250 2 25.00 20.00 −5.00 – –" in out
    assert "1 evaluation of one run alone left out" in out
    assert "exploratory: one run of each" in out
    for letter, folder in (("A", a), ("B", b)):
        spec = spec_of(*(("seed=1",) if letter == "A" else ("seed=2", "recipe.label_smoothing=0.1", "name=other")))
        words = words_of(spec.as_record())
        assert words is not None
        assert f"{letter}: neumann train {' '.join(words)}" in out
        assert make_spec(words).signature == folder.path.name[-12:]


@pytest.fixture
def no_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neumann.config.repeat.words_of", lambda _: None)  # a second each


@pytest.mark.usefixtures("no_commands")
def test_a_configuration_that_was_edited_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    a, b = put("seed=1"), put("seed=2")
    assert "is not what" not in said(capsys, str(a.path), str(b.path))
    text = b.config.read_text()
    assert text.count("label_smoothing: 0.0") == 1
    b.config.write_text(text.replace("label_smoothing: 0.0", "label_smoothing: 0.2"))
    told = "B: config.yaml is not what the run was signed with: it says recipe.label_smoothing=0.2, which was 0.0"
    assert told in said(capsys, str(a.path), str(b.path))


@pytest.mark.usefixtures("no_commands")
def test_what_is_the_same_is_said_in_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    put("study=one", code={"neumann": "aaaa"})
    put("study=two", code={"neumann": "aaaa"})
    one, two = sorted(str(path) for path in Path("runs").glob("*/*"))
    out = said(capsys, one, two)
    assert "settings: the same code: the same environment: the same" in out
    assert f"no command is known, as its data is not here or it is another version's: see {one}/config.yaml" in out


@pytest.mark.usefixtures("no_commands")
def test_a_long_curve_is_thinned_and_keeps_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (put(f"seed={i}", errors=[0.5] * 29 + [0.125]) for i in (1, 2))
    out = said(capsys, str(a.path), str(b.path))
    assert "30 12.50 12.50 +0.00" in out
    assert "10 of the 30 evaluations of both" in out


@pytest.mark.usefixtures("no_commands")
def test_runs_without_records_or_common_epochs_are_compared_too(capsys: pytest.CaptureFixture[str]) -> None:
    a, b = put("seed=1", over=False), put("seed=2", first=1.5)
    b.provenance.unlink()
    with open(a.measurements, "a") as file:
        file.write('{"step": 99, "epoch": "x", "validation": {"base": {"error": 0.1}}}\n{"step": 1}\n[]\n')
    out = said(capsys, str(a.path), str(b.path))
    assert "code: at least one of the two has no record of it" in out
    assert "curves: no epoch at which both runs were evaluated" in out
    assert curves(a, b) == ([], 4)


def test_edited_measurements_are_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    a, b = put("seed=1"), put("seed=2")
    b.measurements.write_text(b.measurements.read_text().replace("0.25", "0.2"))
    assert "is not what the run measured" in said(capsys, str(a.path), str(b.path), code=2)


def test_it_takes_two_runs(capsys: pytest.CaptureFixture[str]) -> None:
    a = put("seed=1")
    for words, why in (
        ([], "takes two runs"),
        ([a.path.name], "takes two runs"),
        ([a.path.name, a.path.name[-12:]], f"are the same run, {a.path}"),
        ([a.path.name, "nothing"], "there is no run nothing in runs"),
        (["x", "y", "output=elsewhere"], "there is no results folder elsewhere"),
    ):
        assert why in said(capsys, *words, code=2)
    (a.path / "config.yaml").write_text("x: *a")
    b = put("seed=2")
    assert "config.yaml is damaged" in said(capsys, str(a.path), str(b.path), code=2)


def test_a_folder_of_another_user_prints_no_escapes(capsys: pytest.CaptureFixture[str], no_commands: None) -> None:
    a, b = put("seed=1", host={"processor": "\x1b[31mred"}), put("seed=2", host={"processor": ["x"], "\x1b": 1})
    assert main(["runs", "compare", str(a.path), str(b.path)]) == 0
    out = capsys.readouterr().out
    assert "red" in out
    assert "\x1b" not in out
    assert json.loads(a.provenance.read_text())["attempts"][0]["host"] == {"processor": "\x1b[31mred"}
