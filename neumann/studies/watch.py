"""`neumann report NAME --watch`: the page of a study while it is trained, rendered again when one of its runs changes.

Everything is read from the plain files, so the runs may train in another terminal, on another machine that shares the
folder, or under Slurm. The browser reloads the page by itself; once the study is finished, or the user stops watching,
the page is the ordinary one, which does not.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

from rich.console import Console

from neumann.fitting import say
from neumann.processes.signals import listening
from neumann.store import RunFolder, archive
from neumann.studies import stamp
from neumann.studies.plan import Study, load_study
from neumann.studies.run import REPORT, checked, print_end, rendered, report_folder
from neumann.studies.schema import FULL

EVERY_S = 10  # between two looks, and after which a browser loads the page again
SHARE = 4  # times as long as rendering took is waited before the next: at most a fifth of a core is taken from training


def watch(
    name: str,
    *,
    budget: str = FULL,
    overrides: Sequence[str] = (),
    config_dirs: Sequence[str] = (),
    no_archive: bool = False,
    console: Console,
) -> int:
    """Render the report of ``name`` whenever a run changes, until all are over or a signal stops it; return 0.

    The parameters are those of `neumann.studies.run.report`. Raises UserError as that does.
    """
    words = checked(overrides)
    seen, first = "", True
    try:
        with listening(_end):
            while True:
                one = load_study(name, budget, words, config_dirs, uses_archive=not no_archive)
                now, begun = _state(one), time.monotonic()
                if now != seen:
                    seen = now
                    made = rendered(one, refresh=EVERY_S)
                    if made.incomplete is None:
                        break
                    if first:
                        say(console, f"watched: {made.folder / REPORT}; Ctrl-C ends it, and no run")
                    first = False
                    say(console, f"{time.strftime('%H:%M:%S')}  {made.incomplete}")
                time.sleep(max(EVERY_S, SHARE * (time.monotonic() - begun)))
    except KeyboardInterrupt:
        say(console, "no longer watched")
    made = rendered(load_study(name, budget, words, config_dirs, uses_archive=not no_archive))
    print_end(console, made)
    return 0


def _end(number: int) -> None:
    """End the watch at any signal that asks to stop, as at Ctrl-C: a page that nobody renders is not to reload."""
    raise KeyboardInterrupt


def _state(study: Study) -> str:
    """Return a digest of the files that say how far the runs are, of the study and of its archive."""
    folder = report_folder(study).parent
    runs = [path for path in sorted(folder.glob("*")) if RunFolder(path).signed.exists()]
    files = [study.file, study.results / archive.NAME]
    files += [path / file for path in runs for file in ("result.json", "status.json")]
    return hashlib.sha256(repr([list(map(str, runs)), list(stamp.states(files))]).encode()).hexdigest()
