"""Seeds made of several numbers."""

from __future__ import annotations

PRIMES = (11400714785074694791, 14029467366897019727, 2870177450012600261)  # of xxHash, 64 bits
MASK = 2**64 - 1


def mixed(*numbers: int) -> int:
    """A seed in [0, 2^63) from whole numbers in [0, 2^61 - 1), the same everywhere and in every version of Python.

    The rounds of xxHash by which CPython hashes a tuple of integers: runs made when this was `hash((...))` resume.
    """
    first, second, last = PRIMES
    state = last
    for number in numbers:
        state = (state + number * second) & MASK
        state = ((state << 31 | state >> 33) * first) & MASK
    state = (state + (len(numbers) ^ last ^ 3527539)) & MASK
    return state % 2**63
