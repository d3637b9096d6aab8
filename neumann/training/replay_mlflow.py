"""A run replayed to MLflow, from its own files: one run of an experiment, with the metric names that it has on W&B."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from neumann.errors import UserError, first_line
from neumann.network import why_unreachable
from neumann.store import confusion, per_image, steps
from neumann.store.records import flat
from neumann.store.scores import is_number
from neumann.training.mirror_rows import AXES, SECONDS, Recorded, place_of

T = TypeVar("T")
TAG = "neumann.run"  # of an MLflow run: SIGNATURE-ATTEMPT
AT_ONCE = {"metrics": 1000, "params": 100}  # as many as MLflow's server takes
LONGEST = 500  # characters of a parameter's value that every store of MLflow's takes
ENDED = {"finished": "FINISHED", "diverged": "FINISHED", "interrupted": "KILLED"}
ARTIFACTS = (
    *("config.yaml", "provenance.json", "measurements.jsonl", "result.json", "error.txt"),
    *(steps.STEPS.file, steps.TERMS.file, per_image.FILE, confusion.FILE),
)


def connect(uri: str | None) -> Any:
    """Return MLflow's client of the store at ``uri``: a server's address, or a folder.

    Without one it is $MLFLOW_TRACKING_URI, or else ./mlruns. A database needs the whole package mlflow; the small one
    of `neumann[mlflow]` has folders and servers. Raises UserError where the package is missing or takes no such store.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before the import: it would report its use
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise UserError(
            "--to mlflow needs the package mlflow-skinny or mlflow, and neither is installed: "
            "pip install 'neumann[mlflow]'"
        ) from None
    store = uri or os.environ.get("MLFLOW_TRACKING_URI") or "mlruns"
    if "://" not in store or store.startswith("file:"):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3.17 asks for this word beside the folder
    if store.startswith(("http://", "https://")) and (why := why_unreachable(store)) is not None:
        raise UserError(f"--tracking-uri {store}: {why}")
    try:
        return MlflowClient(tracking_uri=store)
    except MlflowException as error:
        more = " (pip install mlflow)" if "://" in store and not store.startswith(("http", "file:")) else ""
        raise UserError(f"MLflow cannot use the store {store}{more}: {first_line(error)}") from error


def replay(run: Recorded, client: Any, experiment: str) -> list[str]:
    """Log ``run`` as one run of ``experiment``, which is made where it is missing, and return sentences on it.

    Raises UserError where the experiment has this attempt at the run already, and where MLflow refuses something.
    """
    from mlflow.exceptions import MlflowException

    try:
        return _logged(run, client, experiment)
    except (MlflowException, OSError) as error:
        raise UserError(f"MLflow refuses it ({first_line(error)})") from error


def _logged(run: Recorded, client: Any, experiment: str) -> list[str]:
    from mlflow.entities import Metric, Param

    described = run.described
    found = client.get_experiment_by_name(experiment)
    place = client.create_experiment(experiment) if found is None else found.experiment_id
    there = client.search_runs([place], f"tags.`{TAG}` = '{described.id}'", max_results=1)
    if there:
        raise UserError(
            f"the experiment {experiment} has {described.id} already, as its run {there[0].info.run_id}: nothing is "
            "doubled; remove that one, or give another --experiment-name"
        )
    began = described.began or 0.0
    tags = {TAG: described.id, "neumann.study": described.study, "neumann.status": run.status}
    if run.result is not None and (command := described.command()) is not None:
        tags["neumann.command"] = command
    made = client.create_run(place, start_time=_ms(began), tags=tags, run_name=described.name).info.run_id
    try:
        metrics, seconds = [], 0.0
        for row in run.rows:
            seconds = row.get(SECONDS, seconds)
            metrics += [
                Metric(name, value, _ms(began + seconds), place_of(name, row))
                for name, value in row.items()
                if name not in AXES
            ]
        last, beside = int(run.rows[-1]["step"]), {metric.key for metric in metrics} | set(AXES)
        metrics += [
            Metric(name, float(value), _ms(began + seconds), last)
            for name, value in run.summary.items()
            if is_number(value) and name not in beside
        ]
        params = [Param(key, str(value)[:LONGEST]) for key, value in flat(described.config)]
        for some in _parts(metrics, AT_ONCE["metrics"]):
            client.log_batch(made, metrics=some)
        for few in _parts(params, AT_ONCE["params"]):
            client.log_batch(made, params=few)
        for path in _artifacts(run.folder.path):
            client.log_artifact(made, str(path))
        client.set_terminated(made, ENDED.get(run.status, "FAILED"), end_time=_ms(began + seconds))
    except BaseException:
        client.delete_run(made)  # else a second try would be refused
        raise
    return [f"MLflow run {made} of the experiment {experiment}, tagged {TAG}={described.id}"]


def _artifacts(folder: Path) -> list[Path]:
    """Return the files that are kept with the run; no link of another user's leads out of the folder."""
    return [path for name in ARTIFACTS if (path := folder / name).is_file() and not path.is_symlink()]


def _parts(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for begin in range(0, len(values), size):
        yield values[begin : begin + size]


def _ms(seconds: float) -> int:
    return int(1000 * seconds)
