"""Who is next: people take turns, however many requests each has."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterable, Iterator

from backend.decoding.serving.sequence import ServedSequence


class WaitingLine:
    """Requests that wait. The next is of the person of whom the fewest run, of those the one who
    was served longest ago; what had to make room for others goes before all."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[ServedSequence]] = {}
        self._back = deque[ServedSequence]()
        self._served: dict[str, int] = {}  # person -> number of the last turn
        self._turns = 0

    def __len__(self) -> int:
        return len(self._back) + sum(map(len, self._lines.values()))

    def of(self, person: str) -> int:
        """How many requests of a person wait."""
        return len(self._lines.get(person, ()))

    def add(self, sequence: ServedSequence) -> None:
        self._lines.setdefault(sequence.request.person, deque()).append(sequence)

    def put_back(self, sequence: ServedSequence) -> None:
        self._back.appendleft(sequence)

    def remove(self, sequence: ServedSequence) -> None:
        """Take one out whose turn it is."""
        if sequence not in self._back:
            self._turns += 1
            self._served[sequence.request.person] = self._turns
        self._drop(sequence)

    def drop_cancelled(self) -> list[ServedSequence]:
        """Take out who does not wait any more."""
        gone = [x for line in (self._back, *self._lines.values()) for x in line if x.cancelled]
        for sequence in gone:
            self._drop(sequence)
        return gone

    def _drop(self, sequence: ServedSequence) -> None:
        person = sequence.request.person
        line = self._back if sequence in self._back else self._lines[person]
        line.remove(sequence)
        if not self._lines.get(person, True):
            del self._lines[person]

    def order(self, running: Iterable[ServedSequence]) -> Iterator[ServedSequence]:
        """All that wait, as they will be served if nobody leaves."""
        yield from [*self._back]
        counts, turn = Counter(x.request.person for x in running), self._turns
        lines = {person: iter([*line]) for person, line in self._lines.items()}
        people = [
            (counts[person], self._served.get(person, 0), place, person)
            for place, person in enumerate(lines)
        ]
        heapq.heapify(people)
        while people:
            count, _, place, person = heapq.heappop(people)
            if (sequence := next(lines[person], None)) is not None:
                yield sequence
                turn += 1
                heapq.heappush(people, (count + 1, turn, place, person))
