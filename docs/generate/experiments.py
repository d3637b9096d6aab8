"""The page on the paper's experiments, from what the files of `conf/experiment/` say of themselves.

A file of the paper's experiments opens with lines of comment. The first one is a sentence and its command; then
``# Published:`` has the result that the run is to be held against, ``# Printed:`` the settings that the paper prints
and ``# Assumed:`` those that it does not, each list as ``KEY=VALUE (REASON); KEY=VALUE``, and ``# Not reproduced:``
what the run leaves out. A line that goes on begins with ``#   ``. A file that builds on another experiment adds to what
that one says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from neumann.config.yaml_files import read_yaml

ROOT = Path(__file__).resolve().parents[2]
PAPER = {  # folder: what the paper shows there
    "table2": "Table 2: the final top-1 validation error of four models, each by its baseline and by Neumann.",
    "table3": "Table 3: ResNet-50 by Neumann at batches from 1,600 to 32,000.",
    "table4": "Table 4: ResNet-50 at batch 4,000, with and without the two regularizers.",
    "figure1": "Figure 1: training loss and top-1 validation error of Inception-V3 by epoch.",
    "figure2": "Figure 2: top-1 validation error of three further models by epoch.",
    "figure3": "Figure 3: final error against the batch size, and error by epoch at three batch sizes.",
}
OPENING = re.compile(r"# (?P<about>.+): (?P<command>neumann .+)")
SECTIONS = ("Published", "Printed", "Assumed", "Not reproduced")
STATED = re.compile(r"(?P<key>[\w.]+)=(?P<value>[^ ]+)(?: \((?P<reason>.+)\))?")


@dataclass(frozen=True)
class Stated:
    """A setting's value as a file states it, and why it is assumed or what it is; an empty text where it says none."""

    value: str
    reason: str


@dataclass(frozen=True)
class Experiment:
    """What one file says. ``about`` is a sentence, ``published`` the result, ``absent`` what is not reproduced.

    ``printed`` and ``assumed`` are by key.
    """

    name: str
    about: str
    command: str
    published: str = ""
    absent: str = ""
    printed: Mapping[str, Stated] = field(default_factory=dict)
    assumed: Mapping[str, Stated] = field(default_factory=dict)


def read_experiment(folder: Path, name: str) -> Experiment:
    """Return what ``folder``/experiment/``name``.yaml says, with what the experiments say that it builds on.

    Raises ValueError where it does not open with a sentence and its command, or states something in another form.
    """
    path = folder / "experiment" / f"{name}.yaml"
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")]
    opening = OPENING.fullmatch(lines[0])
    if opening is None:
        raise ValueError(f"{path} does not open with a sentence and its command")
    said: dict[str, str] = {}
    section = ""
    for line in lines[1:]:
        if not line.startswith("#"):
            break
        head, _, text = line.removeprefix("# ").partition(": ")
        if head in SECTIONS:
            section = head
            said[section] = text
        elif section and line.startswith("#   "):
            said[section] += f" {line[4:]}"
        else:
            raise ValueError(f"{path}: '{line}' is none of {', '.join(SECTIONS)}")
    printed, assumed = (_stated(path, said.get(kind, "")) for kind in ("Printed", "Assumed"))
    for base in _bases(path):
        other = read_experiment(folder, base)
        own = {*printed, *assumed}
        printed = {**{key: one for key, one in other.printed.items() if key not in own}, **printed}
        assumed = {**{key: one for key, one in other.assumed.items() if key not in own}, **assumed}
        said.setdefault("Not reproduced", other.absent)
    return Experiment(
        name=name,
        about=opening["about"],
        command=opening["command"],
        published=said.get("Published", ""),
        absent=said.get("Not reproduced", ""),
        printed=printed,
        assumed=assumed,
    )


def _bases(path: Path) -> list[str]:
    """Return the experiments that a file builds on."""
    listed = read_yaml(path).get("defaults") or []
    return [item.removeprefix("/experiment/") for item in listed if isinstance(item, str) and "/experiment/" in item]


def _stated(path: Path, text: str) -> dict[str, Stated]:
    """Read ``KEY=VALUE (REASON); KEY=VALUE``."""
    found: dict[str, Stated] = {}
    for part in filter(None, re.split(r"; (?![^(]*\))", text)):
        match = STATED.fullmatch(part)
        if match is None:
            raise ValueError(f"{path}: '{part}' is not KEY=VALUE (REASON)")
        found[match["key"]] = Stated(match["value"], match["reason"] or "")
    return found


def experiments() -> list[Experiment]:
    """Return what every file of conf/experiment/ says. Raises ValueError as `read_experiment` does."""
    folder = ROOT / "conf" / "experiment"
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")]
    return [read_experiment(ROOT / "conf", name) for name in sorted(names, key=_by_number)]


def _by_number(name: str) -> list[tuple[int, str]]:
    """Return a sort key by which batch_4000 comes before batch_16000."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def page() -> str:
    """Return the page as Markdown. Raises ValueError for a folder that `PAPER` does not describe."""
    found = experiments()
    if unknown := {one.name.split("/")[0] for one in found} - set(PAPER):
        raise ValueError(f"conf/experiment has the folders {sorted(unknown)}: describe each in {Path(__file__).name}")
    parts = [
        "# The paper's experiments",
        "Every row of tables 2 to 4 and every curve of figures 1 to 3 is an option of the group `experiment`: "
        f"`{found[0].command}`. This page is generated from the files of `conf/experiment/`. *Printed* settings stand "
        "in the paper; *assumed* ones do not, and each says where it comes from. How to train them, what they cost and "
        "in what every one of them departs from the paper: [repeat the paper's experiments](../how-to/paper.md).",
    ]
    for folder, about in PAPER.items():
        parts += _section(about, [one for one in found if one.name.startswith(f"{folder}/")])
    return "\n\n".join(parts) + "\n"


def _section(about: str, its: Sequence[Experiment]) -> list[str]:
    title, _, text = about.partition(": ")
    rows = [_settings(one) for one in its]
    shared = set.intersection(*(set(row) for row in rows))
    parts = [f"## {title}", text[0].upper() + text[1:]]
    table = "| `experiment=` | what it is | the paper's result | printed | assumed |\n|---|---|---|---|---|"
    for one, row in zip(its, rows, strict=True):
        own = [setting for setting in row if setting not in shared]
        absent = f" Not reproduced: {one.absent}." if one.absent else ""
        cells = [f"`{one.name}`", f"{one.about}.{absent}", one.published, *(_listed(own, k) for k in KINDS)]
        table += "\n| " + " | ".join(_cell(cell) for cell in cells) + " |"
    parts += [table, "In every row:"]
    common = "| setting | value | | |\n|---|---|---|---|"
    for key, value, kind, reason in (setting for setting in rows[0] if setting in shared):
        common += f"\n| `{key}` | `{value}` | {kind} | {_cell(reason)} |"
    return [*parts, common]


KINDS = ("printed", "assumed")


def _settings(one: Experiment) -> list[tuple[str, str, str, str]]:
    """Return (key, value, printed or assumed, reason) of everything that an experiment states."""
    return [
        (key, said.value, kind, said.reason)
        for kind, stated in zip(KINDS, (one.printed, one.assumed), strict=True)
        for key, said in stated.items()
    ]


def _listed(settings: Iterable[tuple[str, str, str, str]], kind: str) -> str:
    return ", ".join(f"`{k}={v}`" + (f" ({why})" if why else "") for k, v, of, why in settings if of == kind)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
