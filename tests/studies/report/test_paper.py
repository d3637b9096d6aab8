"""What a report has for a paper: tables in LaTeX, and the paragraph on methods."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from neumann.studies.report.latex import latex, latex_tables
from neumann.studies.report.methods import methods
from neumann.studies.report.tables import main_lines
from neumann.studies.results import RunEntry, StudyResults
from tests.support.fake_results import study


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("50 % of $x_1$ & {y} #3", r"50 \% of \$x\_1\$ \& \{y\} \#3"),
        (r"a\b ~ ^ < > |", r"a\textbackslash{}b \textasciitilde{} \textasciicircum{} \textless{} \textgreater{} \textbar{}"),
        ("α = β = 0, −0.3 ×2 ± 1 – †‡", r"\ensuremath{\alpha} = \ensuremath{\beta} = 0, \ensuremath{-}0.3 \ensuremath{\times}2 \ensuremath{\pm} 1 -- \dag{}\ddag{}"),
        ("Λ Α λ ο", r"\ensuremath{\Lambda} A \ensuremath{\lambda} o"),
        ("naïve 最", "naïve 最"),
        ("a\nb\x1b[0m", "a b[0m"),
    ],
)  # fmt: skip
def test_any_text_is_shown_as_it_is(text: str, written: str) -> None:
    assert latex(text) == written


def test_every_table_is_whole() -> None:
    results = study()
    text = latex_tables(results)
    environments = re.findall(r"\\begin\{table\}(.*?)\\end\{table\}", text, re.DOTALL)
    assert len(environments) == 4 + bool(results.target and any(row.to_target for row in results.rows))
    assert re.findall(r"\\label\{(.*?)\}", text)[0] == "tab:table4-claims"
    for one in environments:
        (columns,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", one)
        lines = [line for line in one.splitlines() if line.endswith(r"\\")]
        assert lines
        for line in lines:
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1, line
        bare = re.sub(r"\\[\\{}$&#%_]", "", one)
        assert bare.count("{") == bare.count("}")
        assert not re.search(r"[$#%_~^]", re.sub(r"\\caption|\\label\{.*?\}", "", bare).replace("~", "")), one
    for line in main_lines(results):
        assert latex(line.label) in text


def test_the_file_needs_no_row_that_is_over() -> None:
    assert r"\toprule" in latex_tables(study(tuned=False))


def sentences(results: StudyResults) -> str:
    return "\n".join(methods(results))


def test_methods_say_what_was_done() -> None:
    said = sentences(study())
    for part in (
        "on CIFAR-10, 45,000 training images.",
        "Training lasted 30 epochs.",
        "All runs have model=timm, model.name=resnet20, data=cifar10,",
        "Each row had 6 trials: optimizer.lr from {0.01, 0.03, 0.1, 0.3, 1, 3}",
        "lowest mean validation error over 3 seeds was chosen",
        "with 10 seeds that no choice had seen",
        "is that of Neumann with SGD momentum in test error, paired by seed, with a smallest effect of interest of 0.20",
        "by Holm's method",
    ):
        assert part in said, part
    assert "have no result" not in said


def test_methods_say_what_went_wrong() -> None:
    results = study()
    lost: tuple[RunEntry, ...] = tuple(
        replace(run, status="diverged") if run.role == "evaluation" and run.seed == 10 else run for run in results.runs
    )
    count = sum(run.status == "diverged" for run in lost if run.role == "evaluation")
    assert f"{count} of the runs that evaluated diverged" in sentences(replace(results, runs=lost))
    assert "have no result" in sentences(study(finished=4))


def test_methods_of_a_grid_and_of_a_pilot() -> None:
    said = sentences(replace(study(), grid=True, tuning_seeds=(), pilot=True))
    assert (
        "Every one of 10 seeds of initialisation and data order trained all of them and chose its own setting" in said
    )
    assert "This is a pilot, which has no verdicts." in said
    assert "Holm" not in said
