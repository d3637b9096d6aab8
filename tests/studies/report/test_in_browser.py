"""The report renders in a real browser: no error, no network, and no sideways scrolling on a telephone; verdicts are in sight."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

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
  drawn: [...document.querySelectorAll("svg")].map(s => s.getBoundingClientRect().height),
  verdicts: [...document.querySelectorAll("th.verdict")].map(t => t.getBoundingClientRect().right),
  tables: [...document.querySelectorAll("table")].map(t => t.getBoundingClientRect().width),
}), "*"));
</script>"""
WIDTHS = (390, 800, 1400)
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
