"""N:4 masks as one number per group of four weights, smaller than four bits.

Of the C(4, N) ways to choose N of 4 places, a group's number says which. A byte holds as many of these digits
as fit: three to base 6 for 2:4, four to base 4 for 1:4 and 3:4. Groups are handled as nibbles, four bits with
the first weight in the highest.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

GROUP = 4
DIGITS = {1: 4, 2: 3, 3: 4}
"""{N: digits in a byte}."""
SIZES = np.array([nibble.bit_count() for nibble in range(2**GROUP)], np.uint8)


def choices(n: int) -> Bytes:
    """The nibbles with n bits, by the number that stands for them: the leftmost places come first."""
    places = combinations(range(GROUP), n)
    return np.array([sum(8 >> place for place in chosen) for chosen in places], np.uint8)


def nibbles_of(mask: NDArray[np.bool_]) -> Bytes:
    """A mask [4 groups] as nibbles [groups]."""
    packed = np.packbits(mask)
    return np.stack((packed >> 4, packed & 15), axis=1).reshape(-1)[: len(mask) // GROUP]


def mask_of(nibbles: Bytes) -> NDArray[np.bool_]:
    """Nibbles [groups] as a mask [4 groups]."""
    even = np.append(nibbles, np.zeros(len(nibbles) % 2, np.uint8))
    pairs: Bytes = (even[0::2] << np.uint8(4)) | even[1::2]
    return np.unpackbits(pairs, count=GROUP * len(nibbles)).view(bool)


def filled(nibbles: Bytes, n: int) -> Bytes:
    """For each nibble of at most n bits the first one with n bits that contains it, [groups]."""
    known = choices(n)
    first = [next((one for one in known if one & nibble == nibble), 0) for nibble in range(2**GROUP)]
    return np.array(first, np.uint8)[nibbles]


def code_bytes(groups: int, n: int) -> int:
    """Bytes that the numbers of some groups take."""
    return -(-groups // DIGITS[n])


def pack(nibbles: Bytes, n: int) -> Bytes:
    """Nibbles of n bits [groups] as their numbers, [ceil(groups / digits)]."""
    known, digits = choices(n), DIGITS[n]
    number_of = np.zeros(2**GROUP, np.uint8)
    number_of[known] = np.arange(len(known))
    numbers = np.append(number_of[nibbles], np.zeros(-len(nibbles) % digits, np.uint8)).reshape(-1, digits)
    packed = np.zeros(len(numbers), np.uint8)
    for place in range(digits):
        packed = packed * np.uint8(len(known)) + numbers[:, place]
    return packed


def unpack(packed: Bytes, groups: int, n: int) -> Bytes:
    """The nibbles [groups] whose numbers ``pack`` made."""
    known, digits = choices(n), DIGITS[n]
    powers = len(known) ** np.arange(digits)[::-1]
    table = known[np.arange(256)[:, None] // powers % len(known)]
    return table[packed].reshape(-1)[:groups]
