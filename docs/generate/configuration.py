"""The page on configuration groups, from the YAML files of conf/ and sweeps/ themselves."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# group: what an option of it sets
GROUPS = {
    "data": "The images and their three splits.",
    "model": "The network; its inputs and classes are fitted to the data.",
    "optimizer": "The optimizer. The file's keys are the only ones that can be set.",
    "ablation": "Terms removed from an optimizer; one that has no such term refuses the option.",
    "schedule": "The learning rate's schedule, a factor on `optimizer.lr` by step.",
    "timing": "The paper's time scales, in epochs; optimizers and schedules read them as steps.",
    "trainer": "Horizon, evaluation grid, devices and precision of a run.",
    "checkpoint": "The weights that are kept of a finished run.",
    "logger": "The mirror of a run. Nothing is read back from it.",
    "launch": "The launcher that trains the runs of a sweep or a study.",
}
# the meaning of a key that is the same in every file
COMMON = {
    "_target_": "the class or function that is called",
    "kind": "fixed for this option; to change it, choose another option",
}
LINE = re.compile(r"(?P<indent> *)(?P<key>[\w.]+):(?: +(?P<value>[^#\s](?:[^#]|\S#)*?))?(?: +# (?P<comment>.*))?")


@dataclass(frozen=True)
class Setting:
    """A key of a file: its dotted name, its default as the file writes it, and what its comment says."""

    key: str
    default: str
    comment: str


@dataclass(frozen=True)
class Option:
    """A file of a group: what its first line says, the command that line ends with, and its settings."""

    name: str
    sentence: str
    command: str
    settings: tuple[Setting, ...]


def option(path: Path, prefix: str) -> Option:
    """Read a YAML. Raises ValueError where it does not open with a sentence and its command, or has an odd line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    about = next((line for line in lines if line.startswith("# ") and not line.startswith("# @package")), "")
    opening = re.fullmatch(r"# (.+): `?(neumann .+?)`?", about)
    if opening is None:
        raise ValueError(f"{path} does not open with a sentence and its command")
    settings, sections = [], [prefix] if prefix else []
    listed = False  # within a list, such as defaults
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if listed and line.startswith((" ", "-")):
            continue
        match = LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{path} has a line that is no setting: {line}")
        depth = len(match["indent"]) // 2 + (1 if prefix else 0)
        listed = match["key"] == "defaults"
        if listed:
            continue
        sections[depth:] = [match["key"]]
        if match["value"] is not None:
            key = ".".join(sections)
            settings.append(Setting(key, match["value"], match["comment"] or COMMON.get(match["key"], "")))
    return Option(path.stem, opening[1], opening[2], tuple(settings))


def options() -> dict[str, list[Option]]:
    """Return the options of every group. Raises ValueError where conf/ has another group than `GROUPS`."""
    found: dict[str, list[Option]] = {}
    folders = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir() and list(path.glob("*.yaml"))}
    if folders - {"sweeps"} != set(GROUPS):
        raise ValueError(f"conf/ has the groups {sorted(folders)}: describe each in {Path(__file__).name}")
    for group in GROUPS:
        prefix = "optimizer" if group == "ablation" else group
        found[group] = [option(path, prefix) for path in sorted((ROOT / "conf" / group).glob("*.yaml"))]
    return found


def page() -> str:
    """Return the page as Markdown."""
    run = option(ROOT / "conf" / "train.yaml", "")
    parts = [
        "# Configuration",
        "A run is composed from one option of every group and from settings of its own: "
        "`neumann train GROUP=OPTION SECTION.KEY=VALUE`. This page is generated from the files of `conf/`. "
        "`${steps:X}` is X epochs in optimizer steps, `${share:X}` a share of the run in epochs, `${unit:X,N}` and "
        "`${decay:X,G}` are [time scales](../explanation/batches.md#time-scales) in epochs, N and G where X is null, "
        "`???` must be given. "
        "A key that is not listed is refused, with the nearest one that is.",
        "`neumann train --cfg job OVERRIDE ...` prints a configuration with every value filled in, and trains nothing.",
        "## Of every run",
        _table(run.settings),
    ]
    for group, its in options().items():
        parts += [f"## {group}", GROUPS[group]]
        parts.append("| option | what it is | example |\n|---|---|---|")
        parts[-1] += "".join(f"\n| `{o.name}` | {_cell(o.sentence)} | `{o.command}` |" for o in its)
        for one in its:
            if one.settings:
                parts += [f"### {group}={one.name}", _table(one.settings)]
    parts += [
        "## sweeps",
        "Grids and searches for `neumann train -m +sweeps=NAME`: what varies stands under `hydra.sweeper.params`, what "
        "is the same for every run beside it.",
        "| sweep | what it trains | command |\n|---|---|---|",
    ]
    for path in sorted((ROOT / "sweeps").glob("*.yaml")):
        about = path.read_text(encoding="utf-8").splitlines()[1].removeprefix("# ")
        title, _, command = about.rpartition(": ")
        parts[-1] += f"\n| `{path.stem}` | {_cell(title)} | `{command}` |"
    return "\n\n".join(parts) + "\n"


def _table(settings: tuple[Setting, ...]) -> str:
    rows = [f"| `{s.key}` | `{s.default}` | {_cell(s.comment)} |" for s in settings]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
