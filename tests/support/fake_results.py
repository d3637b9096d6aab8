"""Studies that were never run: builders of `StudyResults` with real statistics over invented errors."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from neumann.studies.effects import Way, cost_effect, difference, median, relative
from neumann.studies.results import (
    COSTS,
    ERROR,
    Comparison,
    Curve,
    Paper,
    RowResult,
    RunEntry,
    StudyResults,
    Target,
    TuningTrial,
)
from neumann.studies.statistics import holm, paired, summarize
from neumann.studies.verdicts import Margin, decide

MARGIN = Margin(0.002, relative=False)
PROVENANCE = {
    "commit": {"9f31c0de52a4": ("SGD",)},
    "torch": {"2.15.0": ("SGD",)},
    "device": {"NVIDIA H100 80GB HBM3": ("SGD",)},
    "python": {"3.11.7": ("SGD",)},
    "data": {"content:87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826": ("SGD",)},
    "split": {"ce044f826eb1": ("SGD",)},
}


@dataclass(frozen=True)
class Fake:
    """An invented row: its mean test error in percent, its best rate, and what makes it odd."""

    key: str
    label: str
    error: float
    rate: float = 0.3
    point: str = "eval"
    at: str = "base"
    points: tuple[str, ...] = ("held", "base")
    paper: float | None = None
    diverges: tuple[int, ...] = ()


ROWS = (
    Fake("sgd", "SGD momentum", 8.61, 0.3, at="held", points=("held",), paper=24.3),
    Fake("sgd_average", "SGD, averaged", 8.40, 1.0, "average", "average", ("held", "average")),
    Fake("sgd_burn_in", "SGD with Neumann's burn-in", 8.55, 0.3, at="held", points=("held",)),
    Fake("nesterov", "Nesterov", 8.47, 0.3),
    Fake("nesterov_average", "Nesterov, averaged", 8.33, 1.0, "average", "average", ("held", "base", "average")),
    Fake("nesterov_inner", "Nesterov, rate inside the buffer", 8.44, 0.3),
    Fake("no_regularizers", "Neumann, α = β = 0", 8.38, 0.3, points=("held", "base", "average"), paper=23.5),
    Fake("no_alpha", "Neumann, α = 0", 8.29, 0.3, points=("held", "base", "average")),
    Fake("no_beta", "Neumann, β = 0", 8.39, 0.3, points=("held", "base", "average")),
    Fake("neumann", "Neumann", 8.27, 0.3, points=("held", "base", "average"), paper=23.0),
    Fake("neumann_v", "Neumann at its average v", 8.22, 0.3, "average", "average", ("held", "base", "average")),
    Fake("literal", "Neumann, literal pole", 9.9, 0.1, points=("held", "base", "average"), diverges=(12, 15)),
    Fake("adam", "Adam", 10.4, 0.003, at="held", points=("held",)),
)
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


def study(
    fakes: Sequence[Fake] = ROWS,
    *,
    seeds: Sequence[int] = tuple(range(10, 20)),
    finished: int | None = None,
    tuned: bool = True,
    against: str = "sgd",
    row: str = "neumann",
    images: int = 10_000,
    **changes: Any,
) -> StudyResults:
    """Return a study whose first ``finished`` seeds are there (all by default), and none where ``tuned`` is false."""
    done = tuple(seeds)[: len(seeds) if finished is None else finished] if tuned else ()
    rows = [_row(fake, i, tuple(seeds), done, tuned, images) for i, fake in enumerate(fakes)]
    runs = tuple(entry for fake, r in zip(fakes, rows, strict=True) for entry in _runs(fake, r, seeds, images))
    pairs = [(r.key, against) for r in rows if r.key != against]
    pairs += [("neumann_v", "nesterov_average"), ("neumann", "nesterov_inner")] if len(fakes) > 11 else []
    comparisons = compare({r.key: r for r in rows}, pairs, (row, against))
    rows = [
        replace(r, reference=next((c for c in comparisons if (c.row, c.against) == (r.key, against)), None))
        for r in rows
    ]
    results = StudyResults(
        name="table4",
        title="Table 4 at small scale: is Neumann better than tuned SGD momentum?",
        question="Does Neumann reach a lower test error than SGD momentum, each at its own tuned rate, and how much of it is momentum, restarts or averaging?",
        budget="small: 6 rates × 3 seeds to tune, 10 seeds to compare",
        answer="Neumann errs on 0.34 percentage points fewer test images than tuned SGD momentum. Averaging alone brings SGD most of the way, and Nesterov with an average is not told apart from Neumann at v.",
        headline="Neumann −0.34 percentage points against SGD momentum",
        incomplete=None if done == tuple(seeds) else f"{len(done)} of {len(seeds)} evaluation seeds are trained.",
        data="CIFAR-10, 45,000 training images",
        recipe=("model=timm", "model.name=resnet20", "data=cifar10", "trainer.epochs=30", "timing=relative"),
        settings={"schedule": {"cosine (ramp_steps 15)": ("SGD",)}, "batch size": {"64": ("SGD",)}},
        tuned=("optimizer.lr",),
        tuning_seeds=(0, 1, 2),
        evaluation_seeds=tuple(seeds),
        epochs=(30.0,),
        test_images=(images,),
        validation_images=(5_000,),
        outcome=ERROR,
        margin=MARGIN,
        target=Target(0.09 if done else None, "the median error of SGD on three tuning seeds", "350 steps"),
        pilot=False,
        grid=False,
        reference=against,
        rows=tuple(rows),
        comparisons=comparisons,
        runs=runs,
        paper=Paper("Krishnan et al. 2018, table 4", "top-1 validation error, ResNet-50 on ImageNet, batch 4000, one run each"),
        checks={},
        limits=(
            "One model, one data set, one batch size: nothing here speaks of ImageNet.",
            "Each row is tuned over its rate alone; momentum and weight decay are the recipe's.",
            "Seeds change initialisation, order and augmentation together, not the split of the data.",
        ),
        figures={"curves": tuple(f.key for f in fakes), "errors": tuple(f.key for f in fakes)},
        provenance=PROVENANCE,
        commands={"the whole study": "neumann study table4 budget=small", "its report alone": "neumann report runs/table4"},
    )  # fmt: skip
    return replace(results, **changes)


def compare(
    rows: Mapping[str, RowResult], pairs: Sequence[tuple[str, str]], primary: tuple[str, str]
) -> tuple[Comparison, ...]:
    """Return all comparisons with Holm over the secondary ones."""
    found = {pair: _pair(rows, *pair) for pair in pairs if pair[0] in rows and pair[1] in rows}
    family = holm({f"{a}|{b}": p.p for (a, b), p in found.items() if p and p.p is not None and (a, b) != primary})
    out = []
    for (a, b), pair in sorted(found.items(), key=lambda item: item[0] != primary):
        adjusted = family[f"{a}|{b}"].adjusted if f"{a}|{b}" in family else None
        effect, effects, verdict = None, {}, None
        if pair:
            effect, ways = difference(pair), [_ways(rows[key]) for key in (a, b)]
            verdict = decide(effect, MARGIN, adjusted_p=adjusted, against_margin=(a, b) == primary)
            effects = {ERROR: relative(pair, rows[a].errors, rows[b].errors)}
            effects |= {cost: found for cost in COSTS if (found := cost_effect(*ways, cost)) is not None}
        note = None if pair else "the rows share no finished seed"
        out.append(Comparison(a, b, (a, b) == primary, pair, effect, effects, adjusted, verdict, note))
    return tuple(out)


def _ways(row: RowResult) -> dict[int, Way]:
    """Return invented ways to the target: the higher the error, the longer; the worst runs miss it."""
    found = {}
    for seed, error in row.errors.items():
        steps = 350 * max(1, round(20 + 2000 * (error - 0.08)))
        costs = {"steps": steps, "examples": 128 * steps, "gradient_evaluations": steps, "device_seconds": 0.01 * steps}
        found[seed] = Way(error < 0.095, costs)
    return found | {seed: Way(False, dict.fromkeys(COSTS)) for seed in row.diverged}


def _pair(rows: Mapping[str, RowResult], a: str, b: str) -> Any:
    one, other = rows[a], rows[b]
    if not {*one.errors, *one.diverged} & {*other.errors, *other.diverged}:
        return None
    return paired(one.errors, other.errors, diverged_a=one.diverged, diverged_b=other.diverged)


def _row(fake: Fake, i: int, seeds: tuple[int, ...], done: tuple[int, ...], tuned: bool, images: int) -> RowResult:
    errors, losses, points = {}, {}, {point: [] for point in fake.points}
    for seed in done:
        if seed not in fake.diverges:
            errors[seed] = round(images * _noisy(fake.error, seed, i) / 100) / images
            losses[seed] = 3.1 * errors[seed]
            for k, point in enumerate(fake.points):
                points[point].append(errors[seed] if point == fake.at else errors[seed] + 0.0004 * (1 + k))
    row = RowResult(
        key=fake.key,
        label=fake.label,
        point=fake.point,
        at=fake.at,
        overrides=(f"optimizer={fake.key}", "schedule=synchronous"),
        trials=_trials(fake, i, tuned),
        setting={"optimizer.lr": fake.rate} if tuned else None,
        choices={},
        edge=f"optimizer.lr={fake.rate:g} is the smallest of {len(RATES)} tried" if tuned and fake.rate == 0.003 else None,
        planned=len(seeds),
        errors=errors,
        losses=losses,
        diverged=tuple(s for s in fake.diverges if s in done),
        error=summarize(errors.values()) if errors else None,
        loss=summarize(losses.values()) if losses else None,
        points={point: summarize(values) for point, values in points.items() if values},
        curve=_curve(fake, i, len(errors)) if errors else None,
        reference=None,
        paper=fake.paper,
        mixed=(),
        to_target={},
    )  # fmt: skip
    ways = _ways(row).values()
    return replace(row, to_target={cost: median(ways, cost) for cost in COSTS if ways})


def _noisy(error: float, seed: int, i: int) -> float:
    shared, own = random.Random(seed).gauss(0, 0.12), random.Random(1000 * seed + i).gauss(0, 0.13)
    return error + shared + own


def _trials(fake: Fake, i: int, tuned: bool) -> tuple[TuningTrial, ...]:
    rates = [r / 100 for r in RATES] if fake.key == "adam" else RATES
    if fake.rate < min(rates):
        rates = [fake.rate, *rates]
    rates = [r for r in rates if r >= fake.rate] if fake.key == "adam" else rates
    trials = []
    for rate in rates:
        errors: dict[int, float | None] = {}
        for seed in (0, 1, 2) if tuned else (0,):
            away = math.log10(rate / fake.rate)
            worse = fake.error + 6 * away**2 + 3 * max(away, 0) ** 3
            errors[seed] = (worse + abs(random.Random(seed + 7 * i).gauss(0, 0.2))) / 100
            if rate >= 3 and (fake.key in ("literal", "adam") or seed == 1):
                errors[seed] = None
        whole = tuned and all(e is not None for e in errors.values())
        mean = sum(e for e in errors.values() if e is not None) / 3 if whole else None
        trials.append(
            TuningTrial({"optimizer.lr": rate}, errors, () if tuned else (1, 2), mean, tuned and rate == fake.rate)
        )
    return tuple(trials)


def _curve(fake: Fake, i: int, n: int) -> Curve:
    epochs = tuple(float(e) for e in range(1, 31))
    noise = random.Random(i)
    error = tuple((fake.error + 55 * math.exp(-e / 5) * (1 + noise.gauss(0, 0.06))) / 100 for e in epochs)
    loss = tuple((0.05 + 2.1 * math.exp(-e / 6)) * (1 + noise.gauss(0, 0.04)) * fake.error / 8.5 for e in epochs)
    half = [0.06 * x for x in error], [0.05 * x for x in loss]
    nothing = (None,) * len(epochs)
    bands = [
        tuple(m + sign * h for m, h in zip(mean, halves, strict=True)) if n > 1 else nothing
        for mean, halves in zip((error, loss), half, strict=True)
        for sign in (-1, 1)
    ]
    return Curve(epochs, (n,) * len(epochs), error, bands[0], bands[1], loss, bands[2], bands[3])


def _runs(fake: Fake, row: RowResult, seeds: Sequence[int], images: int) -> list[RunEntry]:
    out = []
    for trial in row.trials:
        for seed in (*trial.errors, *trial.missing):
            error = trial.errors.get(seed)
            status = "pending" if seed in trial.missing else "finished" if error is not None else "diverged"
            out.append(_run(fake, row, "tuning", trial.setting, seed, status, error, images))
    for seed in seeds:
        status = "diverged" if seed in row.diverged else "finished" if seed in row.errors else "pending"
        if row.setting:
            out.append(_run(fake, row, "evaluation", row.setting, seed, status, row.errors.get(seed), images))
    return out


def _run(
    fake: Fake, row: RowResult, role: str, setting: Any, seed: int, status: str, error: Any, images: int
) -> RunEntry:
    signature = f"{random.Random(f'{fake.key}{setting}{seed}{role}').getrandbits(48):012x}"
    scores = (
        {p: {"error": error, "loss": 3 * error, "wrong": images * error, "n": images} for p in fake.points}
        if error
        else None
    )
    over = status in ("finished", "diverged")
    return RunEntry(
        rows=(fake.key,),
        role=role,
        setting=setting,
        seed=seed,
        status=status,
        message="the training loss was no longer finite at step 412" if status == "diverged" else None,
        signature=signature,
        folder=f"runs/table4/cifar10-resnet20-{fake.key}-s{seed}-{signature}",
        overrides=(*row.overrides, f"optimizer.lr={setting['optimizer.lr']:g}", f"seed={seed}"),
        train_seconds=123.4 if over else None,
        validation=scores,
        test=scores if role == "evaluation" else None,
        attempts=({"commit": "9f31c0de52a4"},) if over else (),
    )
