"""The README is short, its code runs and its links lead somewhere."""

from __future__ import annotations

import re

import pytest
import torch
from torch.nn.functional import cross_entropy

from neumann.cli.main import main
from neumann.optim import eval_point
from tests.support.markdown_pages import ROOT, Block, blocks, run_page

README = ROOT / "README.md"
PAGES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "experiments/regularizers/README.md")


def block(beginning: str) -> Block:
    (found,) = (b for b in blocks(README) if beginning in b.code)
    return found


def test_it_is_read_in_minutes() -> None:
    assert 90 <= len(README.read_text().splitlines()) <= 130


def test_the_ten_lines_train_and_validate_at_the_answer() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 3)
    images = torch.randn(60, 8)
    labels = (images @ torch.randn(8, 3)).argmax(1)
    losses, points = [], []

    def validate(model: torch.nn.Module) -> None:
        losses.append(cross_entropy(model(images), labels).item())
        points.append(names["optimizer"].point)

    names = {
        "model": model,
        "train_loader": [(images[i : i + 10], labels[i : i + 10]) for i in range(0, 60, 10)],
        "epochs": 20,
        "loss_fn": cross_entropy,
        "validate": validate,
    }
    exec(block("from neumann.optim import Neumann").code, names)
    assert losses[-1] < 0.5 * losses[0]
    assert set(points) == {eval_point(names["optimizer"])} == {"base"}


def commands() -> list[str]:
    lines = block("neumann study regularizers").code.splitlines()
    return [line.split("  #")[0].strip().removeprefix(".venv/bin/") for line in lines]


@pytest.mark.medium
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_run_and_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    train, sweep, plan = commands()
    assert main([*sweep.split()[1:], "--cfg", "job"]) == 0
    assert main([*train.split()[1:], "trainer.max_epochs=1", "logger=none"]) == 0
    assert main(plan.split()[1:]) == 0
    assert "to train: " in capsys.readouterr().out


@pytest.mark.slow
def test_the_three_commands() -> None:
    run = run_page(README, [block("neumann study regularizers")])
    assert "sgd" in run.out


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path = target.partition("#")[0]
        if path and not re.match(r"[a-z]+:", target):
            assert (page.parent / path).exists(), f"{name}: {target}"
