"""One checker of kinds, choices and bounds: what is right passes, and what is wrong is one sentence."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from neumann.bounds import Bounds, check_fields, choice, number
from neumann.errors import UserError


@dataclass(frozen=True)
class Inner:
    share: float = number(0.5, above=0, below=1)


@dataclass(frozen=True)
class Outer:
    count: int = number(1, at_least=1)
    limit: int | None = number(None, at_least=1)
    word: str = choice("on", "on", "off")
    flag: bool | None = None
    plain: float = 1.0
    inner: Inner = field(default_factory=Inner)
    free: list[int] = field(default_factory=list)


def test_what_is_right_passes() -> None:
    check_fields(Outer())
    check_fields(Outer(count=3, limit=2, word="off", flag=False, plain=2, inner=Inner(0.1), free=["anything"]))  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"count": 0}, "x.count=0 is out of range: it must be at least 1"),
        ({"count": 1.5}, "x.count=1.5 is not a whole number"),
        ({"count": True}, "x.count=true is not a whole number"),
        ({"count": "3"}, "x.count='3' is not a whole number"),
        ({"count": None}, "x.count=null is not a whole number"),
        ({"limit": 0}, "x.limit=0 is out of range: it must be at least 1, or null"),
        ({"limit": "many"}, "x.limit=many is not a whole number or null"),
        ({"count": (1,)}, "x.count=[1] is not a whole number"),
        ({"count": (1, (None, False, "a b"))}, "x.count=[1, [null, false, 'a b']] is not a whole number"),
        ({"count": {"a": True}}, "x.count={a: true} is not a whole number"),
        ({"count": "true"}, "x.count='true' is not a whole number"),
        ({"word": "of"}, "x.word=of is not a choice: did you mean 'off'?"),
        ({"word": 3}, "x.word=3 is not a word"),
        ({"flag": "yes"}, "x.flag=yes is not true or false or null"),
        ({"plain": "one"}, "x.plain=one is not a number"),
        ({"plain": True}, "x.plain=true is not a number"),
        ({"inner": Inner(1)}, "x.inner.share=1 is out of range: it must be above 0 and below 1"),
        ({"inner": Inner(float("nan"))}, "x.inner.share=nan is out of range: it must be above 0 and below 1"),
    ],
)
def test_what_is_wrong_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        check_fields(replace(Outer(), **change), "x.")
    assert str(caught.value) == sentence


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_is_never_within(value: float) -> None:
    with pytest.raises(UserError, match="out of range"):
        Bounds(at_least=0).check("x", value)
