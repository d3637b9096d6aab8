"""Local files of weights that a model starts from: what is in them is signed, as the images are.

``model.checkpoint`` names one, or the run that wrote it. timm loads such a file for ``model.kwargs.checkpoint_path``,
and with ``model.kwargs.pretrained`` for the ``file`` or a ``file://`` address of ``pretrained_cfg`` and
``pretrained_cfg_overlay``. A digest is kept in the cache under the file's size and times, so that a large file is read
once.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from neumann.cache_folder import cache_folder
from neumann.data import cache
from neumann.errors import UserError
from neumann.folders import folder_of

FILES = ("eval-weights.pt", "model.safetensors")  # of a run's folder, and of one that it was exported to


def weights_file(checkpoint: str, output: str) -> str:
    """Return the path of the file that ``model.checkpoint`` means.

    It is a file, a folder that holds one of `FILES`, or the name or the signature of a run below ``output``.

    Raises UserError where there is none, or several.
    """
    setting, path = f"model.checkpoint={checkpoint}", Path(folder_of("model.checkpoint", checkpoint))
    if not os.path.lexists(path) and checkpoint and "/" not in checkpoint:
        escaped = glob.escape(checkpoint)
        there = sorted(p for p in (*Path(output).glob(f"*/{escaped}"), *Path(output).glob(f"*/*-{escaped}")))
        if len(there) > 1:
            listed = ", ".join(map(str, there[:3]))
            raise UserError(f"{setting} is the name of {len(there)} runs: give the folder of one, such as {listed}")
        if not there:
            raise UserError(f"{setting} is no file, no folder and no run in {output}: neumann runs lists the runs")
        path = there[0]
    if not path.is_dir():
        return str(path)
    for name in FILES:
        if (path / name).exists():
            return str(path / name)
    raise UserError(
        f"{setting}: {path} holds no {' or '.join(FILES)}: the run is not over, has diverged or was trained with "
        "checkpoint=none"
    )


def weights_of(model: Mapping[str, Any]) -> dict[str, str]:
    """Return {key: SHA-256 as hex digits} of each local file that ``model``, a section of a configuration, names.

    Raises UserError where it is not a regular file that can be read.
    """
    return {key: _digest(Path(name).expanduser(), f"{key}={value}") for key, value, name in _files(model)}


def _files(model: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (key, its value, the path that it means)."""
    checkpoint, kwargs = model.get("checkpoint"), model.get("kwargs")
    if isinstance(checkpoint, str):
        yield "model.checkpoint", checkpoint, checkpoint
    if not isinstance(kwargs, Mapping):
        return
    path = kwargs.get("checkpoint_path")
    if isinstance(path, str) and path:
        yield "model.kwargs.checkpoint_path", path, path
    for section in ("pretrained_cfg", "pretrained_cfg_overlay"):
        source = kwargs.get(section)
        for key in ("file", "url") if isinstance(source, Mapping) else ():
            value = source.get(key)  # type: ignore[union-attr]
            if isinstance(value, str) and value:
                if key == "file":
                    yield f"model.kwargs.{section}.{key}", value, value
                elif value.startswith("file:"):
                    yield f"model.kwargs.{section}.{key}", value, url2pathname(urlsplit(value).path)


def _digest(path: Path, setting: str) -> str:
    try:
        state = os.stat(path)
        if not path.is_file():
            raise UserError(f"{setting} is not a file")
        about = {"path": os.path.realpath(path), "size": state.st_size, "times": [state.st_mtime_ns, state.st_ctime_ns]}
        kept = cache_folder() / "weights" / f"{hashlib.sha256(str(about['path']).encode()).hexdigest()[:24]}.json"
        with cache.lock(kept):
            try:
                known = json.loads(kept.read_text())
                if {key: known[key] for key in about} == about:
                    return str(known["sha256"])
            except (OSError, ValueError, KeyError, TypeError):
                pass
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            cache.write(kept, lambda place: place.write_text(json.dumps({**about, "sha256": found})))
        return found
    except OSError as error:
        raise UserError(f"{setting}: the file cannot be read ({(error.strerror or str(error)).lower()})") from error
