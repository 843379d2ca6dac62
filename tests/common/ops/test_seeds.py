"""The mix of a step's seed."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.ops.seeds import mixed

NUMBER = st.integers(0, 2**61 - 2)


@pytest.mark.parametrize(
    ("numbers", "seed"),
    [((0, 0, 0, 0), 5997146865798422254), ((64, 3, 17, 1), 6494597327453739202), ((), 5740354900026072187)],
)
def test_values_are_fixed(numbers, seed):
    assert mixed(*numbers) == seed


@pytest.mark.skipif(sys.implementation.name != "cpython" or sys.maxsize < 2**32, reason="the hash of 64-bit CPython")
@given(st.lists(NUMBER, max_size=6))
def test_it_is_what_pythons_hash_of_a_tuple_was(numbers):
    assert mixed(*numbers) == hash(tuple(numbers)) % 2**63


@given(NUMBER, NUMBER)
def test_the_order_counts(one, two):
    assert (mixed(one, two) == mixed(two, one)) == (one == two)
