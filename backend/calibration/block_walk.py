"""A pass over the decoder blocks, one block at a time, that can be interrupted and resumed.

A finished block is a checkpoint. A resumed pass replays finished blocks: it runs them forward with
their stored weights, which gives the same hidden states bit for bit, and solves only what is
missing. Blocks after the last missing one are not run at all."""

from abc import ABC, abstractmethod


class BlockWalk(ABC):
    """The order of work of one pass over all blocks.

    Attributes:
        last: the last block to solve; no hidden states are needed beyond it.
    """

    last = -1

    def walk(self, blocks: int) -> None:
        """Solve every one of `blocks` blocks that is not stored yet."""
        missing = [block for block in range(blocks) if not self.is_stored(block)]
        if missing:
            self.last = missing[-1]
            self.open()
        for block in range(blocks):
            if block in missing:
                self.solve(block)
            elif block < self.last:
                self.replay(block)
            self.report(block, solved=block in missing)

    @abstractmethod
    def is_stored(self, block: int) -> bool:
        """Whether a checkpoint holds `block`."""

    @abstractmethod
    def open(self) -> None:
        """Prepare the hidden states before block 0; called only if there is a block to solve."""

    @abstractmethod
    def solve(self, block: int) -> None:
        """Work on `block`, store it, and move the hidden states past it."""

    @abstractmethod
    def replay(self, block: int) -> None:
        """Move the hidden states past a stored block."""

    @abstractmethod
    def report(self, block: int, solved: bool) -> None:
        """Report progress after `block`."""
