"""docs/using_neumann.md: every example runs as it stands, ends at the answer, and the table is the signature's."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from neumann.optim import Neumann, at

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "using_neumann.md").read_text()
FIRST, SHARED, LOOP, BATCH_NORM, TIMM, LIGHTNING = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def run(*blocks: str) -> dict[str, Any]:
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "example"}
    for block in blocks:
        exec(compile(block, "docs/using_neumann.md", "exec"), names)
    return names


def test_the_first_block_runs_with_torch_alone() -> None:
    run("import torch\n" + FIRST)


def answer(names: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights at w − μm, by the twin's formula, from what the optimizer holds."""
    optimizer = names["optimizer"]
    assert optimizer.point == "held"
    state = optimizer.state
    return {
        name: (p.detach() - state[p]["coefficient"] * state[p]["m"]) for name, p in names["model"].named_parameters()
    }


@pytest.mark.filterwarnings("error:the model runs in eval mode")
def test_the_plain_loop(capsys: pytest.CaptureFixture[str]) -> None:
    names = run(SHARED, LOOP, BATCH_NORM)
    out = capsys.readouterr().out
    accuracies = [float(x) for x in re.findall(r"epoch \d: ([\d.]+)%", out)]
    assert len(accuracies) == 6
    assert accuracies[-1] > 90
    assert float(re.findall(r"recalibrated: ([\d.]+)%", out)[0]) > 90
    assert names["model"].training
    saved, held = torch.load("answer.pt"), torch.load("resume.pt")["model"]
    for name, weight in answer(names).items():
        torch.testing.assert_close(saved[name], weight)
        assert torch.equal(held[name], names["model"].state_dict()[name])
        assert not torch.equal(held[name], saved[name])


def test_the_plain_loop_without_the_eval_point_is_warned_about() -> None:
    careless = LOOP.replace("with optimizer.evaluating():\n        print", "if True:\n        print")
    assert careless != LOOP
    with pytest.warns(UserWarning, match="the model runs in eval mode") as said:
        run(SHARED, careless)
    assert len([w for w in said if "eval mode" in str(w.message)]) == 1


@pytest.mark.filterwarnings("error:the model runs in eval mode")
def test_timms_factory(capsys: pytest.CaptureFixture[str]) -> None:
    names = run(SHARED, TIMM)
    assert isinstance(names["optimizer"], Neumann)
    assert [group["weight_decay"] for group in names["optimizer"].param_groups] == [0.0, 1e-4]
    assert float(re.findall(r"epoch 5: ([\d.]+)%", capsys.readouterr().out)[0]) > 90


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_lightning_module() -> None:
    names = run(SHARED, LIGHTNING)
    trainer, module, loaded = names["trainer"], names["classifier"], names["answer"]
    assert float(trainer.callback_metrics["val_accuracy"]) > 0.9
    with at(trainer.optimizers[0], "base"):
        for name, weight in module.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], weight), name
        assert float(trainer.callback_metrics["val_accuracy"]) == pytest.approx(names["accuracy"](module))


def test_the_table_is_the_signature() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line[:3] == "| `"]
    table = [(row[0].strip("`"), row[2].strip("`")) for row in rows]
    signature = inspect.signature(Neumann).parameters.values()
    assert [(name, eval(default)) for name, default in table] == [
        (p.name, p.default) for p in signature if p.name != "params"
    ]
    assert all(row[3] for row in rows)


def test_the_tables_symbols_are_those_of_the_docstring() -> None:
    """So that the page and help(Neumann) name the paper's quantities alike."""
    doc = inspect.getdoc(Neumann) or ""
    symbols = dict(re.findall(r"^``(\w+)`` +(\S+(?:\(t\))?)  ", doc, flags=re.MULTILINE))
    page = {
        row[0].strip(" `"): row[1].strip()
        for row in (line.split("|")[1:3] for line in PAGE.splitlines() if line[:3] == "| `")
    }
    for name in ("lr", "alpha", "beta", "gamma", "momentum", "reset_period"):
        assert page[name] == symbols[name]
