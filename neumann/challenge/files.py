"""The files of a challenge: a study of the user's optimizer and the baselines, with the runs of the baselines.

A challenge is an ordinary study in ./experiments from then on: `neumann study`, `report` and `runs pack` take it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra.core.override_parser.overrides_parser import OverridesParser

from neumann.config.override_text import parse_override, plain_value
from neumann.config.yaml_files import read_yaml
from neumann.errors import UserError, did_you_mean
from neumann.search.space import listed_values
from neumann.store.archive import NAME as ARCHIVE
from neumann.store.files import replace_file
from neumann.store.folder import make_folder
from neumann.studies.definition import find_study, read_study, settings_of

BASELINES = "baselines"  # the study whose rows and archive every challenge takes
AGAINST = "nesterov"  # the row that the challenger is compared with first
OF_THE_BASELINES = ("Only the rate is tuned", "Device-seconds")  # limits that are not the challenger's
FACTORS = (0.1, 0.3, 1.0, 3.0)  # of the constructor's own rate, where no space is named


@dataclass(frozen=True)
class Challenger:
    """The optimizer that challenges: its dotted ``target``, the ``settings`` of its YAML and the ``space`` to tune.

    ``key`` names its row, its YAML and, after `challenge-`, its study.
    """

    target: str
    key: str
    settings: Mapping[str, Any]
    space: Mapping[str, Sequence[Any]]


def spaced(challenger: Challenger) -> Challenger:
    """Return ``challenger`` with a space: its own, or factors of its own rate.

    Raises UserError where the space holds another number of trials than each baseline had, and where there is none and
    no rate either.
    """
    trials = _trials()
    space = challenger.space
    if not space:
        rate = challenger.settings.get("lr")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or rate <= 0:
            raise UserError(f"{challenger.target} has no rate of its own to begin with: name --space lr=V,V,V,V")
        space = {"lr": [float(f"{factor * rate:.6g}") for factor in FACTORS]}
    for key in space:
        if key not in challenger.settings:
            raise UserError(
                f"--space {key}: {challenger.target} has no such setting: {did_you_mean(key, challenger.settings)}"
            )
    count = len(settings_of(space, None))
    if count != trials:
        trial = "trial" if count == 1 else "trials"
        raise UserError(
            f"--space names {count} {trial}, and each baseline had {trials}: a fair comparison gives yours as many"
        )
    return Challenger(challenger.target, challenger.key, challenger.settings, space)


def _trials() -> int:
    bank = read_study(find_study(BASELINES))
    return len(settings_of(bank.space, None))


def write(
    challenger: Challenger, against: str, kept: Mapping[str, str], cost: Callable[[], Mapping[str, str]]
) -> tuple[Path, Path]:
    """Write the study of ``challenger`` below ./experiments; return its study.yaml and its folder of configurations.

    against   the baseline of the primary comparison
    kept      what was found of its contracts, {name: sentence}, which the report shows
    cost      measures what a step costs, {name: sentence}, which the report shows too

    The same challenge again changes nothing, and measures nothing, unless other contracts are kept. Raises UserError
    where the folder holds another one, and where there is no such baseline.
    """
    bank = find_study(BASELINES)
    study = _study(read_yaml(bank), challenger, against)
    folder = Path("experiments") / f"challenge-{challenger.key}"
    optimizer = {"_target_": challenger.target, **challenger.settings}
    files = {"study.yaml": study, f"conf/optimizer/{challenger.key}.yaml": optimizer}
    for name, content in files.items():
        _refuse_another(folder / name, content)
    known = read_yaml(folder / "study.yaml").get("checks") if (folder / "study.yaml").exists() else None
    if not isinstance(known, dict) or any(known.get(name) != finding for name, finding in kept.items()):
        known = {**kept, **cost()}
    study["checks"] = known
    for name, content in files.items():
        make_folder((folder / name).parent)
        head = f"# Made by: neumann challenge {challenger.target}\n"
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
        replace_file(folder / name, (head + text).encode())
    archive = bank.resolve().parent / "results" / "full" / ARCHIVE
    own = folder / "results" / "full" / ARCHIVE
    if archive.is_file() and not own.exists():
        make_folder(own.parent)
        replace_file(own, archive.read_bytes())
    return folder / "study.yaml", folder / "conf"


def _refuse_another(file: Path, content: Mapping[str, Any]) -> None:
    if not file.exists():
        return
    there = {key: value for key, value in read_yaml(file).items() if key != "checks"}
    wanted = yaml.safe_load(yaml.safe_dump({key: value for key, value in content.items() if key != "checks"}))
    if there != wanted:
        keys = [key for key in {**wanted, **there} if there.get(key) != wanted.get(key)]
        raise UserError(
            f"{file} is of another challenge, it differs in {', '.join(keys)}: name this one with --name, or remove "
            "that folder"
        )


def _study(bank: Mapping[str, Any], challenger: Challenger, against: str) -> dict[str, Any]:
    study: dict[str, Any] = copy.deepcopy(dict(bank))
    rows, key = study["rows"], challenger.key
    if against not in rows:
        raise UserError(f"--against {against} is not a baseline: {did_you_mean(against, rows)}")
    if key in rows:
        raise UserError(f"'{key}' is the name of a baseline: name yours with --name")
    name = challenger.target.rpartition(".")[2]
    label = name if all(row["label"] != name for row in rows.values()) else f"{name} ({challenger.target})"
    space = {f"optimizer.{name}": list(values) for name, values in challenger.space.items()}
    study |= {
        "title": f"{label} against the baselines",
        "question": f"Does {label} reach a lower test error than {rows[against]['label']}?",
        "rows": {key: {"label": label, "overrides": [f"optimizer={key}"], "space": space}, **rows},
        "comparisons": {
            "primary": key,
            "reference": against,
            "margin": study["comparisons"]["margin"],
            "also": [[key, row] for row in rows if row != against],
        },
    }
    study.pop("budgets", None)
    tuned = ", ".join(challenger.space)
    study["limits"] = [limit for limit in study.get("limits", []) if not limit.startswith(OF_THE_BASELINES)] + [
        f"Of the baselines only the rate was tuned, over as many values; their other settings are the defaults of each "
        f"optimizer's YAML. Of {label} {tuned} was chosen, and its other settings are as its file says.",
        "Device-seconds of the baselines are those of the machine that trained them, at its load then: beside those of "
        f"{label} they say nothing of the optimizers.",
    ]
    return study


def as_space(words: Sequence[str]) -> dict[str, list[Any]]:
    """Return {setting: values} of words such as lr=0.1,0.3, each value once.

    Raises UserError for a word that names no list or range of values.
    """
    parser = OverridesParser.create()
    space: dict[str, list[Any]] = {}
    for word in words:
        override = parse_override(parser, word)
        if not override.is_discrete_sweep():
            raise UserError(f"--space {word} names no values to choose from: write lr=0.01,0.03,0.1,0.3")
        key = override.key_or_group.removeprefix("optimizer.")
        space[key] = [plain_value(f"{key}={text}") for text in listed_values(override)]
    return space
