"""Streams are named after axis and seed: apart from each other, the same everywhere."""

from __future__ import annotations

import pytest

from neumann.seeds import AXES, derive


def test_every_axis_and_seed_has_a_stream_of_its_own() -> None:
    streams = {derive(seed, axis) for seed in range(50) for axis in AXES}
    assert len(streams) == 50 * len(AXES)
    assert all(0 <= s < 2**63 for s in streams)


def test_streams_are_the_same_on_every_machine() -> None:
    assert derive(3, "order") == 2026610702787634432


def test_a_misspelt_axis_is_an_error() -> None:
    with pytest.raises(ValueError, match="no random stream is called 'ordr'"):
        derive(0, "ordr")
