"""Reader of the binary files that W&B's client writes offline."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from typing import Any

from neumann.store import RunFolder


def records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a .wandb file: LevelDB's log format after a header of 7 bytes."""
    block, place, parts = 32768, 7, b""
    while place + 7 <= len(data):
        if block - place % block < 7:  # a block's tail too short for a record header
            place += block - place % block
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # full, or last
            yield parts
            parts = b""


def read_offline(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the runs of a folder's offline files, once W&B's service has written them to their end."""
    deadline = time.monotonic() + 20
    while True:
        runs = _read_offline(folder)
        if all("id" in run and run["exit"] is not None for run in runs) or time.monotonic() > deadline:
            return runs
        time.sleep(0.1)


def _read_offline(folder: RunFolder) -> list[dict[str, Any]]:
    from wandb.proto import wandb_internal_pb2 as pb

    runs = []
    for path in sorted(folder.path.glob("wandb/offline-run-*/*.wandb")):
        run: dict[str, Any] = {"history": [], "summary": {}, "config": {}, "metrics": {}, "exit": None}
        for data in records(path.read_bytes()):
            record = pb.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run |= {"id": record.run.run_id, "group": record.run.run_group, "job_type": record.run.job_type}
                run |= {"name": record.run.display_name, "project": record.run.project, "tags": list(record.run.tags)}
                run["config"] |= {u.key: json.loads(u.value_json) for u in record.run.config.update}
            elif kind == "config":
                run["config"] |= {
                    "/".join(u.nested_key) or u.key: json.loads(u.value_json) for u in record.config.update
                }
            elif kind == "history":
                run["history"].append(
                    {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                )
            elif kind == "summary":
                run["summary"] |= {
                    "/".join(u.nested_key) or u.key: json.loads(u.value_json) for u in record.summary.update
                }
            elif kind == "metric":
                run["metrics"][record.metric.name or record.metric.glob_name] = record.metric.step_metric
            elif kind == "exit":
                run["exit"] = record.exit.exit_code
        runs.append(run)
    return runs
