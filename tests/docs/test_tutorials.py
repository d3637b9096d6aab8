"""Promises of the tutorials and how-to pages beyond running: weights at the answer, warnings, a study's size."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch

from neumann.cli.main import main
from neumann.config import make_spec
from neumann.optim import Neumann, at
from neumann.store import RunFolder
from neumann.studies.plan import load_study
from tests.support.markdown_pages import ROOT, Block, PageRun, blocks, run_page

pytestmark = pytest.mark.medium

DOCS = ROOT / "docs"
LOOP = DOCS / "tutorials" / "plain-loop.md"
ARGUMENTS = (DOCS / "reference" / "neumann.md").read_text()


def run(page: Path, only: list[Block] | None = None) -> PageRun:
    torch.manual_seed(0)
    return run_page(page, only)


def answer(run: PageRun) -> dict[str, torch.Tensor]:
    """The weights at w − μm, by the twin's formula, from what the optimizer holds."""
    optimizer = run.names["optimizer"]
    assert optimizer.point == "held"
    state = optimizer.state
    return {
        name: (p.detach() - state[p]["coefficient"] * state[p]["m"])
        for name, p in run.names["model"].named_parameters()
    }


def test_the_first_block_runs_with_torch_alone() -> None:
    first = blocks(LOOP)[0]
    assert set(re.findall(r"^(?:from|import) ([\w.]+)", first.code, flags=re.MULTILINE)) == {"torch", "neumann.optim"}
    run(LOOP, [first])


@pytest.mark.filterwarnings("error:the model runs in eval mode")
def test_the_plain_loop() -> None:
    done = run(LOOP)
    accuracies = [float(x) for x in re.findall(r"epoch \d: ([\d.]+)%", done.out)]
    assert len(accuracies) == 6
    assert min(accuracies[1:]) > 90  # as the page says
    assert float(re.findall(r"recalibrated: ([\d.]+)%", done.out)[0]) > 90
    assert done.names["model"].training
    saved, held = torch.load("answer.pt"), torch.load("resume.pt")["model"]
    for name, weight in answer(done).items():
        torch.testing.assert_close(saved[name], weight)
        assert torch.equal(held[name], done.names["model"].state_dict()[name])
        assert not torch.equal(held[name], saved[name])


def test_the_plain_loop_without_the_eval_point_is_warned_about() -> None:
    careless = []
    for block in blocks(LOOP)[1:3]:
        code = block.code.replace("with optimizer.evaluating():\n        print", "if True:\n        print")
        careless.append(Block(block.language, block.title, code, block.line))
    assert [block.code for block in careless] != [block.code for block in blocks(LOOP)[1:3]]
    with pytest.warns(UserWarning, match="the model runs in eval mode") as said:
        run(LOOP, careless)
    assert len([w for w in said if "eval mode" in str(w.message)]) == 1


@pytest.mark.filterwarnings("error:the model runs in eval mode")
def test_timms_factory() -> None:
    done = run(DOCS / "how-to" / "timm.md")
    assert isinstance(done.names["optimizer"], Neumann)
    assert [group["weight_decay"] for group in done.names["optimizer"].param_groups] == [0.0, 1e-4]
    assert float(re.findall(r"epoch 5: ([\d.]+)%", done.out)[0]) > 90


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_lightning_module() -> None:
    names = run(DOCS / "how-to" / "lightning.md").names
    trainer, module, loaded = names["trainer"], names["classifier"], names["answer"]
    assert float(trainer.callback_metrics["val_accuracy"]) > 0.9
    with at(trainer.optimizers[0], "base"):
        for name, weight in module.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], weight), name
        assert float(trainer.callback_metrics["val_accuracy"]) == pytest.approx(names["accuracy"](module))


@pytest.mark.slow
def test_the_exported_weights_err_on_the_test_images_as_the_run_did() -> None:
    names = run(DOCS / "how-to" / "export.md").names
    examples = make_spec([]).facts.examples
    labels = torch.tensor(names["digits"].target)
    wrong = (names["predicted"] != labels)[examples.test].sum()
    result = RunFolder(names["folder"]).result()
    assert result is not None
    assert names["saved"]["point"] == "base"
    assert wrong == result["test"]["base"]["wrong"]


def test_the_study_of_the_tutorial_can_be_planned(capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = (block for block in blocks(DOCS / "tutorials" / "first-study.md") if block.title)
    run(DOCS / "tutorials" / "first-study.md", [file])
    study = load_study("mine")
    assert len(study.tuning()) == 2 * 3 * 3
    assert len(study.evaluation_seeds) == 5
    assert main(["study", "mine", "--plan"]) == 0
    assert "to train: 18 runs and up to 10 evaluation runs" in " ".join(capsys.readouterr().out.split())


def rows_of_arguments() -> list[list[str]]:
    lines = (line for line in ARGUMENTS.splitlines() if line[:3] == "| `")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_is_the_signature() -> None:
    table = [(row[0].strip("`"), row[2].strip("`")) for row in rows_of_arguments()]
    signature = inspect.signature(Neumann).parameters.values()
    assert [(name, eval(default)) for name, default in table] == [
        (p.name, p.default) for p in signature if p.name != "params"
    ]
    assert all(row[3] for row in rows_of_arguments())


def test_the_tables_symbols_are_those_of_the_docstring() -> None:
    """The page and help(Neumann) name the paper's quantities alike."""
    doc = inspect.getdoc(Neumann) or ""
    symbols = dict(re.findall(r"^``(\w+)`` +(\S+(?:\(t\))?)  ", doc, flags=re.MULTILINE))
    page = {row[0].strip("`"): row[1] for row in rows_of_arguments()}
    for name in ("lr", "alpha", "beta", "gamma", "momentum", "reset_period"):
        assert page[name] == symbols[name]
