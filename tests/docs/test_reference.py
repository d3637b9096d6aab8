"""The reference is what the code says: every key of conf/, every command, every key that a run's files have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from docs.generate import command_line, configuration, docstrings, experiments
from neumann.cli.main import main
from neumann.store import RunFolder
from neumann.store.archive import of_folder
from neumann.store.files import read_json
from neumann.store.records import flat
from neumann.studies.schema import (
    BatchConfig,
    BudgetConfig,
    ComparisonsConfig,
    FactorConfig,
    LevelConfig,
    PaperConfig,
    RowConfig,
    SeedsConfig,
    StudyConfig,
    TargetConfig,
)
from tests.support import two_heads
from tests.support.markdown_pages import ROOT

pytestmark = pytest.mark.medium

REFERENCE = ROOT / "docs" / "reference"
TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
    "boolean": (bool,),
}


def tables(page: str) -> dict[str, dict[str, str]]:
    """Return {heading: {key: the second cell}} of a page's tables."""
    found: dict[str, dict[str, str]] = {}
    heading = ""
    for line in page.splitlines():
        if line.startswith("## "):
            heading = line[3:]
        elif line.startswith("| `"):
            key, second = (cell.strip() for cell in line.split("|")[1:3])
            found.setdefault(heading, {})[key.strip("`")] = second
    return found


OPTIONS = sorted(file for file in (ROOT / "conf").glob("*/*.yaml") if file.parent.name != "sweeps")


@pytest.mark.parametrize("file", OPTIONS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_the_page_on_configuration_has_every_key_of_a_file(file: Path) -> None:
    prefix = "optimizer" if file.parent.name == "ablation" else file.parent.name
    settings = {s.key: s.default for s in configuration.option(file, prefix).settings}
    loaded = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    assert isinstance(loaded, dict)
    loaded.pop("defaults", None)
    expected = dict(flat({str(k): v for k, v in loaded.items()}, f"{prefix}."))
    assert settings.keys() == expected.keys()
    for key, value in expected.items():
        assert OmegaConf.to_container(OmegaConf.create(f"x: {settings[key]}"), resolve=False) == {"x": value}


def test_the_page_on_configuration_has_every_option_and_sweep() -> None:
    page = configuration.page()
    for file in OPTIONS:
        assert f"| `{file.stem}` |" in page
    for file in (ROOT / "sweeps").glob("*.yaml"):
        assert f"| `{file.stem}` |" in page
    for setting in configuration.option(ROOT / "conf" / "train.yaml", "").settings:
        assert f"| `{setting.key}` |" in page
    assert "<output>" not in page  # it would be an HTML tag


def test_the_page_on_the_papers_experiments_has_every_file_and_setting() -> None:
    page = experiments.page()
    for one in experiments.experiments():
        assert f"| `{one.name}` |" in page
        for key, said in {**one.printed, **one.assumed}.items():
            assert f"`{key}={said.value}`" in page or f"| `{key}` | `{said.value}` |" in page


def test_every_setting_of_the_page_on_configuration_has_a_meaning() -> None:
    run = configuration.option(ROOT / "conf" / "train.yaml", "")
    options = [run, *(one for its in configuration.options().values() for one in its)]
    assert [f"{one.name}: {s.key}" for one in options for s in one.settings if not s.comment] == []
    assert len([s for one in options for s in one.settings if s.comment]) > 100


def test_a_yaml_without_its_sentence_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("lr: 0.1\n")
    with pytest.raises(ValueError, match="does not open with a sentence"):
        configuration.option(file, "optimizer")


def test_the_page_on_the_command_line_has_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    named = set(re.findall(r"^neumann ([\w-]+)", capsys.readouterr().out, flags=re.MULTILINE))
    assert named == {command.split()[0] for command in command_line.COMMANDS}
    assert main(["runs", "--help"]) == 0
    verbs = set(re.findall(r"^  neumann runs (\w+)", capsys.readouterr().out, flags=re.MULTILINE))
    verbs -= {"all"}
    assert {f"runs {verb}" for verb in verbs} <= set(command_line.COMMANDS)
    page = command_line.page()
    for option in ("--config-dir", "--plan", "--budget", "--publish", "--json", "--until-done", "--trust"):
        assert option in page, option


def keys(value: Mapping[str, Any], known: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value), as deep as the page goes; the points' names are POINT."""
    for name, child in value.items():
        key = prefix + ("POINT" if name in ("held", "base", "average") else str(name))
        if isinstance(child, Mapping) and key not in known and child:
            yield from keys(child, known, f"{key}.")
        else:
            yield key, child


def check(page: dict[str, str], records: list[Mapping[str, Any]], *, unseen: tuple[str, ...] = ()) -> None:
    """Hold the keys of a table, and their types, against those of ``records``."""
    seen: set[str] = set()
    for record in records:
        for key, value in keys(record, set(page)):
            seen.add(key)
            assert key in page, f"{key} is written and not described"
            kinds = tuple(kind for word in page[key].split(" or ") for kind in TYPES[word])
            assert isinstance(value, kinds), f"{key} is {value!r}, not {page[key]}"
            assert bool in kinds or not isinstance(value, bool)
    assert set(page) - seen == set(unseen), "described and not written, or written after all"


QUICK = ("trainer.max_epochs=2", "+model.kwargs.width=8", "logger=none", "batch.size=64")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs that together write every key: recalibrated, averaged, diverged, failed, with weights and two heads."""
    runs = tmp_path_factory.mktemp("runs")
    asked = (
        [
            "recipe.recalibrate_batch_norm=2",
            "checkpoint=last",
            "trainer.track_grad_norm=true",
            "trainer.track_update_norm=true",
        ],
        ["optimizer=sgd", "recipe.weight_average=0.9", "checkpoint=last"],
        ["optimizer=timm", "optimizer.name=lookahead_sgd", "checkpoint=last"],
        ["optimizer=sgd", "optimizer.lr=1e38", "schedule=constant"],
        [*INSIDE, "terms.every=9", "terms.lanczos_steps=3", "terms.newton=true"],
        [*two_heads.WORDS, f"model.checkpoint={runs}/two.pt", "checkpoint=last"],
    )
    torch.save(two_heads.TwoHeads(width=8).state_dict(), runs / "two.pt")
    for i, words in enumerate(asked):
        assert main(["train", *QUICK, *words, f"output={runs}", f"study=s{i}"]) == 0
    return [next(runs.glob(f"s{i}/*")) for i in range(len(asked))]


INSIDE = ("model=mlp", "schedule=spectral", "timing.burn_in=0.1", "timing.reset_period=1", "checkpoint=last")


def lines(folder: Path, name: str) -> list[Any]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.mark.parametrize(
    ("file", "unseen"),
    [
        ("signed.json", ()),
        ("result.json", ()),
        ("status.json", ("message",)),
        ("measurements.jsonl", ()),
        ("steps.jsonl", ()),
        ("terms.jsonl", ()),
    ],
)
def test_the_page_on_run_files_has_every_key(file: str, unseen: tuple[str, ...], folders: list[Path]) -> None:
    page = tables((REFERENCE / "run-files.md").read_text())[file]
    if file.endswith("l"):
        records = [record for folder in folders if (folder / file).exists() for record in lines(folder, file)]
    else:
        records = [json.loads((folder / file).read_text()) for folder in folders]
    check(page, records, unseen=unseen)


def test_the_page_on_run_files_has_every_attempt_and_derived_key(folders: list[Path]) -> None:
    page = tables((REFERENCE / "run-files.md").read_text())
    attempts = [a for folder in folders for a in json.loads((folder / "provenance.json").read_text())["attempts"]]
    check(page["provenance.json"], attempts)
    configs = [OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")) for folder in folders]
    check(page["config.yaml"], [{"derived": config["derived"]} for config in configs])  # type: ignore[call-overload, index]


def test_the_page_on_run_files_has_every_key_of_checkpoints_and_leases(folders: list[Path]) -> None:
    page = tables((REFERENCE / "run-files.md").read_text())
    sound = [folder for folder in folders if (folder / "eval-weights.pt").exists()]
    assert len(sound) == 5
    load = {"weights_only": True}
    check(page["eval-weights.pt"], [dict(torch.load(folder / "eval-weights.pt", **load)) for folder in sound])
    check(page["last.ckpt"], [dict(torch.load(folder / "last.ckpt", **load)) for folder in sound])
    leases = [next(folder.glob(".claim.*")).read_text().split("\n", 1) for folder in folders]
    assert {state for state, _ in leases} == {"free"}
    check(page[".claim.N"], [json.loads(record) for _, record in leases])


def test_the_page_on_run_files_names_every_file(folders: list[Path]) -> None:
    page = tables((REFERENCE / "run-files.md").read_text())[""]
    written = {re.sub(r"\d+$", "N", path.name) for folder in folders for path in folder.iterdir()}
    assert written <= set(page)
    assert set(page) - written == {"error.txt", "output.log"}


def test_the_page_on_studies_has_every_key_of_an_archive(folders: list[Path]) -> None:
    page = tables((REFERENCE / "study-file.md").read_text())["The archive"]
    over = [run for folder in folders if (run := RunFolder(folder)).result() is not None]
    records = [of_folder(run, read_json(run.signed), run.result() or {}).record() for run in over]
    check(page, records)
    assert {run.path.name for run in over} == {record["name"] for record in records}


def test_the_page_on_studies_has_every_key() -> None:
    page = tables((REFERENCE / "study-file.md").read_text())[""]
    sections = {"rows": RowConfig, "budgets": BudgetConfig, "paper": PaperConfig}
    sections |= {
        "factor": FactorConfig,
        "seeds": SeedsConfig,
        "comparisons": ComparisonsConfig,
        "target": TargetConfig,
        "batches": BatchConfig,
    }

    def named() -> Iterator[str]:
        for key in StudyConfig.model_fields:
            below = (
                f"{key}.{'SIZE' if key == 'batches' else 'NAME'}."
                if key in ("rows", "budgets", "batches")
                else f"{key}."
            )
            names = [*sections[key].model_fields] if key in sections else []
            if key == "factor":
                names = ["name", *(f"levels.NAME.{name}" for name in LevelConfig.model_fields)]
            yield from [below + name for name in names] or [key]

    assert set(page) == set(named())


def test_docstrings_become_markdown() -> None:
    rst = """One.

====  =====
name  value
====  =====
a     :class:`~x.Y`
      goes on
b     1 | 2
====  =====

.. math::
   \\rule{1mm}{1pt}
   a = b

Then::

    code
"""
    text = docstrings.markdown(rst)
    assert "| a | `x.Y` goes on |\n| b | 1 \\| 2 |" in text
    assert "$$\na = b\n$$" in text
    assert "Then:\n\n    code" in text
    assert "====" not in text
