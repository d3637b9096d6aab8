"""Looks at whether a folder still holds the images that a run's signature names, for a run that reads them later.

Where names, sizes and times are the same, no file is read. An image that is streamed is compared when it is read
(`neumann.data.images`), so that an evaluation looks at the folders alone and never at every file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from neumann.data import cache, settings
from neumann.data.facts import DataFacts
from neumann.data.folder import Listing
from neumann.data.scan import fingerprint_by_names, scan, stat_digest
from neumann.data.sources import FolderSource, Stamp, stamp_of
from neumann.data.timm_sets import listing_of
from neumann.errors import UserError, printable


def check_unchanged(facts: DataFacts, wanted: settings.Settings) -> None:
    """Raise UserError where the files of ``facts``, those of ``wanted``, are no longer what its fingerprint covers."""
    Watch(facts, wanted).check_files()


def changed(what: str, example: str = "") -> UserError:
    """Return the error that says what to do where ``what``, such as "files of data=cifar10", have changed."""
    return UserError(
        f"the {what} have changed since the command began{example}, so they are not those that the run is signed by: "
        "put them back, or repeat the command for a run of the new ones"
    )


class Watch:
    """The files of a data set as its facts know them; what has changed is compared with what the fingerprint covers.

    Embedded data does not change, and an array's was compared when it was read whole.

    Args:
        facts: the data set's.
        wanted: its settings.
    """

    def __init__(self, facts: DataFacts, wanted: settings.Settings) -> None:
        self._facts, self._wanted = facts, wanted
        self.stamps, self._places, self._stats = facts.stamps, facts.places, facts.stat_digest
        self._warned = False

    def check_files(self) -> None:
        """Look at every file and every folder. Raises UserError where an image has changed, was added or removed."""
        if not (self._places_stand() and self._files_stand()):
            self._compare()

    def check_places(self) -> None:
        """Look at the folders, or tar files. Raises UserError where an image was added to them or removed."""
        if not self._places_stand():
            self._compare()

    def check_read(self, read: Mapping[int, Stamp]) -> None:
        """Take note that images had other stamps than their facts say when they were read.

        ``read`` has the stamps by the images' indices. Raises UserError where an image has changed.
        """
        assert self.stamps is not None
        if self._facts.fingerprint.startswith("names-sizes:") and isinstance(self._facts.source, FolderSource):
            # the fingerprint is told by each file alone
            if all(stamp.size == self.stamps[index, 0] for index, stamp in read.items()):
                self._warn_of_written(read)
                return
        elif self._were_compared(read):
            return
        self._compare()
        if not self._were_compared(read):  # read while it was another
            raise self._error(self._path(next(iter(read))), "was written")

    def _were_compared(self, read: Mapping[int, Stamp]) -> bool:
        assert self.stamps is not None
        return all(stamp == tuple(self.stamps[index].tolist()) for index, stamp in read.items())

    def _places_stand(self) -> bool:
        try:
            return self._places is not None and all(
                stamp_of(os.stat(path)) == stamp for path, stamp in self._places.items()
            )
        except OSError:
            return False

    def _places_now(self) -> dict[str, Stamp] | None:
        """Return today's stamps of the folders whose images are read, None where one is gone."""
        try:
            return None if self._places is None else {path: stamp_of(os.stat(path)) for path in self._places}
        except OSError:
            return None

    def _files_stand(self) -> bool:
        source = self._facts.source
        if not isinstance(source, FolderSource):  # the places are the files
            return True
        try:
            found = source.stamps()
        except OSError:
            return False
        return self.stamps is not None and np.array_equal(found, self.stamps)

    def _compare(self) -> None:
        """List the set again, and go on from its new stamps where the fingerprint is still the same."""
        if not isinstance(self._wanted, settings.ImageFolder):
            return
        try:
            listing = listing_of(self._wanted)
        except UserError:  # as of a class folder that is still empty: another run would be refused, this one reads on
            if not self._files_stand():
                raise
            self._places = self._places_now()
            return
        stats = stat_digest(listing.files)
        if stats != self._stats:
            fingerprint = fingerprint_by_names(listing) or scan(listing).fingerprint
            if fingerprint != self._facts.fingerprint:
                raise self._error(*self._example(listing))
        self.stamps, self._places, self._stats = listing.stamps(), listing.places, stats

    def _example(self, listing: Listing) -> tuple[str, str]:
        """Return the path of an image that differs in ``listing``, and what has become of it; two texts."""
        before, now = self._facts.examples.paths, [file.path for file in listing.files]
        for paths, others, what in ((now, set(before), "was added"), (before, set(now), "was removed")):
            if path := next((path for path in paths if path not in others), None):
                return path, what
        stamps = listing.stamps()
        if self.stamps is None or (same := (stamps == self.stamps).all(axis=1)).all():
            return "", ""
        return now[int(same.argmin())], "was written"

    def _error(self, path: str, what: str) -> UserError:
        example = f" ('{printable(path)}' {what})" if path else ""
        return changed(f"images in '{self._facts.examples.root}'", example)

    def _path(self, index: int) -> str:
        return self._facts.examples.paths[index]

    def _warn_of_written(self, read: Mapping[int, Stamp]) -> None:
        """Say once that an image whose size is the same was written, which its fingerprint cannot tell."""
        assert self.stamps is not None
        written = [index for index, stamp in read.items() if stamp.mtime_ns != self.stamps[index, 1]]
        if written and not self._warned:
            self._warned = True
            cache.log.warning(
                "'%s' was written while the run reads it, in the size that it had: a set of more than a GiB is told by "
                "names and sizes, so the run goes on with what it holds now",
                printable(self._path(written[0])),
            )
