"""An archive: what is packed is read again to the bit, and nothing else that may lie in its file is used."""

from __future__ import annotations

import gzip
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neumann.config.signature import sign
from neumann.errors import UserError
from neumann.store import RunFolder, archive
from neumann.store.archive import Archive, ArchivedRun, of_folder, packed
from neumann.store.vouching import CURVE, sealed, with_curve

FILE = Path("results/full/runs.jsonl.gz")


def run(seed: int = 0, error: float = 0.25, study: str = "mine") -> ArchivedRun:
    """Return a finished run whose folder has been written and packed."""
    signed = {"config": {"seed": seed, "optimizer": {"lr": 0.1}}, "results_version": 2}
    folder = RunFolder(Path("runs", study, f"sgd-s{seed}-{sign(signed)}"))
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.measurements.unlink(missing_ok=True)
    scores = {"held": {"error": error, "loss": 1 / 3, "wrong": 1, "n": 4}, "base": {"error": 0.5, "loss": None}}
    line = {"step": 9, "epoch": 1.0, "train_loss": 0.1 + 0.2, "validation": scores}
    folder.append_measurement(line)
    result = {"status": "finished", "signature": sign(signed), "eval_point": "held", "step": 9, "train_seconds": 1.5}
    folder.write_result(sealed(with_curve({**result, "validation": scores, "test": scores}, [line])))
    host = {"name": "secret-host", "cores": 2, "processor": "α"}
    attempt = {
        "attempt": 1,
        "package": "/home/secret-host/neumann",
        "host": host,
        "ranks": [{"host": "secret-host", "device": "cpu"}],
        "step": 0,
    }
    folder.provenance.write_text(json.dumps({"attempts": [attempt]}))
    return of_folder(folder, signed, folder.result() or {})


def write(*records: dict[str, Any] | bytes) -> Archive:
    """Write lines as they are given, and read the file."""
    FILE.parent.mkdir(parents=True, exist_ok=True)
    lines = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in records]
    FILE.write_bytes(gzip.compress(b"\n".join(lines) + b"\n"))
    return Archive.read(FILE)


def resealed(record: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a record with changes that its own digest covers, as a forger would make it."""
    return sealed({**{key: value for key, value in record.items() if key != "digest"}, **changes})


def test_what_is_packed_is_read_again() -> None:
    runs = [run(seed) for seed in range(3)]
    assert Archive(FILE, {}).merged(runs).write() == FILE.stat().st_size
    found = Archive.read(FILE)
    assert found.unread == ()
    assert set(found.runs) == {one.signature for one in runs}
    for one in runs:
        there = found.runs[one.signature]
        assert there.path == Path(one.path.name)
        assert there.below(Path("runs/mine")) == one
        folder = RunFolder(one.path)
        assert there.result == folder.result()
        assert list(there.result["validation"]) == ["held", "base"]  # the order of what is written, which reports keep
        assert there.curve(there.result) == folder.curve(there.result)
        assert there.status() == {"status": "finished"}
    assert found.merged(runs).digest == found.digest


def test_looking_for_one_parses_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [run(seed) for seed in range(5)]
    Archive(FILE, {one.signature: one for one in runs}).write()
    parsed: list[bytes] = []
    real = archive._parsed
    monkeypatch.setattr(archive, "_parsed", lambda line: (parsed.append(line), real(line))[1])
    for wanted in (runs[3].signature[:6], runs[3].path.name):
        parsed.clear()
        assert list(Archive.read(FILE, wanted).runs) == [runs[3].signature]
        assert len(parsed) == 1
    assert Archive.read(FILE, "sgd-ü").runs == {}
    assert len(Archive.read(FILE, None).runs) == 5


def test_it_is_plain_text_for_any_tool_and_names_no_host() -> None:
    Archive(FILE, {}).merged([run(0), run(1)]).write()
    text = gzip.decompress(FILE.read_bytes()).decode()
    first, second = (json.loads(line) for line in text.splitlines())
    assert (first["name"], second["name"]) == (run(0).path.name, run(1).path.name)
    assert first["result"]["test"]["held"]["error"] == 0.25
    assert first["attempts"][0]["host"] == {"cores": 2, "processor": "α"}
    assert first["attempts"][0]["ranks"] == [{"device": "cpu"}]
    assert "secret-host" not in text


def test_the_same_runs_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [run(seed).record() for seed in range(4)]
    before = packed(records)
    monkeypatch.setattr(time, "time", lambda: 1.0)
    assert packed(reversed(records)) == before
    assert before[3:10] == b"\0\0\0\0\0\x02\xff"  # no name, no time, no system


def test_a_missing_file_is_an_empty_archive() -> None:
    found = Archive.read(FILE)
    assert (found.runs, found.unread) == ({}, ())


EDITS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "a digit of the result": lambda r: {**r, "result": {**r["result"], "step": 8}},
    "no digest": lambda r: {key: value for key, value in r.items() if key != "digest"},
    "another's digest": lambda r: {**r, "digest": run(7).record()["digest"]},
    "the result, sealed": lambda r: resealed(r, result={**r["result"], "step": 8}),
    "the curve, sealed": lambda r: resealed(r, measurements=[{**r["measurements"][0], "epoch": 2.0}]),
    "no curve, sealed": lambda r: resealed(r, measurements=[]),
    "the configuration, sealed": lambda r: resealed(r, signed={**r["signed"], "results_version": 3}),
    "another run's result, sealed": lambda r: resealed(r, result=run(7).record()["result"]),
    "a run that is not over": lambda r: resealed(r, result=sealed({**_bare(r["result"]), "status": "running"})),
    "a result without a test": lambda r: resealed(r, result=sealed({k: v for k, v in _bare(r["result"]).items() if k != "test"})),
    "an error that is a word": lambda r: resealed(r, result=sealed({**_bare(r["result"]), "test": {"held": {"error": "low"}}})),
    "a name that leads out": lambda r: resealed(r, name=f"../../etc/x-{r['signature']}"),
    "a name that is absolute": lambda r: resealed(r, name=f"/etc/x-{r['signature']}"),
    "a name of another run": lambda r: resealed(r, name="sgd-s0-0123456789ab"),
    "a name that is none": lambda r: resealed(r, name=3),
    "a signature that is none": lambda r: resealed(r, signature=[1]),
    "attempts that are none": lambda r: resealed(r, attempts={"a": 1}),
    "measurements that are none": lambda r: resealed(r, measurements=None),
    "a configuration that is none": lambda r: resealed(r, signed="x"),
}  # fmt: skip


def _bare(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != "digest"}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_run_that_is_not_what_was_packed_is_told_and_not_used(
    edit: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    good, bad = run(1), edit(run(0).record())
    found = write(good.record(), bad)
    assert list(found.runs) == [good.signature]
    assert found.unread == ("1 of its 2 runs is not used: not what was packed (line 2)",)
    before = FILE.read_bytes()
    with pytest.raises(UserError, match=r"not what was packed.*put back what was packed, or move the file away"):
        found.merged([run(3)])
    assert FILE.read_bytes() == before


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe\x00", b"[1, 2]", b"", b'{"format": true}', b"[" * 100_000, b'{"format": 1' + b"0" * 5000 + b"}", b"null"],
    ids=["bytes", "list", "empty", "no format", "deep", "long number", "null"],
)  # fmt: skip
def test_a_line_that_is_none_is_told(line: bytes) -> None:
    found = write(line, run().record())
    assert list(found.runs) == [run().signature]
    assert found.unread == ("1 of its 2 runs is not used: not the lines of an archive (line 1)",)


@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"1e999"])
def test_a_number_that_no_run_writes_is_told(number: bytes) -> None:
    found = write(json.dumps(run().record()).encode().replace(b"0.25", number))
    assert (found.runs, len(found.unread)) == ({}, 1)


def test_another_version_is_told() -> None:
    found = write(*({**run(seed).record(), "format": 2} for seed in range(5)))
    assert found.runs == {}
    assert found.unread == ("5 of its 5 runs are not used: of format 2, where this version reads 1 (line 1, 2, 3, …)",)


def test_a_run_that_is_there_twice() -> None:
    one, same, other = run(0).record(), run(0).record(), run(0, error=0.5).record()
    assert write(one, same).runs.keys() == {one["signature"]}  # two files, one behind the other
    assert write(one, same).unread == ()
    found = write(one, run(1).record(), other)
    assert found.runs.keys() == {run(1).signature}
    assert found.unread == ("1 of its 3 runs is not used: there twice, with two results (line 3)",)


def test_gzip_files_behind_each_other_are_one() -> None:
    FILE.parent.mkdir(parents=True)
    FILE.write_bytes(packed([run(0).record()]) + packed([run(1).record()]))
    found = Archive.read(FILE)
    assert (len(found.runs), found.unread) == (2, ())


def test_a_file_that_is_cut_short_or_spoilt_gives_whole_runs_alone() -> None:
    runs = {one.signature: one.below(Path()) for one in (run(seed) for seed in range(5))}
    FILE.parent.mkdir(parents=True)
    whole = packed(one.record() for one in runs.values())
    chance = random.Random(0)
    spoilt = [whole[:size] for size in (0, 1, 9, len(whole) // 2, len(whole) - 9, len(whole) - 1)]
    for _ in range(60):
        content = bytearray(whole)
        content[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        spoilt.append(bytes(content))
    told = 0
    for content in spoilt:
        FILE.write_bytes(content)
        found = Archive.read(FILE)
        assert all(runs[signature] == one for signature, one in found.runs.items())
        assert found.unread or len(found.runs) == len(runs)  # nothing is lost in silence
        told += bool(found.unread)
    assert told > 55  # the others are bits of the header that mean nothing


@pytest.mark.parametrize(("bound", "value"), [("LINE", 10_000), ("UNPACKED", 50_000), ("MOST", 10)])
def test_a_bomb_is_not_unpacked(bound: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, bound, value)
    good = run()
    bomb = {"LINE": b"[" * 10**7, "UNPACKED": b"[1]\n" * 10**6, "MOST": b"\n" * 10**6}[bound]
    found = write(good.record(), bomb)
    assert list(found.runs) == [good.signature]
    assert f"{value:,}" in found.unread[-1]
    assert "it is cut short or damaged after its first" in found.unread[-1]


def test_a_large_file_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LARGEST", 100)
    found = write(*(run(seed).record() for seed in range(9)))
    assert (found.runs, found.unread) == ({}, ("it cannot be read (it is larger than 100 bytes)",))


def test_what_could_not_be_read_again_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST", 2)
    with pytest.raises(UserError, match=r"3 runs of .* bytes, .* too much for an archive"):
        Archive(FILE, {}).merged([run(seed) for seed in range(3)]).write()
    assert not FILE.exists()


def test_a_pipe_and_a_folder_are_no_archives() -> None:
    FILE.parent.mkdir(parents=True)
    os.mkfifo(FILE)
    assert Archive.read(FILE).unread == ("it cannot be read (it is not a regular file)",)
    FILE.unlink()
    FILE.mkdir()
    assert len(Archive.read(FILE).unread) == 1


def test_packing_more_loses_nothing() -> None:
    Archive(FILE, {}).merged([run(0), run(1)]).write()
    first = Archive.read(FILE)
    first.merged([run(1), run(2)]).write()
    found = Archive.read(FILE)
    assert found.runs.keys() == {run(seed).signature for seed in range(3)}
    assert {s: found.runs[s] for s in first.runs} == first.runs


def test_another_training_of_a_packed_run_is_refused() -> None:
    Archive(FILE, {}).merged([run(0), run(1)]).write()
    before = FILE.read_bytes()
    with pytest.raises(UserError, match=r"has 1 of these 2 runs as another training left it, such as runs/mine/sgd-s0"):
        Archive.read(FILE).merged([run(0, error=0.5), run(1)])
    assert FILE.read_bytes() == before


def test_a_run_that_was_tested_since_takes_the_place_of_itself() -> None:
    tested = run(0)
    bare = {key: value for key, value in tested.result.items() if key not in ("digest", "train_seconds")}
    folder = RunFolder(tested.path)
    untested = of_folder(folder, tested.signed, sealed({**bare, "test": None, "train_seconds": 1.0}))
    for first, then in ((untested, tested), (tested, untested)):
        found = Archive(FILE, {}).merged([first]).merged([then])
        assert found.runs == {tested.signature: tested}
    other = sealed({**bare, "test": None, "train_seconds": 1.0, CURVE: "0123456789abcdef"})
    with pytest.raises(UserError, match="as another training left it"):
        Archive(FILE, {}).merged([tested]).merged([replace(untested, result=other, digest="another")])


def test_a_kill_while_it_is_written_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Archive(FILE, {}).merged([run(0)]).write()
    before = FILE.read_bytes()

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    for name in ("fsync", "replace"):
        more = Archive.read(FILE).merged([run(1)])
        with monkeypatch.context() as at:
            at.setattr(os, name, killed)
            with pytest.raises(KeyboardInterrupt):
                more.write()
        assert FILE.read_bytes() == before
        assert [path.name for path in FILE.parent.iterdir()] == [FILE.name]


def test_a_run_whose_measurements_were_edited_is_not_packed() -> None:
    one = run()
    folder = RunFolder(one.path)
    assert CURVE in one.result
    folder.measurements.write_text(folder.measurements.read_text().replace("0.25", "0.2"))
    with pytest.raises(UserError, match="is not what the run measured"):
        of_folder(folder, one.signed, one.result)
