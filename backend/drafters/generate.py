"""Python API for text generation with a target model, with or without a drafter.

    drafter = Amphista.load(folder)
    for token in generate(model, drafter, ids, max_new_tokens=200):
        print(token.id, token.head)

`TreeProposer` drafts trees of tokens with the heads of a drafter. Batches, beam search and models
with other logits processors are refused.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.decoding.acceptance import Sampling
from backend.decoding.cost_model import measure_costs
from backend.decoding.draft_tree import (
    DraftTokens,
    DynamicTree,
    NoDraft,
    PromptLookupFirst,
    Proposer,
    StaticTree,
    Tree,
    TreePolicy,
    best_tree,
)
from backend.decoding.serving.loop import decode
from backend.decoding.target_model import TargetModel
from backend.drafters.checkpoint import Amphista
from backend.drafters.registry import Drafter
from backend.errors import ConfigError

TRIAL_NODES = 8  # size of the tree whose drafts are timed
UNSUPPORTED = {  # setting of a generation config -> value without effect
    "num_beams": 1,
    "penalty_alpha": None,
    "dola_layers": None,
    "stop_strings": None,
    "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "bad_words_ids": None,
    "min_length": 0,
    "min_new_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "guidance_scale": None,
    "watermarking_config": None,
    "exponential_decay_length_penalty": None,
}


class TreeProposer:
    """Proposer that drafts trees with the heads of a drafter. The tree is static, or chosen by a
    policy at every step.

    Raises:
        ConfigError: the tree has more levels than the drafter has heads, or more candidates than
            its vocabulary.
    """

    def __init__(self, drafter: Drafter, target: TargetModel, tree: Tree | TreePolicy) -> None:
        if isinstance(tree, Tree):
            heads, ranks = drafter.config.heads, len(drafter.vocabulary)
            if tree.depth > heads or tree.ranks > ranks:
                raise ConfigError(
                    "The tree does not fit the drafter.",
                    f"It has depth {tree.depth} and {tree.ranks} candidates per head; the drafter "
                    f"has {heads} heads and {ranks} draft tokens.",
                    "Choose a smaller tree.",
                    "nodes",
                )
            tree = StaticTree(tree)
        self.drafter, self.target, self.policy, self.nodes = drafter, target, tree, tree.nodes

    def start(self, first: int, capacity: int) -> None:
        max_draft_tokens = self.nodes * self.drafter.config.heads  # at all depths
        self._caches = self.drafter.new_caches(capacity + max_draft_tokens)

    def propose(self, hidden: Tensor, tokens: Sequence[int]) -> DraftTokens:
        hidden = hidden.to(self.target.device)  # states of cached answers are on the CPU
        embedded = self.target.embed(torch.tensor([tokens], device=hidden.device))
        tree, tokens = self.drafter.draft(
            hidden[None], embedded, self.policy, self._caches, self.target.embed
        )
        return DraftTokens(tokens, tree)


def describe_trees(proposer: Proposer) -> str:
    """Describe the trees of a proposer, such as "a tree of 8 nodes"."""
    if proposer.nodes == 1:
        return "no drafts"
    policy = proposer.policy if isinstance(proposer, TreeProposer) else None
    if isinstance(policy, DynamicTree):
        return f"trees of up to {policy.nodes} nodes with probabilities above {policy.least:.0%}"
    return f"a tree of {proposer.nodes} nodes"


@dataclass(frozen=True)
class GeneratedToken:
    """A generated token.

    Attributes:
        id: token id.
        head: source of the token: head 1, 2, ..., the target model (0) or prompt lookup (-1).
        step: verification pass that accepted it; 0 for the prefill.
    """

    id: int
    head: int
    step: int


def make_proposer(
    target: TargetModel,
    drafter: Amphista | None,
    nodes: int | DynamicTree = 0,
    least: int = 1,
    bound: Drafter | None = None,
) -> Proposer:
    """Return the proposer of a drafter; `NoDraft` without a drafter or for a tree of one node.

    Args:
        nodes: size of a static tree, including the root; a policy of dynamic trees; or 0 to measure
            this machine and draft the nodes that pay at each step.
        least: minimum size of the tree when measured.
        bound: the drafter already bound to the target.

    Raises:
        ConfigError: the drafter belongs to another model.
    """
    if drafter is None:
        return NoDraft()
    bound = bound or drafter.bind(target)
    if not nodes:
        trial = TreeProposer(bound, target, best_tree(drafter.growth, TRIAL_NODES))
        costs = measure_costs(target, trial)
        pays = costs.best_nodes(drafter.growth, least) > 1
        nodes = costs.dynamic_tree() if pays else 1
    if nodes == 1:
        return NoDraft()
    tree = best_tree(drafter.growth, nodes) if isinstance(nodes, int) else nodes
    return TreeProposer(bound, target, tree)


def generate(
    base: PreTrainedModel | TargetModel,
    drafter: Amphista | Proposer | None,
    prompt: Sequence[int] | Tensor,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    ends: Collection[int] | None = None,
    nodes: int = 0,
    lookup: bool = False,
) -> Iterator[GeneratedToken]:
    """Yield the tokens that follow `prompt` [P] or [1, P] when they are accepted.

    The tokens equal those of the target model alone, except for rounding in a pass over several
    tokens. The result is exact in float32 for all practical purposes; in 16 bits near ties may
    resolve differently.

    Args:
        sampling: None for greedy decoding.
        ends: end-of-sequence tokens; None for those of the model's generation config.
        nodes: see `make_proposer`.
        lookup: try prompt lookup first, with or without a drafter (see `PromptLookupFirst`).

    Raises:
        ConfigError: the prompt is a batch or too long, or the drafter belongs to another model.
        ModelError: the model cannot verify trees.
    """
    target = base if isinstance(base, TargetModel) else TargetModel(base)
    refuse_processors(target.model)
    if drafter is None or isinstance(drafter, Amphista):
        drafter = make_proposer(target, drafter, nodes)
    if lookup:
        drafter = PromptLookupFirst(drafter, measure_costs(target).lookup_length)
    defaults = target.model.generation_config
    penalty = getattr(defaults, "repetition_penalty", None) or 1.0  # as in transformers
    sampling = sampling or Sampling(repetition_penalty=penalty)
    if ends is None:
        eos = getattr(defaults, "eos_token_id", None)
        eos_ids = eos if isinstance(eos, list) else [eos]
        ends = [token for token in eos_ids if token is not None]
    if isinstance(prompt, Tensor):
        if prompt.dim() > 2 or (prompt.dim() == 2 and len(prompt) != 1):
            raise ConfigError(
                f"A batch of {len(prompt)} prompts is not supported.",
                "Prompts differ in their numbers of accepted tokens.",
                "Call generate once per prompt.",
                "prompt",
            )
        prompt = prompt.reshape(-1).tolist()
    for number, step in enumerate(decode(target, drafter, prompt, max_new_tokens, ends, sampling)):
        for token, head in zip(step.tokens, step.heads, strict=True):
            yield GeneratedToken(token, head, number)


def refuse_processors(model: PreTrainedModel) -> None:
    """Raise `ConfigError` if the generation config has unsupported settings that change the
    text."""
    for name, neutral in UNSUPPORTED.items():
        value = getattr(model.generation_config, name, neutral)
        if value not in (neutral, None) and value != []:
            raise ConfigError(
                f"The model's generation config sets {name}.",
                "This decoding loop does not support it, and ignoring it would change the text.",
                f"Set model.generation_config.{name} = {neutral!r} if you do not need it.",
                "model",
            )
