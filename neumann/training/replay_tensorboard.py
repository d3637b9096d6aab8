"""A run replayed to TensorBoard, from its own files: event files with the names that it has on W&B."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neumann.errors import UserError
from neumann.store.new_folder import new_folder
from neumann.store.records import flat
from neumann.store.scores import is_number
from neumann.training.mirror_rows import AXES, SECONDS, Recorded, place_of

FOLDER = "tensorboard"  # in the run's folder


def check_installed() -> None:
    """Raise UserError where the package tensorboard is missing."""
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise UserError(
            "--to tensorboard needs the package tensorboard, which is not installed: pip install 'neumann[tensorboard]'"
        ) from None


def replay(run: Recorded, *, logdir: Path | None) -> list[str]:
    """Write ``run`` as event files to a new folder and return sentences on what there is now.

    Args:
        run: the run.
        logdir: TensorBoard's folder, in which the run gets STUDY/NAME-SIGNATURE; None: the run's own folder.

    Raises:
        UserError: there is such a folder already, or it cannot be written.
    """
    from torch.utils.tensorboard import SummaryWriter

    path, described = run.folder.path, run.described
    home = f"{described.study}/{path.resolve().name}"
    to = path / FOLDER if logdir is None else logdir / home
    began = described.began
    with new_folder(to, option="--logdir") as folder, SummaryWriter(str(folder)) as writer:
        seconds = 0.0
        for row in run.rows:
            seconds = row.get(SECONDS, seconds)
            for name, value in row.items():
                if name not in AXES:
                    wall = None if began is None else began + seconds
                    writer.add_scalar(name, value, place_of(name, row), wall)
        beside = {name for row in run.rows for name in row}  # the last values of these are there already
        scores = {name: value for name, value in run.summary.items() if is_number(value) and name not in beside}
        settings = {key: _setting(value) for key, value in flat(described.config)}
        writer.add_hparams(settings, scores, run_name=".", global_step=int(run.rows[-1]["step"]))
        command = described.command() if run.result is not None else None
        for name, text in (("status", run.status), ("signature", described.signature), ("command", command)):
            if text is not None:
                writer.add_text(name, text)
    return [f"event files in {to}", f"tensorboard --logdir {to.parent if logdir is None else logdir} shows them"]


def _setting(value: Any) -> bool | int | float | str:
    """Return a value of a configuration as a hyperparameter of TensorBoard."""
    return "null" if value is None else value if isinstance(value, bool | int | float | str) else str(value)
