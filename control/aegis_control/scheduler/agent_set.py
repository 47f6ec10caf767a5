"""Sets of agents as bits of an integer: bit n is the nth agent by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias, TypeVar

AgentSet: TypeAlias = int

T = TypeVar("T")
Key = TypeVar("Key")


def members(agents: AgentSet) -> Iterator[int]:
    """The positions in `agents`, from the first."""
    bits = f"{agents:b}"[::-1]
    place = bits.find("1")
    while place >= 0:
        yield place
        place = bits.find("1", place + 1)


def first(agents: AgentSet) -> int:
    """The first position of a set that is not empty."""
    return (agents & -agents).bit_length() - 1


def by_key(things: Iterable[T], keys: Callable[[T], Iterable[Key]]) -> Mapping[Key, AgentSet]:
    """For each key the set of those positions in `things` that have it."""
    places: dict[Key, list[int]] = defaultdict(list)
    for place, thing in enumerate(things):
        for key in keys(thing):
            places[key].append(place)
    return {key: of(found) for key, found in places.items()}


def of(places: Sequence[int]) -> AgentSet:
    """The set of these positions, which rise."""
    if len(places) < 2:
        return 1 << places[0] if places else 0
    bits = bytearray((places[-1] >> 3) + 1)
    for place in places:
        bits[place >> 3] |= 1 << (place & 7)
    return int.from_bytes(bits, "little")
