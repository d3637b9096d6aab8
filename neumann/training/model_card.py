"""README.md of an exported run: the model card that the Hugging Face Hub shows, and that a person reads."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml  # type: ignore[import-untyped]

from neumann.errors import printable
from neumann.store.code_digests import as_code
from neumann.store.scores import is_number
from neumann.training.trained import Trained

LISTED = 20  # classes that the card lists; config.json has all
BY_TIMM = """\
With timm 1.0.16 or later, and nothing else:

```python
import timm

folder = "."  # this one
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
data = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**data, is_training=False)
names = model.pretrained_cfg["label_names"]
```

From the Hub, `hf-hub:USER/NAME` stands in place of `local-dir:…`."""


def model_card(
    run: Trained, arguments: Mapping[str, Any], *, timm_alone: bool, package: str, words: Sequence[str] | None
) -> str:
    """Return the card in Markdown.

    Args:
        run: the run.
        arguments: what timm makes the network of.
        timm_alone: whether plain timm knows the network.
        package: the module that adds it to timm's registry.
        words: the overrides that train the run again, None where they are not known.
    """
    parts = [
        _front(run),
        f"# {_text(run.folder.resolve().name)}\n\n{_summary(run)}",
        "## Load it\n\n" + (BY_TIMM if timm_alone else _load_by_package(run, arguments, package)),
        f"## Images\n\n{_images(run)}",
        f"## Scores\n\n{_scores(run)}",
        f"## Classes\n\n{_classes(run)}",
        f"## Where it comes from\n\n{_provenance(run, words)}",
    ]
    return "\n\n".join(parts) + "\n"


def _front(run: Trained) -> str:
    """Return the metadata that the Hub reads."""
    error: Any = run.scores().get("error")
    kind = str(run.data.get("kind", "unknown"))
    entry: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "neumann"],
    }
    if is_number(error):
        task = {"type": "image-classification", "name": "Image Classification"}
        metric = {"type": "accuracy", "name": "test accuracy (top-1)", "value": round(1 - error, 6)}
        result = {"task": task, "dataset": {"type": kind, "name": kind}, "metrics": [metric]}
        entry["model-index"] = [{"name": run.folder.resolve().name, "results": [result]}]
    text: str = yaml.safe_dump(entry, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---"


def _summary(run: Trained) -> str:
    height, width = run.image_size
    return (
        f"An image classifier, {_code(run.name)}, of {len(run.class_names)} classes, for images of {height}×{width} "
        f"pixels and {run.channels} channel(s), trained by neumann in {run.result.get('step')} steps. The weights are "
        f"at the point {_code(run.point)}, the optimizer's answer."
    )


def _load_by_package(run: Trained, arguments: Mapping[str, Any], package: str) -> str:
    made = json.dumps({"num_classes": len(run.class_names), **arguments})
    made = made.replace("true", "True").replace("false", "False").replace("null", "None")
    ours = "It needs timm and torch alone: `pip install --no-deps .` in a checkout of neumann is enough. "
    with_it = f"{ours if package.startswith('neumann.') else ''}With that module at hand:"
    return f"""timm does not know {_code(run.name)}: `{package}` adds it to timm's registry. {with_it}

```python
import safetensors.torch
import timm

import {package}

folder = "."  # this one
model = timm.create_model({json.dumps(run.name)}, **{made})
model.load_state_dict(safetensors.torch.load_file(f"{{folder}}/model.safetensors"))
model.eval()
```

config.json beside it has mean, standard deviation, size and class names."""


def _images(run: Trained) -> str:
    height, width = run.image_size
    prepared = (
        f"taken as they are at {height}×{width} pixels; others are scaled until that just fits, and cut in the centre"
        if run.whole
        else f"scaled ({run.interpolation}) until {height}×{width} / {run.crop_pct:g} just fits inside, and cut to "
        f"{height}×{width} in the centre; timm's own transform may round the scaled size to another pixel"
    )
    mode = "grey (Pillow's mode L)" if run.channels == 1 else "RGB"
    return (
        f"Images are {mode}, {prepared}. Pixels are in [0, 1], where 1 is a full pixel; then the mean is subtracted "
        f"and the result divided by the standard deviation, per channel: mean {list(run.mean)}, standard deviation "
        f"{list(run.std)}."
    )


def _scores(run: Trained) -> str:
    lines = ["| split | error | loss (nats) | images | point |", "|---|---|---|---|---|"]
    for split in ("validation", "test"):
        scores = (run.result.get(split) or {}).get(run.point) or {}
        if is_number(scores.get("error")):
            loss = f"{scores['loss']:.4f}" if is_number(scores.get("loss")) else "–"
            lines.append(f"| {split} | {100 * scores['error']:.2f} % | {loss} | {scores.get('n')} | {run.point} |")
    told = run.data.get("test_is")
    after = f" The test split is {_text(told)}." if isinstance(told, str) else ""
    if run.precision != "32-true":
        after += f" They were counted in {_text(run.precision)}; another precision may answer a few images otherwise."
    return "\n".join(lines) + f"\n\nTop-1 error after the last step, not the best of the curve.{after}"


def _classes(run: Trained) -> str:
    names = run.class_names
    listed = ", ".join(f"{i}: {_code(name)}" for i, name in enumerate(names[:LISTED]))
    return listed + (f", and {len(names) - LISTED} more in config.json" if len(names) > LISTED else "")


def _provenance(run: Trained, words: Sequence[str] | None) -> str:
    git = run.attempt.get("git")
    commit = _code(git.get("commit")) if isinstance(git, Mapping) and git.get("commit") else "not known (installed)"
    if isinstance(git, Mapping) and git.get("diff_sha256"):
        commit += f", with changes that were not committed ({_code(git['diff_sha256'])})"
    recorded = run.result.get("code")
    code = [as_code(one) for one in recorded] if isinstance(recorded, list) else []
    digests = "; ".join(", ".join(f"{_code(file)} {_code(digest)}" for file, digest in one.items()) for one in code)
    packages = run.attempt.get("packages")
    versions = packages if isinstance(packages, Mapping) else {}
    rows = {
        "run": f"{_code(run.signature)}",
        "optimizer": _code(_choice(run, "optimizer")),
        "data": f"{_code(run.data.get('kind'))}, {_code(run.data.get('fingerprint'))}, splits "
        f"{_code(run.data.get('split_digest'))}",
        "code": digests or "not recorded",
        "commit": commit,
        "packages": ", ".join(f"{_text(k)} {_text(versions[k])}" for k in ("torch", "timm") if k in versions),
        "device": _text(run.attempt.get("device", "not recorded")),
        "command": _code(shlex.join(["neumann", "train", *words]))
        if words is not None
        else "not known here: the run's config.yaml has every setting",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {said} |" for name, said in rows.items())])


def _choice(run: Trained, group: str) -> Any:
    choices = run.attempt.get("choices")
    return choices.get(group, "–") if isinstance(choices, Mapping) else "–"


def _text(value: object) -> str:
    """Return ``value`` as text that is no markup of Markdown, nor a cell's end; names may be another user's."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|!" else c for c in printable(value))


def _code(value: object) -> str:
    """Return ``value`` as code in Markdown, in a table's cell too."""
    return "`" + printable(value).replace("`", "'").replace("|", "\\|") + "`"
