"""Hugging Face's ``datasets``, an extra of the installation: a set from the hub's cache or a folder, as timm loads it.

The network is asked only with data.download=true.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neumann.data import settings
from neumann.data.folder import File
from neumann.errors import UserError, did_you_mean, first_line, printable
from neumann.network import why_unreachable


def load(wanted: settings.Timm) -> Mapping[str, Any]:
    """Return {name of a split: ``datasets.Dataset``}. Raises UserError where the set cannot be had."""
    name = wanted.name.partition("/")[2]
    local = Path(name).expanduser()
    try:
        import datasets
        from huggingface_hub import constants
    except ImportError as error:
        raise UserError(
            f"data.name={wanted.name} is read by Hugging Face's datasets, which is not installed: pip install "
            "'neumann[hfds]'"
        ) from error
    offline, why = datasets.config.HF_HUB_OFFLINE, None
    bars = datasets.are_progress_bars_disabled()
    try:
        if wanted.download and not offline and not local.exists():
            why = why_unreachable(constants.ENDPOINT)
        datasets.config.HF_HUB_OFFLINE = offline or not wanted.download or why is not None
        if not wanted.download:
            datasets.disable_progress_bars()
        root = Path(wanted.root).expanduser() if wanted.root else None
        found = datasets.load_dataset(str(local) if local.exists() else name, cache_dir=root and str(root))
    except Exception as error:  # its readers and its hub client refuse by exceptions of their own
        cause = why or first_line(error.__cause__ or error)
        way = "" if wanted.download or local.exists() else "; data.download=true asks the hub for it"
        raise UserError(f"'{wanted.name}' cannot be loaded ({printable(cause)}){way}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
        if not bars:
            datasets.enable_progress_bars()
    return dict(found)


def undecoded(split: Any, column: str) -> Any:
    """Return ``split`` with its column of images alone, as the bytes that they are stored as."""
    import datasets

    return split.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def rows(split: Any, name: str, of: str, column: str, label: str) -> tuple[list[File], list[int], tuple[str, ...]]:
    """Return a file for each row of ``split``, the rows' labels, and the classes' names, empty where it has none.

    Raises UserError naming the split and the row or the column.
    """
    import datasets
    import pyarrow.compute

    for setting, key in (("input_key", column), ("target_key", label)):
        if key not in split.column_names:
            raise UserError(
                f"split '{name}' of '{of}' has no column '{key}' (data.{setting}): "
                f"{did_you_mean(key, split.column_names)}"
            )
    if not isinstance(split.features[column], datasets.Image):
        raise UserError(f"column '{column}' of '{of}' holds no images: data.input_key names the one that does")
    kind = split.features[label]
    classes = tuple(kind.names) if isinstance(kind, datasets.ClassLabel) else ()
    said = split.select_columns([label]).with_format("arrow")[:][label].to_pylist()
    for row, value in enumerate(said):
        if not isinstance(value, int) or value < 0 or (classes and value >= len(classes)):
            wanted = f"0 to {len(classes) - 1}" if classes else "class numbers from 0 on"
            raise UserError(
                f"row {row} of split '{name}' of '{of}' has the label {value!r:.40}, where labels are {wanted}"
            )
    stored = undecoded(split, column).with_format("arrow")[:][column]  # mapped: nothing of it is read
    sizes = pyarrow.compute.binary_length(pyarrow.compute.struct_field(stored, "bytes")).to_pylist()
    paths = pyarrow.compute.struct_field(stored, "path").to_pylist()
    times = [Path(file["filename"]).stat() for file in split.cache_files]
    mtime, ctime = (max((getattr(time, key) for time in times), default=0) for key in ("st_mtime_ns", "st_ctime_ns"))
    files = []
    for row, (size, path) in enumerate(zip(sizes, paths, strict=True)):
        if size is None and not (path and Path(path).is_file()):
            raise UserError(f"row {row} of split '{name}' of '{of}' has no image")
        files.append(File(f"{name}/{row:08}", Path(path).stat().st_size if size is None else size, mtime, ctime))
    return files, said, classes
