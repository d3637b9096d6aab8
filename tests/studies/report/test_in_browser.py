"""The report in a real browser: no error, no network, no sideways scrolling on a telephone; its tables sort, its curves answer."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neumann.cli.main import main
from neumann.studies.report import page as page_module
from neumann.studies.report.page import render
from tests.support.fake_results import ROWS, study
from tests.support.sweep_folders import put

pytestmark = pytest.mark.medium

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
    "--virtual-time-budget=5000",
]  # fmt: skip
# The page tells its parent how wide it is and what went wrong; a window is never narrower than 500 px, a frame is
PROBE = """<script>
const errors = [];
addEventListener("error", e => errors.push(String(e.message)), true);
addEventListener("load", () => parent.postMessage(JSON.stringify({
  name: NAME, errors, width: innerWidth, body: document.documentElement.scrollWidth,
  loaded: performance.getEntriesByType("resource").map(r => r.name),
  drawn: [...document.querySelectorAll("figure svg")].map(s => s.getBoundingClientRect().height),
  verdicts: [...document.querySelectorAll("th.verdict")].map(t => t.getBoundingClientRect().right),
  tables: [...document.querySelectorAll("table")].map(t => t.getBoundingClientRect().width),
}), "*"));
</script>"""
WIDTHS = (390, 800, 1400)
# What a reader does: sorts, switches a row off, takes another axis, and points at a place of the curves
ACTS = """<script>
const errors = [], said = {};
addEventListener("error", e => errors.push(String(e.message)), true);
addEventListener("load", () => {
  const table = document.querySelector("#table table"), texts = (c) => [...table.tBodies[0].rows].map(r => r.cells[c].textContent);
  const head = [...table.tHead.querySelectorAll("th")].find(t => t.textContent.startsWith("Mean"));
  said.before = texts(0);
  for (const press of ["up", "down", "back"]) {
    head.querySelector("button").click();
    said[press] = [texts(3), head.getAttribute("aria-sort"), texts(0)];
  }
  const chart = document.querySelector("#curves .chart"), svg = chart.querySelector("svg[viewBox]");
  const rows = () => [...svg.querySelectorAll("[data-row]")].map(g => g.dataset.row);
  said.rows = rows();
  const boxes = [...chart.querySelectorAll(".controls")][1].querySelectorAll("input");
  boxes[0].click();
  said.without = rows();
  for (const box of boxes) if (box.checked) box.click();
  said.none = [rows(), svg.textContent];
  for (const box of boxes) box.click();
  const [show, against] = chart.querySelectorAll("select");
  said.axes = [...against.options].map(o => o.value);
  against.value = AXIS;
  against.dispatchEvent(new Event("change"));
  said.label = svg.textContent;
  svg.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true, cancelable: true }));
  said.first = chart.querySelector(".tip").textContent;
  const place = svg.getBoundingClientRect();
  svg.dispatchEvent(new PointerEvent("pointermove", { clientX: place.right - 20, bubbles: true }));
  said.last = chart.querySelector(".tip").textContent;
  show.value = "loss";
  chart.querySelectorAll("input")[1].click();
  show.dispatchEvent(new Event("change"));
  said.logarithmic = rows();
  document.body.innerHTML = "<pre></pre>";
  document.querySelector("pre").textContent = JSON.stringify({ ...said, errors, loaded: performance.getEntriesByType("resource").length });
});
</script>"""
PARENT = """<!doctype html><pre></pre>
<script>addEventListener("message", e => document.querySelector("pre").append(e.data + "\\n"))</script>"""


def sweep(tmp_path: Path) -> Path:
    """Return the page of a sweep with long names, a failed and a diverged run."""
    for optimizer in ("sgd", "neumann"):
        for rate in (0.03, 0.1, 0.3):
            words = (f"optimizer={optimizer}", f"optimizer.lr={rate}", "recipe.label_smoothing=0.1")
            for seed in (0, 1):
                put(*words, seed=seed, error=0.1 + seed / 50, test=0.1)
    put("optimizer=sgd", "optimizer.lr=0.3", seed=2, status="failed")
    put("optimizer=sgd", "optimizer.lr=0.3", seed=3, status="diverged")
    assert main(["report", "--runs", "runs/mine/*", "--to", str(tmp_path / "sweep")]) == 0
    return tmp_path / "sweep" / "report.html"


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_report_in_a_browser(tmp_path: Path) -> None:
    studies = {"all": study(finished=9), "few": study(ROWS[:4]), "untuned": study(tuned=False)}
    frames = ""
    pages = {name: render(results, tmp_path / name)[0] for name, results in studies.items()}
    pages["sweep"] = sweep(tmp_path)
    for name, page in pages.items():
        source = page.read_text(encoding="utf-8")
        for width in WIDTHS:
            probed = tmp_path / f"{name}-{width}.html"
            probe = PROBE.replace("NAME", f'"{probed.stem}"')
            probed.write_text(source.replace("<head>", f"<head>{probe}", 1), encoding="utf-8")
            frames += f'<iframe src="{probed.name}" style="width: {width}px; height: 900px; border: 0"></iframe>'
    (tmp_path / "parent.html").write_text(PARENT + frames, encoding="utf-8")
    done = subprocess.run(
        [str(CHROMIUM), *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1500,1000", "--dump-dom",
         (tmp_path / "parent.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    said = re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert said, done.stderr[-2000:]
    reports = {r["name"]: r for r in map(json.loads, said[1].split("\n")[:-1])}
    assert set(reports) == {f"{name}-{width}" for name in pages for width in WIDTHS}
    for name, report in reports.items():
        assert report["width"] == int(name.split("-")[1])
        assert report["body"] <= report["width"], f"{name} scrolls sideways"
        assert report["errors"] == []
        assert bool(report["verdicts"]) == (not name.startswith("sweep"))
        if report["width"] >= 800 and report["verdicts"]:
            assert max(report["verdicts"]) <= report["width"], f"{name}: the verdict is out of sight"
        assert report["loaded"] == []
        assert len(report["tables"]) >= 5
        assert all(height > 100 for height in report["drawn"])
    assert len(reports["all-390"]["drawn"]) == 4
    assert "CONSOLE" not in done.stderr


def acted(page: Path, axis: str, name: str) -> dict[str, Any]:
    """Return what a reader's `ACTS` found on ``page``."""
    probed = page.with_name(f"{name}.html")
    acts = ACTS.replace("AXIS", f'"{axis}"')
    probed.write_text(page.read_text(encoding="utf-8").replace("<head>", f"<head>{acts}", 1), encoding="utf-8")
    done = subprocess.run(
        [str(CHROMIUM), *QUIET, f"--user-data-dir={page.parent / 'profile'}", "--dump-dom", probed.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = re.findall(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)  # the first is in the script itself
    assert len(found) == 2, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr
    said: dict[str, Any] = json.loads(html.unescape(found[1]))
    assert said["errors"] == []
    assert said["loaded"] == 0
    return said


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_a_reader_sorts_switches_and_points(tmp_path: Path) -> None:
    results = study(ROWS[:5])
    page = render(results, tmp_path / "one")[0]
    said = acted(page, "epochs", "acts")
    means = [row.error.mean for row in results.rows if row.error is not None]
    labels = [row.label for row in results.rows]
    by_error = [label for _, label in sorted(zip(means, labels, strict=True))]
    assert said["before"] == labels
    assert (said["up"][1], said["up"][2]) == ("ascending", by_error)
    assert (said["down"][1], said["down"][2]) == ("descending", by_error[::-1])
    assert (said["back"][1], said["back"][2]) == (None, labels)
    assert said["rows"] == ["0", "1", "2", "3", "4"]
    assert said["without"] == ["1", "2", "3", "4"]
    assert said["none"][0] == []
    assert "Nothing to show" in said["none"][1]
    curve = results.rows[0].curve
    assert curve is not None
    assert said["first"].startswith(
        f"epochs {curve.epochs[0]:g}: SGD momentum {float(f'{100 * curve.error[0]:.3g}'):g}"
    )
    assert said["last"].startswith(f"epochs {curve.epochs[-1]:g}: SGD momentum ")
    assert said["logarithmic"] == said["rows"]


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_curves_have_the_axes_that_their_runs_record(tmp_path: Path) -> None:
    plain = study(ROWS[:3])
    spent = [
        replace(
            row, curve=replace(row.curve, along={"steps": tuple(350.0 * (k + 1) for k in range(len(row.curve.epochs)))})
        )
        for row in plain.rows
        if row.curve is not None
    ]
    said = acted(render(replace(plain, rows=tuple(spent)), tmp_path / "one")[0], "steps", "acts")
    assert said["axes"] == ["epochs", "steps"]
    assert said["label"].endswith("steps")
    assert said["first"].startswith("steps 350: SGD momentum ")


# Tables as the pages have them: signatures that begin with digits, notes glued to numbers, a row with one note for all
TABLES = """<!DOCTYPE html><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody>
<tr><th>0e9abc</th><td>9.0<span class="under">missed 2</span></td></tr>
<tr><th>3a1</th><td colspan="1">10.0<span class="tag">primary</span></td></tr>
<tr><th>12bb</th><td colspan="2">3 seeds are not over</td></tr>
<tr><th>0e1f</th><td>−1.5</td></tr></tbody></table><pre></pre>
<script>const data = null;
SCRIPT
const table = document.querySelector("table"), said = [];
sortable(table);
for (const [column, times] of [[0, 1], [1, 1], [1, 1]]) {
  table.querySelectorAll(".sort")[column].click();
  said.push([...table.tBodies[0].rows].map(row => row.cells[0].textContent));
}
document.querySelector("pre").textContent = JSON.stringify(said);
</script>"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_signatures_are_no_numbers_and_notes_come_last(tmp_path: Path) -> None:
    tables = (Path(page_module.__file__).parent / "report.js").read_text(encoding="utf-8").split("// ---")[1]
    probed = tmp_path / "tables.html"
    probed.write_text(TABLES.replace("SCRIPT", f"// {tables}"), encoding="utf-8")
    done = subprocess.run(
        [str(CHROMIUM), *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", probed.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    by_signature, up, down = json.loads(re.findall(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)[0])
    assert by_signature == ["0e1f", "0e9abc", "12bb", "3a1"]
    assert up == ["0e1f", "0e9abc", "3a1", "12bb"]
    assert down == ["3a1", "0e9abc", "0e1f", "12bb"]


# The colours that a reader sees, of the paper and of what the script draws on it
COLOURS = """<script>
addEventListener("load", () => {
  const seen = (node, what) => getComputedStyle(node)[what];
  const svg = document.querySelector("#curves .chart svg[viewBox]");
  document.body.innerHTML = "<pre></pre>" + JSON.stringify({
    paper: seen(document.body, "backgroundColor"), text: seen(svg.querySelector("text"), "fill"),
    tip: seen(document.querySelector("#curves .tip"), "color"), label: seen(document.querySelector("#curves label"), "color"),
    lines: [...svg.querySelectorAll("[data-row] path[stroke]")].map(p => seen(p, "stroke")),
  }) + "<pre></pre>";
});
</script>"""


def luminance(colour: str) -> float:
    """Return the relative luminance of "rgb(r, g, b)", by WCAG 2."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_what_the_script_draws_is_seen_in_both_colour_schemes(tmp_path: Path, scheme: str) -> None:
    page = render(study(ROWS[:5]), tmp_path / "one")[0]
    page.write_text(page.read_text(encoding="utf-8").replace("<head>", f"<head>{COLOURS}", 1), encoding="utf-8")
    done = subprocess.run(
        [str(CHROMIUM), *QUIET, f"--blink-settings=preferredColorScheme={['dark', 'light'].index(scheme)}",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = re.search(r"<body><pre></pre>(\{.*?\})<pre></pre>", done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    seen = json.loads(html.unescape(found[1]))
    assert (luminance(seen["paper"]) < 0.2) == (scheme == "dark")
    assert all(contrast(seen[text], seen["paper"]) >= 4.5 for text in ("text", "tip", "label"))
    assert len(seen["lines"]) == 5
    assert all(contrast(line, seen["paper"]) >= 3 for line in seen["lines"]), seen
