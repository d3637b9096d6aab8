"""A look at whether a folder still holds the images that a run's signature names, for a run that reads them later."""

from __future__ import annotations

from neumann.data import settings
from neumann.data.facts import DataFacts
from neumann.data.scan import scan, stat_digest
from neumann.data.timm_sets import listing_of
from neumann.errors import UserError


def check_unchanged(facts: DataFacts, wanted: settings.Settings) -> None:
    """Raise UserError where the files of ``facts``, those of ``wanted``, are no longer what its fingerprint covers.

    Where names, sizes and times are the same, no file is read. Embedded data does not change, and an array's was
    compared when it was read whole.
    """
    if not isinstance(wanted, settings.ImageFolder):
        return
    listing = listing_of(wanted)
    same = stat_digest(listing.files) == facts.stat_digest
    if not same and scan(listing).fingerprint != facts.fingerprint:
        raise changed(f"images in '{facts.examples.root}'")


def changed(what: str) -> UserError:
    """Return the error that says what to do where ``what``, such as "files of data=cifar10", have changed."""
    return UserError(
        f"the {what} have changed since the command began, so they are not those that the run is signed by: put them "
        "back, or repeat the command for a run of the new ones"
    )
