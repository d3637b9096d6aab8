"""The report says what the results say, whatever part of them is there and whatever the labels hold."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from neumann.studies.answer import answer
from neumann.studies.calibration import rates_of
from neumann.studies.numbers import (
    DASH,
    change,
    effect_interval,
    effect_value,
    interval,
    measure,
    p_value,
    percent,
    percentage_points,
    size,
    verdict_text,
)
from neumann.studies.report import csv_files
from neumann.studies.report.content import compared
from neumann.studies.report.csv_files import curves_csv, runs_csv, table_csv
from neumann.studies.report.error_rates import error_rates
from neumann.studies.report.figures.forest import forest_figure
from neumann.studies.report.outcomes import outcomes_csv, target_csv
from neumann.studies.report.page import render
from neumann.studies.report.table_md import markdown_table
from neumann.studies.report.tables import (
    main_lines,
    paper_number,
    print_main_table,
    within,
)
from neumann.studies.report.text import markdown
from neumann.studies.results import StudyResults
from neumann.studies.statistics import summarize
from neumann.studies.verdicts import Margin, decide
from tests.support.fake_results import PROVENANCE, ROWS, Fake, compare, study

pytestmark = pytest.mark.medium

HOSTILE = '<script>alert("1")</script> | $\\frac{ *b*\n=cmd() <b id="x" style="fill: #0072b2">\x00\x1b[31m\udcff'
FEW = (ROWS[0], ROWS[3], ROWS[9])


def hostile() -> StudyResults:
    results = study((replace(ROWS[0], label="=cmd()"), replace(ROWS[9], label=HOSTILE)), seeds=(1, 2, 3))
    run = replace(
        results.runs[0], folder=HOSTILE, message=HOSTILE, overrides=(HOSTILE,), status="failed", signature=HOSTILE
    )
    rows = tuple(replace(row, overrides=(HOSTILE,), edge=HOSTILE, at="<at>") for row in results.rows)
    trial = replace(rows[1].trials[0], setting={"optimizer.lr": 0.1, "=a|b": "-<i>"})
    rows = (rows[0], replace(rows[1], trials=(trial, *rows[1].trials[1:])))
    texts = dict.fromkeys(("name", "title", "question", "budget", "answer", "headline", "incomplete", "data"), HOSTILE)
    return replace(
        results, rows=rows, runs=(run, *results.runs[1:]), limits=(HOSTILE,), recipe=(HOSTILE,), tuned=(HOSTILE,),
        settings={HOSTILE: {HOSTILE: (HOSTILE,), "1": (HOSTILE,)}},
        provenance={HOSTILE: {HOSTILE: (HOSTILE,)}, "torch": {"1": (HOSTILE,), HOSTILE: (HOSTILE,)}}, commands={HOSTILE: HOSTILE}, **texts,
    )  # fmt: skip


def ties() -> StudyResults:
    results = study(FEW[:2], row="nesterov", seeds=(1, 2, 3, 4))
    same = {1: 0.1, 2: 0.2, 3: 0.1, 4: 0.1}
    rows = {row.key: replace(row, errors=same) for row in results.rows}
    comparisons = compare(rows, [("nesterov", "sgd")], ("nesterov", "sgd"))
    return replace(results, rows=tuple(rows.values()), comparisons=comparisons)


def mixed() -> StudyResults:
    """The rows of the primary comparison were trained with different versions of torch."""
    results = study(
        FEW, provenance={**PROVENANCE, "torch": {"2.14": ("SGD momentum",), "2.15": ("Nesterov", "Neumann")}}
    )
    comparisons = tuple(replace(c, unlike=("torch",) if c.primary else ()) for c in results.comparisons)
    rows = tuple(
        replace(row, reference=next((c for c in comparisons if (c.row, c.against) == (row.key, "sgd")), None))
        for row in results.rows
    )
    return replace(results, comparisons=comparisons, rows=rows)


def empty() -> StudyResults:
    """Nothing is known but the plan."""
    results = study(FEW, tuned=False)
    rows = tuple(replace(row, at=None, trials=(), paper=None) for row in results.rows)
    nothing = {"limits": (), "recipe": (), "settings": {}, "tuned": (), "figures": {}, "provenance": {}, "commands": {}}
    return replace(results, rows=rows, comparisons=(), runs=(), paper=None, target=None, **nothing)


STUDIES = {
    "complete": lambda: study(),
    "half": lambda: study(finished=4),
    "untuned": lambda: study(tuned=False),
    "empty": empty,
    "one seed": lambda: study(FEW, seeds=(5,)),
    "ties": ties,
    "mixed": mixed,
    "no paper": lambda: study(FEW, paper=None),
    "hostile": hostile,
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[StudyResults, Path]]:
    out = {}
    for name, build in STUDIES.items():
        results, folder = build(), tmp_path_factory.mktemp("reports") / name
        render(results, folder)
        out[name] = (results, folder)
    return out


class Page(HTMLParser):
    """Every element, whether tags balance, and the text of tables by id of their section."""

    VOID = ("meta", "br", "link", "img", "hr", "input")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.section = ""
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = str(dict(attrs)["id"])
        if tag == "tr":
            self.tables.setdefault(self.section, []).append([])
        if tag in ("td", "th"):
            self.tables[self.section][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        data = data.replace("\N{NO-BREAK SPACE}", " ")
        self.text += data
        if ("td" in self.open or "th" in self.open) and "svg" not in self.open:
            self.tables[self.section][-1][-1] += data


@pytest.fixture(params=STUDIES)
def report(request: pytest.FixtureRequest, reports: dict[str, tuple[StudyResults, Path]]) -> tuple[StudyResults, Path]:
    return reports[request.param]


# ---------------------------------------------------------------------------------------------------------- the page


def test_page_is_sound(report: tuple[StudyResults, Path]) -> None:
    page = Page(report[1] / "report.html")
    assert not page.open
    assert ("html", {"lang": "en"}) in page.elements
    ids = Counter(a["id"] for _, a in page.elements if "id" in a)
    assert set(ids.values()) == {1}
    for tag, attrs in page.elements:
        assert tag not in ("link", "img", "iframe")
        assert not [a for a in attrs if a.startswith("on")]
        for name in ("href", "src", "xlink:href"):
            assert (attrs.get(name) or "#").startswith("#")
            assert (attrs.get(name) or "#")[1:] in ("", *ids)
        for name in re.findall(r"url\(#?([^)]*)\)", " ".join(v or "" for v in attrs.values())):
            assert name in ids
        assert not re.search("#[0-9a-f]{6}", attrs.get("style") or "")  # figures take the page's colours
        if tag == "th":
            assert attrs["scope"] in ("row", "col", "colgroup")
        if tag == "svg":
            assert attrs["role"] == "img"
            assert attrs["aria-label"]
    assert "DejaVu" not in page.source  # figures take the page's font
    style = page.source[: page.source.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in style
    tags = Counter(tag for tag, _ in page.elements)
    assert tags["script"] == 2  # the page's data and its own script
    assert tags["caption"] == tags["table"]
    assert tags["h1"] == 1
    assert not re.search(r"\bnan\b|\binf\b", page.text)
    assert "None" not in page.text


def test_files_are_all_there_and_the_same_again(report: tuple[StudyResults, Path], tmp_path: Path) -> None:
    results, folder = report
    again = render(results, tmp_path)
    names = [
        "report.html",
        "table.md",
        "table.csv",
        "runs.csv",
        "curves.csv",
        "outcomes.csv",
        "tables.tex",
        "methods.md",
    ]
    names += ["target.csv"] if results.target else []
    names += [
        f"{figure}.{kind}" for figure in ("forest", "errors", "curves", "tuning") for kind in ("svg", "png", "pdf")
    ]
    assert [path.name for path in again] == names
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)  # no temporary file is left
    for path in again:
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name
    for figure in ("errors", "curves", "tuning"):
        ElementTree.parse(folder / f"{figure}.svg")
        assert (folder / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
        assert b"/CreationDate" not in (folder / f"{figure}.pdf").read_bytes()


def test_the_answer_comes_first(reports: dict[str, tuple[StudyResults, Path]]) -> None:
    results, folder = reports["half"]
    text = Page(folder / "report.html").text
    order = [
        results.question,
        "This study is not finished",
        results.answer,
        "Margin: smallest effect of interest",
        "Main table",
    ]
    places = [text.rindex(part) if part == "Main table" else text.index(part) for part in order]
    assert places == sorted(places)
    verdict = next(c.verdict for c in results.comparisons if c.primary)
    assert verdict is not None
    assert f"a true difference of {size(verdict.smallest_detectable_effect, results.margin)}" in text
    assert "this budget can miss an effect that matters" in text
    assert "not finished" not in Page(reports["complete"][1] / "report.html").text


def test_where_no_possible_difference_is_detected_none_is_named(
    reports: dict[str, tuple[StudyResults, Path]],
) -> None:
    results, _ = reports["half"]
    c = next(c for c in results.comparisons if c.primary)
    assert c.verdict is not None
    far = replace(c, verdict=replace(c.verdict, smallest_detectable_effect=1.6334))
    seen = compared(results, far)
    assert seen["detectable"] == "more than 100 percentage points"
    assert "no true difference, however large, is detected with a power of 80 %" in seen["sentence"]
    assert seen["sentence"].endswith("This budget can miss every effect.")
    assert "163" not in seen["sentence"]
    rows = [replace(row, reference=far if row.reference else None) for row in results.rows]
    lines = csv.DictReader(io.StringIO(table_csv(replace(results, rows=rows)).decode()))
    assert {line["smallest_detectable_effect"] for line in lines} == {""}


def shown(bounds: str) -> str:
    """An interval stands below its mean, and nothing where there is none."""
    return "" if bounds == DASH else bounds


def test_main_table_is_the_data(reports: dict[str, tuple[StudyResults, Path]]) -> None:
    for name in ("complete", "half", "one seed", "ties"):
        results, folder = reports[name]
        lines = Page(folder / "report.html").tables["table"][2:]
        assert len(lines) == len(results.rows)
        for row, cells in zip(results.rows, lines, strict=True):
            assert row.error is not None
            assert cells[0] == row.label
            assert cells[1] == row.at
            assert cells[2] == f"{row.setting['optimizer.lr']:g}" + ("†" if row.edge else "")  # type: ignore[index]
            assert cells[3:5] == [
                percent(row.error.mean) + shown(interval(row.error.low, row.error.high)),
                percent(row.error.sd),
            ]
            n = str(row.error.n) if row.error.n == row.planned else f"{row.error.n}/{row.planned}"
            assert cells[5] == n + (f"{len(row.diverged)} diverged" if row.diverged else "")
            if row.key == results.reference:
                assert cells[6:9] == [DASH, DASH, "reference"]
                continue
            c = row.reference
            assert c is not None
            assert c.paired is not None
            assert c.verdict is not None
            bounds = DASH if c.paired.diverged else interval(c.paired.low, c.paired.high, percentage_points)
            assert cells[6] == percentage_points(c.paired.mean) + shown(bounds)
            p = c.paired.p if c.primary else c.adjusted
            assert cells[7] == p_value(p) + ("" if p is None and not c.primary else "primary" if c.primary else "Holm")
            assert cells[8] == verdict_text(c.verdict) + within(c).replace(" interval", "")


def test_claims_are_the_data(reports: dict[str, tuple[StudyResults, Path]]) -> None:
    for name in ("complete", "half", "one seed", "ties"):
        results, folder = reports[name]
        lines = Page(folder / "report.html").tables["claims"]
        ordered = sorted(results.comparisons, key=lambda c: not c.primary)
        labels = {row.key: row.label for row in results.rows}
        published = {row.key: row.paper for row in results.rows}
        for c, cells in zip(ordered, lines[1:], strict=False):
            assert cells[0] == f"{labels[c.row]} against {labels[c.against]}" + ("primary" if c.primary else "")
            assert c.verdict is not None
            assert c.effect is not None
            assert cells[1] == verdict_text(c.verdict) + within(c).replace(" interval", "")
            assert cells[2] == effect_value(c.effect) + shown(effect_interval(c.effect))
            assert cells[4] == (str(c.effect.n) if c.effect.n == c.effect.over else f"{c.effect.n}/{c.effect.over}")
            ours, other = published[c.row], published[c.against]
            told = DASH if ours is None or other is None else f"{ours - other:+.2f}".replace("-", "\N{MINUS SIGN}")
            assert cells[7] == told
        apart = lines[1 + len(ordered) :]
        assert apart[0][:2] == ["Row", "Paper, %"]
        rows = [row for row in results.rows if row.paper is not None]
        assert [cells[:2] for cells in apart[1:]] == [[row.label, paper_number(row)] for row in rows]


def test_the_effects_figure_says_every_comparison(reports: dict[str, tuple[StudyResults, Path]]) -> None:
    results, _ = reports["complete"]
    drawing = forest_figure(results)
    assert not drawing.empty
    for c in results.comparisons:
        assert effect_value(c.effect) in drawing.alt
    waiting = replace(results, comparisons=tuple(replace(c, effect=None) for c in results.comparisons))
    assert forest_figure(waiting).empty


def test_the_footer_states_the_error_rates_of_the_design(reports: dict[str, tuple[StudyResults, Path]]) -> None:
    results, folder = reports["complete"]
    known = rates_of("grid" if results.grid else "tuned", "error", results.comparisons[0].effect.n)  # type: ignore[union-attr]
    assert known is not None
    said = error_rates(results)
    assert (
        f"{100 * known.false_positives:.1f} % (Monte-Carlo error {100 * known.error_of(known.false_positives):.1f})"
        in said
    )
    assert f"{100 * known.found:.1f} % (Monte-Carlo error" in said
    assert ("the luck of tuning is not in the interval" in said) == (not results.grid)
    assert said in Page(folder / "report.html").text
    assert error_rates(replace(results, outcome="device_seconds")).endswith("has not been measured.")


def test_comparisons_open_with_the_primary_one(reports: dict[str, tuple[StudyResults, Path]]) -> None:
    results, folder = reports["complete"]
    lines = Page(folder / "report.html").tables["comparisons"][1:]
    assert lines[0][0] == "Neumann minus SGD momentumprimary"
    assert lines[0][4] == DASH  # it stands outside Holm's family
    lines = [line for line in lines if len(line) > 1]
    assert len(lines) == len(results.comparisons)
    for c, cells in zip(sorted(results.comparisons, key=lambda c: not c.primary), lines, strict=True):
        assert c.paired is not None
        assert c.paired.correlation is not None
        n = f"{c.paired.n}/{c.paired.over}" if c.paired.diverged else str(c.paired.n)
        assert cells[1] == n + f"r {c.paired.correlation:.2f}".replace("-", "−")
        t_test = None if c.paired.diverged else c.paired.p
        assert cells[3:6] == [p_value(t_test), p_value(c.adjusted), p_value(c.paired.sign_flip_p)]
        assert cells[6] == f"{c.paired.wins}/{c.paired.ties}/{c.paired.losses}"
    assert (
        "seeds 12, 15 diverged in Neumann, literal pole; p = 0.002 is the sign test's over 10 seeds"
        in Page(folder / "report.html").text
    )


def test_what_went_wrong_is_counted(reports: dict[str, tuple[StudyResults, Path]]) -> None:
    results, folder = reports["complete"]
    page = Page(folder / "report.html")
    literal = next(line for line in page.tables["failures"] if line[0].startswith("Neumann, literal"))
    assert literal[1:4] == ["8/10", "2", "20 [6, 51]"]
    assert "no longer finite at step 412" in page.text
    finished = tuple(run for run in results.runs if run.status == "finished")
    assert "There are none" not in page.text
    render(replace(results, runs=finished), folder.parent / "fine")
    assert f"There are none: all {len(finished)} runs finished" in Page(folder.parent / "fine" / "report.html").text


def test_mixed_provenance_is_said(reports: dict[str, tuple[StudyResults, Path]]) -> None:
    page = Page(reports["mixed"][1] / "report.html").text
    assert "Mixed torch." in page
    assert "2.14 SGD momentum" in page
    assert "2.15 Nesterov, Neumann" in page
    assert "‡ Neumann: its runs and those of SGD momentum differ in torch, see provenance." in page
    assert "Note: the runs of the two differ in torch." in page
    assert "Neumann ‡" in (reports["mixed"][1] / "table.md").read_text()
    assert "Mixed" not in Page(reports["complete"][1] / "report.html").text


def test_papers_numbers_never_stand_without_their_source(reports: dict[str, tuple[StudyResults, Path]]) -> None:
    assert "Krishnan et al." in Page(reports["complete"][1] / "report.html").text
    without = Page(reports["no paper"][1] / "report.html")
    assert "Paper" not in without.text
    assert len(without.tables["claims"]) == 1 + len(reports["no paper"][0].comparisons)


def test_hostile_text_is_text(reports: dict[str, tuple[StudyResults, Path]]) -> None:
    results, folder = reports["hostile"]
    page = Page(folder / "report.html")
    assert page.text.count('<script>alert("1")</script>') > 10
    assert page.source.count("<script") == 2  # the data and the script of every page
    assert not set(page.source) & {"\x00", "\x1b", "\udcff"}
    labels = [a.get("aria-label", "") for tag, a in page.elements if tag == "svg"]
    assert ["<script>" in str(label) for label in labels] == [True] * 4
    svg = ElementTree.parse(folder / "errors.svg")
    assert any("<script>" in (node.text or "") for node in svg.iter())
    written = (folder / "table.md").read_text()
    tables = [part.splitlines() for part in written.split("\n\n") if part.startswith("|")]
    columns = [{len(re.findall(r"(?<!\\)\|", line)) for line in table} for table in tables]
    assert columns == [{9}, {4}, {11}, {7}, {7}]  # claims, the paper's, the main table, outcomes, what the target took
    assert "<script" not in written
    out = io.StringIO()
    print_main_table(Console(file=out, width=400), results)
    assert '<script>alert("1")</script>' in out.getvalue()
    assert not set(out.getvalue()) & {"\x00", "\x1b", "\udcff"}


# --------------------------------------------------------------------------------------------- Markdown, CSV, terminal


def read(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def test_csv_has_every_number_in_full(report: tuple[StudyResults, Path]) -> None:
    results, folder = report
    table = read((folder / "table.csv").read_bytes())
    assert [line["key"] for line in table] == [row.key for row in results.rows]
    for row, line in zip(results.rows, table, strict=True):
        assert line["test_error_mean"] == ("" if row.error is None else repr(row.error.mean))
        assert line["paper_error"] == ("" if row.paper is None else repr(round(row.paper / 100, 12)))
        c = row.reference
        assert line["p_holm"] == ("" if c is None or c.adjusted is None else repr(c.adjusted))
        assert line["verdict"] == (c.verdict.answer if c and c.verdict else "")
    runs = read((folder / "runs.csv").read_bytes())
    assert len({(line["signature"]) for line in runs}) == len({run.signature for run in results.runs})
    tested = [(line["role"], line["test_error"] != "") for line in runs]
    assert set(tested) <= {("tuning", False), ("evaluation", False), ("evaluation", True)}
    assert tested.count(("evaluation", True)) == sum(len(run.test or ()) for run in results.runs)
    assert {line["role"] for line in runs} == {run.role for run in results.runs}
    curves = read((folder / "curves.csv").read_bytes())
    assert len(curves) == sum(len(row.curve.epochs) for row in results.rows if row.curve)
    for file in ("table.csv", "runs.csv", "curves.csv"):
        cells = [c for line in csv.reader((folder / file).read_text().splitlines()) for c in line]
        assert not [c for c in cells if c.startswith(("=", "@", "+"))]
        assert not [c for c in cells if c.startswith("-") and not re.fullmatch(r"-[\d.e-]+", c)]


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        *[(text, f"'{text}") for text in ("=1+1", "+1+1", "-1+1", "@SUM(A1)", "-x", "-", "\uff1d1", "\uff20A", "\uff0b1", "\uff0d1")],
        *[(text, text) for text in ("-0.1", "+3", "-1e-3", "-.5", "a=1", "'=1")],
        *[("\t=1", "'=1"), (" =1", "'=1"), (-0.1, "-0.1"), (-3, "-3"), (True, "true"), (None, "")],
    ],
)  # fmt: skip
def test_a_cell_is_no_formula_and_a_number_stays_one(text: str | float | None, cell: str) -> None:
    assert csv_files._cell(text) == cell


def test_csv_of_nothing_has_a_header() -> None:
    results = replace(empty(), rows=())
    for write in (table_csv, runs_csv, curves_csv, outcomes_csv, target_csv):
        assert len(write(results).decode().splitlines()) == 1


def test_markdown_and_terminal_say_the_same(reports: dict[str, tuple[StudyResults, Path]]) -> None:
    results, folder = reports["complete"]
    text = (folder / "table.md").read_text()
    assert text == markdown_table(results)
    for part in (
        results.question,
        results.answer,
        "10 seeds",
        "† Adam",
        "percentage points",
        "(Holm)",
        "(primary)",
        "8/10",
    ):
        assert part in text
    out = io.StringIO()
    print_main_table(Console(file=out, width=140), results)
    for row in results.rows:
        assert row.error is not None
        assert row.label in out.getvalue()
        assert percent(row.error.mean) in out.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, None])
def test_the_table_on_a_terminal_loses_nothing(
    width: int | None, reports: dict[str, tuple[StudyResults, Path]]
) -> None:
    results, _ = reports["complete"]
    out = io.StringIO()
    print_main_table(Console(file=out, width=width or 80, force_terminal=width is not None, color_system=None), results)
    text = out.getvalue()
    if width is not None:
        assert max(map(len, text.splitlines())) <= width
    for line, row in zip(main_lines(results), results.rows, strict=True):
        for word in [row.label] if width is None else row.label.split():  # a label is folded between its words
            assert word in text
        assert f"{line.error} ±{line.half}" in text
        assert line.n in text
    assert text.count("undecided") == sum(line.word == "undecided" for line in main_lines(results))


def test_an_interval_that_is_cut_off_is_not_given_by_its_half() -> None:
    (row, other) = (study(FEW[:2], row="nesterov").rows[i] for i in (0, 1))
    cut = replace(row, error=replace(summarize([0.001, 0.0, 0.004]), low=0.0))
    results = replace(study(FEW[:2], row="nesterov"), rows=(cut, other))
    assert [line.half == DASH for line in main_lines(results)] == [True, False]
    out = io.StringIO()
    print_main_table(Console(file=out, width=140), results)
    assert "0.17 [0.00, 0.68]" in out.getvalue()


def test_equivalent_can_be_checked_with_what_is_printed(tmp_path: Path) -> None:
    # the 95 % interval reaches beyond ±0.2, the 90 % one, on which the verdict rests, does not
    results = study(FEW[:2], row="nesterov", seeds=range(5))
    noise = (0.0014, -0.0018, 0.0014, -0.0012, 0.0014)
    rows = {row.key: row for row in results.rows}
    rows["sgd"] = replace(rows["sgd"], errors=dict.fromkeys(range(5), 0.05))
    rows["nesterov"] = replace(rows["nesterov"], errors={seed: 0.05 + d for seed, d in enumerate(noise)})
    comparisons = compare(rows, [("nesterov", "sgd")], ("nesterov", "sgd"))
    rows["nesterov"] = replace(rows["nesterov"], reference=comparisons[0])
    results = replace(results, rows=tuple(rows.values()), comparisons=comparisons)
    effect, verdict = comparisons[0].effect, comparisons[0].verdict
    assert effect is not None
    assert verdict is not None
    assert effect.high is not None
    assert (verdict.answer, effect.high > verdict.margin.size) == ("equivalent", True)
    said = "90 % interval [−0.13, +0.18]"
    page = Page(render(results, tmp_path)[0])
    assert page.text.count(said) == 1  # the facts
    assert page.text.count(said.replace(" interval", "")) == 3  # the claims, the main table, the comparisons
    assert f"equivalent ({markdown(said)})" in (tmp_path / "table.md").read_text()
    (line,) = [one for one in csv.DictReader((tmp_path / "table.csv").open()) if one["key"] == "nesterov"]
    assert (float(line["equivalence_low"]), float(line["equivalence_high"])) == pytest.approx(
        (-0.00129, 0.00177), abs=1e-5
    )
    sentence, headline = answer(comparisons[0], results.rows, results.outcome, grid=False)
    assert f"its {said} lies within the margin" in sentence
    assert f"{said} within the margin of 0.20 percentage points, n = 5" in headline


def judged_on(outcome: str) -> StudyResults:
    """Return the complete study with its verdicts on ``outcome``, against a margin of a tenth."""
    results, margin = study(FEW), Margin(0.1, relative=True)
    comparisons = tuple(
        replace(c, effect=c.effects[outcome], verdict=decide(c.effects[outcome], margin, against_margin=c.primary))
        for c in results.comparisons
    )
    against = {c.row: c for c in comparisons}
    rows = tuple(replace(row, reference=against.get(row.key)) for row in results.rows)
    said, headline = answer(comparisons[0], rows, outcome, grid=False)
    return replace(
        results, outcome=outcome, margin=margin, comparisons=comparisons, rows=rows, answer=said, headline=headline
    )


@pytest.mark.parametrize("outcome", ["error", "steps", "device_seconds"])
def test_verdicts_may_be_on_another_outcome(outcome: str, tmp_path: Path) -> None:
    results = judged_on(outcome)
    page = Page(render(results, tmp_path)[0])
    effect, verdict = results.comparisons[0].effect, results.comparisons[0].verdict
    assert effect is not None
    assert verdict is not None
    said = f"{change(effect.value)}[{change(effect.low)}, {change(effect.high)}]"
    line = next(cells for cells in page.tables["table"] if cells[0].startswith("Neumann"))
    assert line[6] == said
    assert verdict_text(verdict) in line[8]
    assert f"{measure(outcome).capitalize()} against SGD momentum, %" in page.text
    assert f"Verdict on {measure(outcome)}" in page.text
    assert measure(outcome) in results.headline
    assert f"{change(effect.value)} %" in results.headline
    assert f"in {measure(outcome)}" in results.answer


def test_outcomes_stand_side_by_side(reports: dict[str, tuple[StudyResults, Path]]) -> None:
    results, folder = reports["complete"]
    page = Page(folder / "report.html")
    lines = page.tables["outcomes"]
    assert lines[0] == ["Comparison", "Test error, %", "To reach the target, %"]
    assert lines[1] == ["Steps", "Examples", "Gradient evaluations", "Device-seconds"]
    assert lines[2][0] == "Neumann against SGD momentumprimary"
    for column, outcome in enumerate(("error", "steps"), 1):
        effect = results.comparisons[0].effects[outcome]
        assert lines[2][column] == f"{change(effect.value)}[{change(effect.low)}, {change(effect.high)}]"
    literal = next(line for line in lines if line[0].startswith("Neumann, literal"))
    missed = results.row("literal").to_target["steps"]
    assert missed.reached < missed.runs == 10
    assert f"missed {missed.runs - missed.reached} and 0 of 10log-rank p" in literal[2]
    assert "diverged 2 and 0 of 10" in literal[1]
    needed = next(line for line in lines if line[0] == "Neumann, literal pole")
    assert needed[1] == f"{missed.reached}/10"
    assert "evaluations are 350 steps apart, nothing is interpolated" in page.text
    table = read((folder / "outcomes.csv").read_bytes())
    assert len(table) == sum(len(c.effects) for c in results.comparisons)
    apart = {(c.row, c.against): "equal" if c.settings else "chosen" for c in results.comparisons}
    assert all(line["settings"] == apart[line["row"], line["against"]] for line in table)
    first = results.comparisons[0].effects["error"]
    assert (table[0]["outcome"], table[0]["ratio"], table[0]["low_90"]) == ("error", repr(first.value), repr(first.inner_low))  # fmt: skip
    target = read((folder / "target.csv").read_bytes())
    assert [line["reached"] for line in target if (line["row"], line["cost"]) == ("literal", "steps")] == [str(missed.reached)]  # fmt: skip
    assert "| Neumann against SGD momentum |" in (folder / "table.md").read_text()


def test_a_pilot_has_no_verdict(tmp_path: Path) -> None:
    results = study(FEW)
    comparisons = tuple(
        replace(c, verdict=decide(c.effect, results.margin, pilot=True)) for c in results.comparisons if c.effect
    )
    against = {c.row: c for c in comparisons}
    rows = tuple(replace(row, reference=against.get(row.key)) for row in results.rows)
    said, headline = answer(comparisons[0], rows, results.outcome, grid=False)
    results = replace(results, pilot=True, comparisons=comparisons, rows=rows, answer=said, headline=headline)
    text = Page(render(results, tmp_path)[0]).text
    assert said.startswith("A pilot has no verdict. Neumann against SGD momentum: test error −")
    assert headline.startswith("no verdict (pilot), test error −")
    assert " would decide (" in said
    assert "This budget is a pilot, which has no verdicts." in text
    assert {line.verdict for line in main_lines(results)} == {"reference", "no verdict (pilot)"}
    assert {line.p for line in main_lines(results)} == {DASH}
    assert "p =" not in said


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (percent(0.0123), "1.23"), (percent(None), DASH), (percent(float("nan")), DASH), (percent(1.0), "100.00"),
        (percentage_points(-0.0031), "−0.31"), (percentage_points(0.0031), "+0.31"), (percentage_points(-0.00001), "0.00"), (percentage_points(0.0), "0.00"),
        (p_value(0.0341), "0.034"), (p_value(0.00099), "< 0.001"), (p_value(1.0), "1.000"), (p_value(None), DASH),
        (interval(0.01, 0.02), "[1.00, 2.00]"), (interval(None, 0.02), DASH),
        (interval(-0.01, 0.02, percentage_points), "[−1.00, +2.00]"),
    ],
)  # fmt: skip
def test_numbers_are_written_one_way(shown: str, text: str) -> None:
    assert shown == text


# -------------------------------------------------------------------------------------------------------- the figures


def test_figures_show_the_rows_they_are_told(tmp_path: Path) -> None:
    render(study(FEW, figures={"errors": ("sgd", "unknown"), "curves": ("nesterov",)}), tmp_path)
    text = {name: (tmp_path / f"{name}.svg").read_text() for name in ("errors", "curves", "tuning")}
    assert ">SGD momentum<" in text["errors"]
    assert ">Nesterov<" not in text["errors"]
    assert ">Nesterov<" in text["curves"]
    assert ">Neumann<" not in text["curves"]
    assert all(f">{fake.label}<" in text["tuning"] for fake in FEW)  # not named: all rows


def test_figures_take_what_comes(tmp_path: Path) -> None:
    """Zeros, ranges of three decades, settings without a rate, a curve of one point, values that are no numbers."""
    results = study((Fake("sgd", "a", 0.5), Fake("neumann", "b", 60.0), *ROWS[1:3]), seeds=(1, 2), images=300)
    rows = list(results.rows)
    assert rows[0].curve is not None
    curve = {f: v if f == "along" else v[:1] for f, v in vars(rows[0].curve).items()}
    rows[0] = replace(rows[0], errors={1: 0.0, 2: 0.0}, curve=type(rows[0].curve)(**{**curve, "error": (0.0,)}))
    wild = (float("inf"), *(float("nan") for _ in rows[1].curve.loss[1:]))  # type: ignore[union-attr]
    rows[1] = replace(rows[1], curve=replace(rows[1].curve, loss=wild))  # type: ignore[type-var]
    settings = [{"optimizer.name": n, "optimizer.momentum": m} for n in ("x", "y") for m in (0.0, 0.9, 0.99)]
    trials = [replace(t, setting=s) for t, s in zip(rows[2].trials, settings, strict=True)]
    render(replace(results, rows=tuple(rows)), tmp_path / "mixed")
    render(replace(results, rows=(replace(rows[2], trials=tuple(trials), setting=settings[2]),)), tmp_path / "others")
    names = tuple(replace(t, setting={"optimizer.name": f"n{i}"}) for i, t in enumerate(trials))
    render(replace(results, rows=(replace(rows[2], trials=names, setting=None),)), tmp_path / "names")
    wide = tuple(replace(t, setting={"optimizer.lr": 10.0 ** (2 * i - 7)}) for i, t in enumerate(trials))
    render(replace(results, rows=(rows[3], replace(rows[2], trials=wide))), tmp_path / "wide")
    drawn = sorted(tmp_path.glob("*/*.svg"))
    assert len(drawn) == 4 * 4
    for file in drawn:
        ElementTree.parse(file)


def test_importing_draws_nothing() -> None:
    code = "import sys, neumann.studies.report.page; print([m for m in ('matplotlib', 'jinja2', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_style_of_the_caller_is_left_alone(tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 33, "svg.fonttype": "path"}):
        render(study(FEW), tmp_path / "a")
        assert matplotlib.rcParams["font.size"] == 33
    render(study(FEW), tmp_path / "b")
    assert (tmp_path / "a" / "errors.svg").read_bytes() == (tmp_path / "b" / "errors.svg").read_bytes()
