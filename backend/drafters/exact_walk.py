"""Exact accepted length of any proposer, without the target model: a greedy answer and its hidden
states are all that greedy decoding would see, whatever is drafted.

    tau = tokens / passes,     speed-up = tokens t(1) / sum over passes ( t(n) + draft )

with n the nodes of a pass. In float32 tau is that of decoding; in 16 bits, up to near ties. For
static trees of every size at once `draft_tree.walk` does the same, from the ranks of the true
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
    """The passes over some answers: tokens each commits, nodes it verifies, and whether a draft was
    made for it (a lookup costs nothing)."""

    accepted: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    drafted: list[bool] = field(default_factory=list)

    @property
    def accepted_length(self) -> float:
        """tau; 1 without a pass."""
        return sum(self.accepted) / len(self.accepted) if self.accepted else 1.0

    def speed_up(self, costs: CostModel) -> float:
        """Over decoding without a drafter, for the measured costs of a machine."""
        once = costs.draft / costs.verify[1]
        passes = (
            costs.ratio(nodes) + once * drafted
            for nodes, drafted in zip(self.nodes, self.drafted, strict=True)
        )
        return sum(self.accepted) / (sum(passes) or 1.0)


@torch.inference_mode()
def walk_answers(proposer: Proposer, answers: Iterable[CachedSequence]) -> Walk:
    """Walk greedy answers with a proposer; answers of fewer than two tokens have no pass."""
    walk = Walk()
    for answer in answers:
        ids, read, root = answer.ids.tolist(), 0, max(answer.start, 1)  # drafts need a state
        proposer.start(ids[0], len(ids) + proposer.nodes)
        while root < len(ids) - 1:  # the root is committed, and not yet read
            draft = proposer.propose(answer.hidden[read:root], ids[read + 1 : root + 1])
            read = root
            node = 0  # the last of the path that the text follows
            for token in ids[root + 1 :]:
                children = draft.tree.children[node]
                found = next((x for x in children if draft.tokens[x - 1] == token), None)
                if found is None:
                    break
                node = found
            depth = draft.tree.depths[node]
            root += depth + 1
            walk.accepted.append(min(depth + 1, len(ids) - 1 - read))
            walk.nodes.append(len(draft.tree))
            walk.drafted.append(bool(draft.tokens) and not draft.looked_up)
    return walk
