"""The files of `neumann curvature`: what was measured as JSON, and the spectral density as a figure."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neumann.store.code_digests import code_of
from neumann.store.files import plain
from neumann.store.new_folder import new_folder
from neumann.store.provenance import provenance
from neumann.studies.report.figures.density import density_figure


def write(measured: Mapping[str, Any], to: Path) -> dict[str, Any]:
    """Write curvature.json to the new folder ``to``, and density.svg and .png where ``measured`` has a density.

    Returns what curvature.json holds: ``measured``, with code and machine. Raises UserError as `new_folder` does.
    """
    record: dict[str, Any] = plain({**measured, "code": code_of([]), **provenance(), "time": time.time()})
    files = {"curvature.json": (json.dumps(record, indent=2, allow_nan=False) + "\n").encode()}
    if density := measured.get("density"):
        ends = (measured["lambda_min"], measured["lambda_max"])
        figure = density_figure(density["grid"], density["density"], ends, measured["parameters"])
        files |= {"density.svg": figure.svg, "density.png": figure.png}
    with new_folder(to) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
    return record
