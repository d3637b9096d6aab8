"""Digests of the code that trains a run: our package, and the files behind every ``_target_`` of the configuration.

They are recorded with every attempt and not signed: whether an edit changes the result is the user's to say, so a
difference is told and the result stands. A file counts by its bytes, comments included. Installed packages
count by their version, and so do environment variables that change how torch computes.

Nothing is imported to find the files, so a run that is over is answered before torch, and a folder of another user
executes nothing: a module is looked for where Python would look, and its ``import`` statements are read. What a module
imports by other means is not seen.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from neumann.config import RunSpec

OWN = "neumann"
CODE = (".py", ".cpp")
# import names of packages whose versions `neumann.store.provenance` records
VERSIONED = {"torch", "torchvision", "pytorch_lightning", "timm", "hydra", "omegaconf", "wandb", "numpy", "sklearn"}
KNOWN = {OWN, *VERSIONED, *sys.stdlib_module_names}
# the libraries that compute a run's numbers: import names and what they are installed as
LIBRARIES = {
    "torch": "torch",
    "pytorch_lightning": "pytorch-lightning",
    "timm": "timm",
    "numpy": "numpy",
    "PIL": "pillow",
}
# variables of the environment by which these libraries compute in another precision, or by other kernels
NUMERICS = (
    *("ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_WORKSPACE_SIZE", "MKL_CBWR"),
    *("MKL_ENABLE_INSTRUCTIONS", "NCCL_ALGO", "NCCL_PROTO", "NVIDIA_TF32_OVERRIDE", "OPENBLAS_CORETYPE"),
    *("ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA", "DNNL_DEFAULT_FPMATH_MODE", "DNNL_MAX_CPU_ISA"),
    *("PYTORCH_MIOPEN_SUGGEST_NHWC", "PYTORCH_MIOPEN_SUGGEST_NHWC_BATCHNORM", "TIMM_FUSED_ATTN"),
    *("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_BLAS_PREFER_CUBLASLT", "TORCH_BLAS_PREFER_HIPBLASLT"),
    *("TORCH_CUDNN_USE_HEURISTIC_MODE_B", "TORCH_CUDNN_V8_API_DISABLED", "TORCH_LINALG_PREFER_CUSOLVER"),
    *("TORCH_LINALG_PREFER_HIPSOLVER", "TORCH_ROCM_FA_PREFER_CK", "TRITON_F32_DEFAULT"),
)
INSTALLED = {"site-packages", "dist-packages"}
Code = Mapping[str, str]  # {OWN or a file, as its module is called: digest}


def _digest(contents: Iterable[bytes]) -> str:
    made_of = hashlib.sha256()
    for content in contents:
        made_of.update(hashlib.sha256(content).digest())
    return made_of.hexdigest()[:16]


def _of_folder(folder: Path) -> str:
    """Return the digest of all code below ``folder``, names included; links to folders are not followed."""
    files = sorted(Path(at, name) for at, _, names in os.walk(folder) for name in names if name.endswith(CODE))
    return _digest(part for file in files for part in (file.relative_to(folder).as_posix().encode(), _read(file)))


def _read(file: Path | None) -> bytes:
    try:
        return file.read_bytes() if file else b""
    except OSError:
        return b""


# Taken when this module is imported: an edit that comes later is not what this process executes.
OWN_DIGEST = _of_folder(Path(__file__).resolve().parents[1])


def code_of(targets: Iterable[str]) -> dict[str, str]:
    """Return the code that a run of ``targets`` executes, as it is now; one that is not found adds nothing.

    To it belong the versions of `LIBRARIES`, and what of `NUMERICS` is set, under its name after a $.
    """
    importlib.invalidate_caches()
    found = {OWN: OWN_DIGEST, **_libraries()}
    found |= {f"${name}": os.environ[name] for name in NUMERICS if name in os.environ}
    for target in targets:
        found |= _Modules(target).digests()
    return found


def _libraries() -> dict[str, str]:
    """Return the version of each library of `LIBRARIES`, or the digest of one that is imported from another place."""
    found = {}
    for name, distribution in LIBRARIES.items():
        module = _top(name)
        if module is not None:
            found[distribution] = _version(distribution, module)
    return found


def _version(distribution: str, module: _Module) -> str:
    if module.is_installed:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(distribution)
    return _of_package(module)


@functools.cache  # in one process Python does not import another
def _of_package_at(place: str) -> str:
    return _of_folder(Path(place))


def _of_package(module: _Module) -> str:
    return _of_package_at(module.places[0]) if module.places else _digest([_read(module.file)])


def targets_of(config: Mapping[str, Any]) -> list[str]:
    """Return every ``_target_`` in ``config``."""
    return sorted(set(_targets(config)))


def _targets(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, child in value.items():
            if key == "_target_" and isinstance(child, str):
                yield child
            yield from _targets(child)
    elif isinstance(value, list | tuple):
        for child in value:
            yield from _targets(child)


class _Module(NamedTuple):
    name: str  # dotted
    file: Path | None  # None for a package without __init__.py
    places: list[str]  # where a package's modules lie

    @property
    def is_installed(self) -> bool:
        places = [str(self.file)] if self.file else self.places
        return any(INSTALLED & set(Path(place).parts) for place in places)


class _Modules:
    """The modules of the user's that ``target`` leads to, its own and those that they import."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._modules: dict[str, _Module | None] = {}

    def digests(self) -> dict[str, str]:
        """Return their digests by file."""
        name = self._target.partition(".")[0]
        top = self._find(name)
        if name in KNOWN or top is None:
            return {}
        if top.is_installed:  # a package of its own, whose files are not the user's to edit one by one
            return {name: _of_folder(Path(top.places[0])) if top.places else _digest([_read(top.file)])}
        waiting, found = [self._target], dict[str, str]()
        while waiting:
            wanted = waiting.pop()
            found |= self._installed(wanted.partition(".")[0])
            for module in self._chain(wanted):
                assert module.file is not None
                known_as = module.name.replace(".", "/") + ("/__init__" if module.places else "") + module.file.suffix
                if known_as not in found:
                    content = _read(module.file)
                    found[known_as] = _digest([content])
                    waiting += _imports(content, module.name, package=bool(module.places))
        return found

    def _installed(self, name: str) -> dict[str, str]:
        """Return the version of the installed package ``name`` that a module of the user's imports, if it is one."""
        module = None if name in KNOWN else self._find(name)
        return {name: _version(name, module)} if module is not None and module.is_installed else {}

    def _chain(self, name: str) -> list[_Module]:
        """Return the modules of the user's with a file on the way to ``name``, as far as it names modules."""
        found = []
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            module = self._find(".".join(parts[:depth]))
            if module is None or parts[0] in KNOWN or module.is_installed:
                break
            if module.file is not None:
                found.append(module)
        return found

    def _find(self, name: str) -> _Module | None:
        if name not in self._modules:
            self._modules[name] = self._below(name) if "." in name else _top(name)
        return self._modules[name]

    def _below(self, name: str) -> _Module | None:
        """Return the module ``name`` of a package; Python's own search would need the package to be imported."""
        above, _, last = name.rpartition(".")
        package = self._find(above)
        for place in package.places if package else []:
            folder = Path(place, last)
            if (folder / "__init__.py").is_file():
                return _Module(name, folder / "__init__.py", [str(folder)])
            for suffix in (*EXTENSION_SUFFIXES, ".py"):
                if (file := Path(place, last + suffix)).is_file():
                    return _Module(name, file, [])
            if folder.is_dir():
                return _Module(name, None, [str(folder)])
        return None


def _top(name: str) -> _Module | None:
    """Return a module without a dot in its name, found where Python finds it, else in the working directory."""
    try:
        spec = importlib.util.find_spec(name) or PathFinder.find_spec(name, [os.getcwd()])
    except (ImportError, ValueError, OSError):
        return None
    if spec is None:
        return None
    file = Path(spec.origin) if spec.origin and spec.has_location else None
    return _Module(name, file, list(spec.submodule_search_locations or []))


def _imports(content: bytes, module: str, *, package: bool) -> Iterator[str]:
    """Yield the dotted names that the source of ``module`` imports; none where it is not Python's."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            base = parts[: len(parts) - node.level + package] if node.level else []
            above = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{above}.{alias.name}" if above else alias.name for alias in node.names)


# ------------------------------------------------------------------------------------------------ comparing


def contributing(attempts: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the records of those ``attempts`` whose steps are in the run's last state, first to last.

    An attempt that began at the same step as a later one, or behind it, has left nothing: its steps were taken again.
    """
    kept: list[Mapping[str, Any]] = []
    for attempt in reversed(list(attempts)):
        step = attempt.get("step", 0)
        if not kept or (type(step) is int and step < kept[-1].get("step", 0)):
            kept.append({**attempt, "step": step if type(step) is int else 0})
    return kept[::-1]


def codes(attempts: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the distinct codes of ``attempts``, in their order; an attempt without a record of it has none."""
    found: list[dict[str, str]] = []
    for attempt in attempts:
        code = as_code(attempt.get("code"))
        if code and code not in found:
            found.append(code)
    return found


def as_code(value: object) -> dict[str, str]:
    """Return the part of ``value`` that is a record of code; the file that it comes from may hold anything."""
    if not isinstance(value, Mapping):
        return {}
    return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, str)}


def differing(versions: Iterable[Code]) -> list[str]:
    """Return the names of which ``versions`` have different digests, or of which some have none.

    A library that a version does not name is no difference: its record may be from before libraries were in it.
    """
    known = list(versions)
    names = dict.fromkeys(name for version in known for name in version)
    libraries = LIBRARIES.values()
    return [
        name
        for name in names
        if len({version.get(name) for version in known if name in version or name not in libraries}) > 1
    ]


def in_words(names: Iterable[str]) -> str:
    """Return ``names`` as the subject of a sentence, with its verb: "a.py and the code of neumann have"."""
    every = list(names)
    return f"{listed(every)} {'has' if len(every) == 1 else 'have'}"


def listed(names: Iterable[str]) -> str:
    """Return ``names`` as part of a sentence: "a.py and the code of neumann"."""
    of = {OWN: f"the code of {OWN}", "device": "the device"}
    words = [of.get(name, name) for name in sorted(names, key=lambda name: name == OWN)]
    shown = words[:3] + ([f"{len(words) - 3} more files"] if len(words) > 3 else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


class CodeCheck:
    """Compares the code of results with today's. Each configuration's code is looked for once."""

    def __init__(self) -> None:
        self._now: dict[tuple[str, ...], dict[str, str]] = {}
        self._names: dict[str, None] = {}
        self._folders: list[Path] = []
        self._archived = False
        self._looked_at = 0

    def add(self, spec: RunSpec, folder: Path, result: Mapping[str, Any], *, archived: bool = False) -> None:
        """Look at the ``result`` of ``spec`` that was found in ``folder``; one that names no code is not judged.

        ``archived`` says that it was found in an archive, and would lie in ``folder``.
        """
        self._looked_at += 1
        recorded = result.get("code")
        versions = [code for code in map(as_code, recorded if isinstance(recorded, list) else []) if code]
        if not versions:
            return
        targets = tuple(targets_of(spec.plain))
        if targets not in self._now:
            self._now[targets] = code_of(targets)
        names = differing([*versions, self._now[targets]])
        if names:
            self._names |= dict.fromkeys(names)
            self._folders.append(folder)
            self._archived = self._archived or archived

    def note(self, another: str) -> str | None:
        """Return the sentence for the user where code has changed, else None.

        ``another`` is the override that files runs elsewhere, where there are none yet: study=NEW or output=NEW.
        """
        if not self._folders:
            return None
        have = in_words(self._names)
        folder = self._folders[0]
        if self._archived:
            count = len(self._folders)
            return (
                f"{have} changed since {count} of these {self._looked_at} results {'was' if count == 1 else 'were'} "
                f"trained, and they stand: --no-archive {another} trains all with today's code"
            )
        if self._looked_at == 1:
            return (
                f"{have} changed since this run was trained, and its result stands: {another} trains it with today's "
                f"code, and so does the same command once {folder} is removed"
            )
        count = len(self._folders)
        which = f"{count} of these {self._looked_at} results were" if count > 1 else f"the result in {folder} was"
        removed = f"whose folders are removed, the first {folder}" if count > 1 else "whose folder is removed"
        return (
            f"{have} changed since {which} trained, and they stand: {another} trains all with today's code, and the "
            f"same command trains again those {removed}"
        )
