"""The latest moments of sending, in a ring of numbers that several processes may share."""

from array import array


class Moments:
    """The latest moments when requests were sent, in seconds, each above 0; the oldest are written over.

    ``memory[0]`` counts all that ever were, the other cells are the ring. A moment that is negative is that of a
    request that was refused.

    Args:
        memory: where they lie, of format ``d``.
    """

    def __init__(self, memory: "memoryview[float]") -> None:
        self._memory = memory
        self._places = len(memory) - 1

    def __len__(self) -> int:
        return min(int(self._memory[0]), self._places)

    def add(self, moment: float) -> int:
        """Adds the latest moment; gives its number, for ``correct``."""
        number = int(self._memory[0])
        self._memory[1 + number % self._places] = moment
        self._memory[0] = number + 1
        return number

    def correct(self, number: int, moment: float) -> None:
        """Says when the request of a number was sent in truth."""
        if 0 < self._memory[0] - number <= self._places:
            self._memory[1 + number % self._places] = moment

    def latest(self, back: int) -> float:
        """The moment of the request before which there were ``back`` - 1 later ones; ``back`` from 1 to the length."""
        return abs(float(self._memory[1 + (int(self._memory[0]) - back) % self._places]))

    def refuse(self, moment: float) -> None:
        """Says that the request that was sent at a moment was refused."""
        count = int(self._memory[0])
        for number in range(count - 1, count - 1 - len(self), -1):
            at = 1 + number % self._places
            if self._memory[at] == moment:
                self._memory[at] = -moment
                return
            if abs(self._memory[at]) < moment - 1:  # neighbours may have changed places, but not by as much
                return

    def admitted(self, after: float, until: float) -> int:
        """How many requests were sent later than ``after``, and not later than ``until``, and not refused."""
        count, found = int(self._memory[0]), 0
        for number in range(count - 1, count - 1 - len(self), -1):
            moment = self._memory[1 + number % self._places]
            if abs(moment) < after - 1:
                break
            found += after < moment <= until
        return found


def move_moments(memory: "memoryview[float]", larger: "memoryview[float]") -> None:
    """Writes moments into a memory with more room, under the same numbers."""
    if not 0 <= memory[0] <= 2**53:  # nobody counted to that: it is broken
        return
    larger[0] = memory[0]
    count, places, more_places = int(memory[0]), len(memory) - 1, len(larger) - 1
    for number in range(max(0, count - places), count):
        larger[1 + number % more_places] = memory[1 + number % places]


def room_for(moments: int) -> "memoryview[float]":
    """Memory of this process alone for so many moments."""
    return memoryview(array("d", bytes(8 * (moments + 1))))
