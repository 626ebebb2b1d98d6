"""Exact accepted length of any proposer, computed without running the target model.

Greedy decoding depends only on the greedy answer and its hidden states, whatever is drafted, so it
can be replayed from cached answers:

    tau = tokens / passes,     speed-up = tokens t(1) / sum over passes ( t(n) + draft )

with n the nodes of a pass. tau equals that of decoding in float32; in 16 bits it may differ at near
ties. `draft_tree.walk` does the same for static trees of all sizes, given the ranks of the true
tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from backend.decoding.cost_model import CostModel
from backend.decoding.draft_tree import Proposer
from backend.drafters.training.hidden_state_cache import CachedSequence


@dataclass(frozen=True)
class Walk:
    """Passes over some answers.

    Attributes:
        accepted: committed tokens of each pass.
        nodes: verified nodes of each pass.
        drafted: True for each pass with a draft; prompt lookup costs nothing and does not count.
    """

    accepted: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    drafted: list[bool] = field(default_factory=list)

    @property
    def accepted_length(self) -> float:
        """Mean accepted length tau; 1 without a pass."""
        return sum(self.accepted) / len(self.accepted) if self.accepted else 1.0

    def speed_up(self, costs: CostModel) -> float:
        """Return the speed-up over decoding without a drafter, for measured costs of a machine."""
        draft_cost = costs.draft / costs.verify[1]
        passes = (
            costs.ratio(nodes) + draft_cost * drafted
            for nodes, drafted in zip(self.nodes, self.drafted, strict=True)
        )
        return sum(self.accepted) / (sum(passes) or 1.0)


@torch.inference_mode()
def walk_answers(proposer: Proposer, answers: Iterable[CachedSequence]) -> Walk:
    """Replay greedy answers with a proposer. Answers of fewer than two tokens have no pass."""
    walk = Walk()
    for answer in answers:
        # the first draft needs a hidden state, so it starts at position 1 or later
        ids, read, root = answer.ids.tolist(), 0, max(answer.start, 1)
        proposer.start(ids[0], len(ids) + proposer.nodes)
        while root < len(ids) - 1:  # the root is committed, but not read yet
            draft = proposer.propose(answer.hidden[read:root], ids[read + 1 : root + 1])
            read = root
            node = 0  # last node of the path that matches the text
            for token in ids[root + 1 :]:
                children = draft.tree.children[node]
                child = next((x for x in children if draft.tokens[x - 1] == token), None)
                if child is None:
                    break
                node = child
            depth = draft.tree.depths[node]
            root += depth + 1
            walk.accepted.append(min(depth + 1, len(ids) - 1 - read))
            walk.nodes.append(len(draft.tree))
            walk.drafted.append(bool(draft.tokens) and not draft.looked_up)
    return walk
