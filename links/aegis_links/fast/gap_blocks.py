"""
Ranges of numbers, sorted and apart: which TSNs arrived beyond the first that is missing.

Both ends keep them: the receiver to report, the sender to find what a report says anew.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

Block = tuple[int, int]
"""The first and the last number of a range."""


def insert(blocks: list[Block], number: int) -> bool:
    """Add a number; False if it is there already."""
    if not blocks or number > blocks[-1][1] + 1:
        blocks.append((number, number))
        return True
    if number == blocks[-1][1] + 1:
        blocks[-1] = (blocks[-1][0], number)
        return True
    at = bisect_right(blocks, number, key=lambda block: block[0])
    before = blocks[at - 1] if at else None
    after = blocks[at] if at < len(blocks) else None
    if before is not None and number <= before[1]:
        return False
    touches_before = before is not None and number == before[1] + 1
    touches_after = after is not None and number == after[0] - 1
    first = before[0] if touches_before and before is not None else number
    last = after[1] if touches_after and after is not None else number
    blocks[at - touches_before : at + touches_after] = [(first, last)]
    return True


def beyond(blocks: Sequence[Block], known: Sequence[Block]) -> Iterator[range]:
    """Yield what is in `blocks` and not in `known`."""
    at = 0
    for first, last in blocks:
        while at < len(known) and known[at][1] < first:
            at += 1
        look = at
        while first <= last:
            if look == len(known) or known[look][0] > last:
                yield range(first, last + 1)
                break
            if known[look][0] > first:
                yield range(first, known[look][0])
            first = known[look][1] + 1
            look += 1


def holes(blocks: Sequence[Block], start: int) -> Iterator[range]:
    """Yield what is missing from `start` up to the last block."""
    for first, last in blocks:
        if first > start:
            yield range(start, first)
        start = last + 1
