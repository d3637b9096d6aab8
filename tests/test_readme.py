"""What the README tells a reader to write is what the code reads."""

from __future__ import annotations

import re
from pathlib import Path

from neumann.cli.main import main
from neumann.studies.plan import load_study

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", README, flags=re.DOTALL)


def test_the_study_in_the_readme_can_be_planned(capsys) -> None:
    (text,) = (block for block in blocks("yaml") if "comparisons:" in block)
    folder = Path("experiments/mine")
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(text)
    study = load_study("mine")
    assert len(study.tuning()) == 2 * 3 * 2
    assert len(study.evaluation_seeds) == 5
    assert main(["study", "mine", "--plan"]) == 0
    assert "to train: 12 runs and up to 10 evaluation runs" in " ".join(capsys.readouterr().out.split())
