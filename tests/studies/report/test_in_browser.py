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
    assert len(reports["all-390"]["drawn"]) == 3
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
