import math

import pytest

from neumann.optim.momentum_and_resets import grown_period, is_reset, momentum


def resets(limit, *args, **kwargs):
    return [t for t in range(1, limit + 1) if is_reset(t, *args, **kwargs)]


def counted_down(limit, period, growth):
    """Brute force: a counter that is set to ceil(K g^j) at the j-th reset and counts down."""
    found, left, j = [], 0, 0
    for t in range(1, limit + 1):
        if left == 0:
            found.append(t)
            left = math.ceil(period * growth**j)
            j += 1
        left -= 1
    return found


def congruent(limit, period, growth):
    """Brute force: t ≡ 1 modulo the current K, which grows at every reset."""
    found, K, j = [], period, 0
    for t in range(1, limit + 1):
        if (t - 1) % K == 0:
            found.append(t)
            j += 1
            K = math.ceil(period * growth**j)
    return found


@pytest.mark.parametrize("period", [1, 2, 3, 10, 17])
def test_closed_forms_of_doubling(period):
    countdown = [1 + period * (2**j - 1) for j in range(40)]
    absolute = [1] + [1 + period * 2**j for j in range(1, 40)]
    assert resets(5000, period) == [t for t in countdown if t <= 5000]
    assert resets(5000, period, 2.0, "absolute") == [t for t in absolute if t <= 5000]
    assert all(is_reset(t, period) and not is_reset(t + 1, period) for t in countdown[2:])
    assert all(is_reset(t, period, 2, "absolute") and not is_reset(t + 1, period, 2, "absolute") for t in absolute[2:])


@pytest.mark.parametrize("growth", [1, 1.0, 1.25, 1.5, 2, 2.0, 3, 2.75])
@pytest.mark.parametrize("period", [2, 3, 8, 25])
def test_both_rules_against_counters(period, growth):
    assert resets(4000, period, growth, "countdown") == counted_down(4000, period, growth)
    assert resets(4000, period, growth, "absolute") == congruent(4000, period, growth)


def test_a_fixed_period_is_t_congruent_one():
    assert resets(50, 7, 1) == resets(50, 7, 1, "absolute") == [1, 8, 15, 22, 29, 36, 43, 50]


def test_without_a_period_only_the_first_step_resets():
    assert resets(1000, None) == [1]
    assert not is_reset(0, 5)
    assert not is_reset(-4, 5)


def test_a_growth_of_one_tenth_is_taken_at_its_word():
    assert 100 * 1.1**2 > 121  # in floating point
    assert [grown_period(100, 1.1, j) for j in range(4)] == [100, 110, 121, 134]  # 133.1
    assert resets(500, 100, 1.1) == [1, 101, 211, 332, 466]


@pytest.mark.parametrize("rule", ["countdown", "absolute"])
def test_a_huge_growth_overflows_nowhere(rule):
    assert resets(100, 7, 1e308, rule) == ([1, 8] if rule == "countdown" else [1])


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="countdown"):
        is_reset(3, 2, 2.0, "downcount")


def test_momentum_ramps_from_start_to_peak():
    values = [momentum(t, (0.5, 0.9)) for t in range(1, 30)]
    assert values[0] == 0.5  # 1 − 1/2
    assert values[1] == pytest.approx(2 / 3)
    assert values[7] == pytest.approx(1 - 1 / 9)
    assert values[8:] == [0.9] * 21  # 1 − 1/10 and on
    assert values == sorted(values)


def test_momentum_unit_stretches_the_ramp():
    assert momentum(400, (0.5, 0.9), 100) == pytest.approx(0.8)
    assert momentum(50, (0.5, 0.9), 100) == 0.5
    assert momentum(900, (0.5, 0.9), 100) == 0.9


def test_a_number_is_a_constant_momentum():
    assert {momentum(t, 0.7, 3) for t in range(1, 20)} == {0.7}


def test_lists_are_pairs():
    assert momentum(2, [0.5, 0.9]) == momentum(2, (0.5, 0.9))
