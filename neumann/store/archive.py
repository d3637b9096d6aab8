"""Archives: the records of finished runs in one small file that is committed beside a study.

An archive is gzipped JSON lines: an object for each run, with what its folder says of configuration, result,
measurements and provenance, and no weights. `zcat` shows it, and pandas reads it (`read_json(file, lines=True)`). It
comes from another machine: its lines are read as plain data within bounds, nothing in it is executed, and a run whose
digests do not fit is left out.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neumann.config.signature import sign
from neumann.errors import UserError, first_line
from neumann.store.files import plain, read_file, replace_file, require_absent
from neumann.store.folder import RunFolder, is_measurement, is_untested, sound_result
from neumann.store.records import RUN
from neumann.store.steps import TERMS, are_those_of
from neumann.store.vouching import CURVE, DIGEST, has_curve, is_edited, sealed

NAME = "runs.jsonl.gz"
FORMAT = 1
LARGEST = 2**26  # bytes of the file; 2,000 runs of 50 evaluations take about 10 million
UNPACKED = 2**28  # bytes of all its lines; a bomb of a few kilobytes could stand for any number
LINE = 2**24  # bytes of one run; 10,000 evaluations take about 10 million
MOST = 2**16  # runs
WHOLE = {"status", "signature", "step", "validation", "test", "eval_point", "train_seconds"}  # what a result must have


@dataclass(frozen=True)
class ArchivedRun:
    """One finished run of an archive, in the words of `RunFolder` as far as reading goes.

    ``path`` is that of the folder that it would have here; in an archive, its name alone. ``signed`` is what its
    signature covers, ``result`` the content of result.json, ``measurements`` that of measurements.jsonl and
    ``records`` the attempts of provenance.json without the names of hosts and of the package's folder. ``digest``
    covers all of them. ``lines`` is the content of terms.jsonl, of a run whose terms were measured.
    """

    path: Path
    signature: str
    signed: Mapping[str, Any]
    result: Mapping[str, Any]
    measurements: Sequence[dict[str, Any]]
    records: Sequence[dict[str, Any]]
    digest: str
    lines: Sequence[dict[str, Any]] = ()

    def below(self, folder: Path) -> ArchivedRun:
        """Return the run as one of the study whose runs are in ``folder``."""
        return replace(self, path=folder / self.path.name)

    def status(self) -> dict[str, Any]:
        """Return how far the run is: ``{"status": ...}``, finished or diverged."""
        return {"status": self.result["status"]}

    def attempts(self) -> list[dict[str, Any]]:
        """Return the provenance record of every attempt, first to last."""
        return list(self.records)

    def curve(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the measurements of the run; they were held against ``result`` when the archive was read."""
        return list(self.measurements)

    def terms(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return what the terms of the run did; none where they were not measured."""
        return list(self.lines)

    def record(self) -> dict[str, Any]:
        """Return the object that stands for the run in a file."""
        return _record(self.path.name, self.signed, self.result, self.measurements, self.records, self.lines)


def _record(
    name: str,
    signed: Mapping[str, Any],
    result: Mapping[str, Any],
    measurements: Sequence[Mapping[str, Any]],
    attempts: Sequence[Mapping[str, Any]],
    terms: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    what = {"signed": signed, "result": result, "measurements": list(measurements), "attempts": list(attempts)}
    if terms:
        what["terms"] = list(terms)
    return sealed(plain({"format": FORMAT, "signature": result["signature"], "name": name, **what}))


def is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two results are of one training, of which one may have been tested later."""
    if one == other:
        return True
    curve = one.get(CURVE)
    return is_untested(one) != is_untested(other) and curve is not None and curve == other.get(CURVE)


def of_folder(folder: RunFolder, signed: Mapping[str, Any], result: Mapping[str, Any]) -> ArchivedRun:
    """Return the finished run in ``folder`` as an archive holds it.

    signed   what its signature covers
    result   the content of its result.json

    Raises UserError where its measurements are not those that the run made, or the lines of its terms.
    """
    attempts = [_without_places(attempt) for attempt in folder.attempts()]
    record = _record(folder.path.name, signed, result, folder.curve(result), attempts, folder.terms(result))
    return _run(json.loads(json.dumps(record))).below(folder.path.parent)


def _without_places(attempt: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of an attempt without the names of machines and folders, which say nothing of a result."""
    kept = {key: value for key, value in attempt.items() if key != "package"}
    if isinstance(host := attempt.get("host"), Mapping):
        kept["host"] = {key: value for key, value in host.items() if key != "name"}
    if isinstance(ranks := attempt.get("ranks"), list):
        kept["ranks"] = [
            {key: value for key, value in rank.items() if key != "host"} for rank in ranks if isinstance(rank, Mapping)
        ]
    return kept


class Archive:
    """The runs of an archive's file, by signature.

    file     its path
    runs     the runs that can be used
    unread   a sentence for each kind of thing in it that cannot: the file is damaged, or runs were edited
    """

    def __init__(self, file: Path, runs: Mapping[str, ArchivedRun], unread: Sequence[str] = ()) -> None:
        self.file, self.runs, self.unread = file, dict(runs), tuple(unread)

    @property
    def digest(self) -> str:
        """Return 16 hex digits over what it holds, whatever the compression has made of it."""
        held = "".join(f"{signature} {self.runs[signature].digest}\n" for signature in sorted(self.runs))
        return hashlib.sha256(held.encode()).hexdigest()[:16]

    @classmethod
    def read(cls, file: Path, named: str | None = None) -> Archive:
        """Return what is in ``file``, nothing where it is missing.

        With ``named`` lines that do not hold this text are passed over: to look for a name or a signature takes a tenth
        of the time that reading all takes.

        Raises UserError where the system refuses to read it.
        """
        try:
            content = read_file(file, LARGEST)
        except FileNotFoundError:
            return cls(file, {})
        except OSError as error:
            require_absent(file, error)
            return cls(file, {}, [f"it cannot be read ({(error.strerror or str(error)).lower()})"])
        wanted = json.dumps(named or "")[1:-1].encode()  # as `packed` writes it
        runs: dict[str, ArchivedRun] = {}
        left_out: dict[str, list[int]] = {}  # {why: lines}
        twice = set()
        count, broken = 0, None
        try:
            for line in _lines(content):
                count += 1
                if wanted not in line:
                    continue
                try:
                    run = _run(_parsed(line))
                    if runs.setdefault(run.signature, run).digest != run.digest:
                        twice.add(run.signature)
                        raise _LeftOut("there twice, with two results")
                except _LeftOut as error:
                    left_out.setdefault(str(error), []).append(count)
        except (EOFError, OSError, ValueError, zlib.error) as error:
            broken = f"it is cut short or damaged after its first {count} runs: {first_line(error)}"
        unread = [
            f"{len(lines)} of its {count} runs {'is' if len(lines) == 1 else 'are'} not used: {why} (line "
            f"{', '.join(map(str, lines[:3]))}{', …' if len(lines) > 3 else ''})"
            for why, lines in left_out.items()
        ]
        kept = {signature: run for signature, run in runs.items() if signature not in twice}
        return cls(file, kept, [*unread, *([broken] if broken else [])])

    def merged(self, runs: Iterable[ArchivedRun]) -> Archive:
        """Return this archive with ``runs``; what is in it stays, but for a run without test scores that now has them.

        Raises UserError where it cannot be read as a whole, since a part of it would be lost, and where it holds one of
        ``runs`` with another result.
        """
        if self.unread:
            raise UserError(f"{self.file}: {self.unread[0]}: put back what was packed, or move the file away")
        added = {run.signature: run for run in runs}
        known = {s: self.runs[s] for s in added if s in self.runs}
        both = [added[s] for s, run in known.items() if not is_same(run.result, added[s].result)]
        if both:
            it, folders = ("it", "that folder") if len(both) == 1 else ("them", "those folders")
            raise UserError(
                f"{self.file} has {len(both)} of these {len(added)} runs as another training left {it}, such as "
                f"{both[0].path}: move {folders} away to keep what is packed, or the archive to pack what is here"
            )
        kept = {s: run for s, run in known.items() if is_untested(added[s].result) or not is_untested(run.result)}
        return Archive(self.file, {**self.runs, **added, **kept})

    def write(self) -> int:
        """Write the file atomically; return its size in bytes. Raises UserError where it would be too large to read."""
        content = packed(run.record() for run in self.runs.values())
        self.file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.file, content)
        return len(content)


def packed(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the file of ``records``; the same ones give the same bytes, in whatever order. Raises UserError."""
    lines = []
    for record in sorted(records, key=lambda one: (one["name"], one["signature"])):  # like runs beside each other
        lines.append(json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n")
    file = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=file, mtime=0) as stream:
        stream.writelines(lines)
    content = file.getvalue()
    longest, total = max(map(len, lines), default=0), sum(map(len, lines))
    if longest > LINE or total > UNPACKED or len(content) > LARGEST or len(lines) > MOST:
        raise UserError(
            f"{len(lines):,} runs of {total:,} bytes, the longest of {longest:,}, are too much for an archive, which "
            f"holds {MOST:,} runs of {UNPACKED:,} bytes, {LINE:,} a run and {LARGEST:,} compressed"
        )
    return content


class _LeftOut(ValueError):  # noqa: N818 - no error of the program
    """A line of an archive is not used; the message says why, as the end of a sentence on such lines."""


def _lines(content: bytes) -> Iterator[bytes]:
    """Yield the lines of a gzip file, within bounds. Raises EOFError, OSError, ValueError or zlib.error for damage."""
    if not content:
        raise EOFError("it is empty")
    total = count = 0
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        while line := file.readline(LINE + 1):
            total, count = total + len(line), count + 1
            if len(line) > LINE:
                raise ValueError(f"a run in it has more than {LINE:,} bytes")
            if total > UNPACKED or count > MOST:
                raise ValueError(f"it holds more than {UNPACKED:,} bytes or {MOST:,} runs")
            yield line


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise _LeftOut("not the lines of an archive") from None
    if not isinstance(record, dict) or type(record.get("format")) is not int:
        raise _LeftOut("not the lines of an archive")
    if record["format"] != FORMAT:
        raise _LeftOut(f"of format {record['format']}, where this version reads {FORMAT}")
    return record


def _refuse(name: str) -> Any:
    raise ValueError(f"JSON has no {name}")


def _run(record: Mapping[str, Any]) -> ArchivedRun:
    """Return the run that ``record`` is. Raises _LeftOut where it is not what was packed."""
    edited = _LeftOut("not what was packed")
    try:
        if DIGEST not in record or is_edited(record):
            raise edited
        name, signature, signed = record["name"], record["signature"], record["signed"]
        result, measurements, attempts = sound_result(record["result"]), record["measurements"], record["attempts"]
        called = RUN.fullmatch(name)
        if called is None or called[2] != signature or {"/", "\0", os.sep} & set(name):
            raise edited
        if not isinstance(signed, dict) or sign(signed) != signature:
            raise edited
        if result is None or not result.keys() >= WHOLE or result["signature"] != signature or is_edited(result):
            raise edited
        if not isinstance(measurements, list) or not all(map(is_measurement, measurements)):
            raise edited
        if not isinstance(attempts, list) or not all(isinstance(attempt, dict) for attempt in attempts):
            raise edited
        terms = record.get("terms", [])
        if not isinstance(terms, list) or not all(map(is_measurement, terms)):
            raise edited
        if not has_curve(result, measurements) or not are_those_of(result, TERMS, terms):
            raise edited
    except (AttributeError, KeyError, TypeError, RecursionError, ValueError) as error:
        raise edited from error
    return ArchivedRun(Path(name), signature, signed, result, measurements, attempts, record[DIGEST], terms)
