"""What a decoding benchmark needs before it starts: FLOPs, memory, and what is refused."""

from collections.abc import Sequence

from backend.errors import ConfigError
from backend.models.facts import ModelFacts
from backend.models.memory import RUNTIME, weight_memory
from backend.store.states import State
from backend.store.tables import Job
from backend.text.prompts import require_prompts
from jobs.benchmark.config import BenchmarkJob
from jobs.fields.base_model import decodable_model
from jobs.fields.drafters import drafter_bytes, drafter_config, drafters_named
from jobs.fields.gguf import check_source, exported_type, require_llama_cpp, types_named
from jobs.fields.prompts import prompt_set
from jobs.kind import Requirements
from jobs.limits import require_context
from jobs.runtime.duration import DECODE_COST

VANILLA_ALONE = "Only vanilla decoding is timed: there is nothing to compare it with."


def requirements(config: BenchmarkJob) -> Requirements:
    base = decodable_model(config.model, config.precision)
    facts = base.facts
    drafters = drafters_named(config.drafters, config.model, "drafters")
    require_context(config.max_new_tokens, facts, "Responses", "max_new_tokens", prompt=True)
    require_tree_sizes(config, drafters)
    require_prompts(prompt_set(config, facts), "prompts")
    types = types_named(config.llama_cpp)
    if types:
        require_llama_cpp("llama_cpp")
        check_source(base.source)
    for type in types:
        exported_type(type, base, "llama_cpp")
    compared = drafters or config.lookup or config.pytorch or config.llama_cpp
    return Requirements(
        model=config.model,
        title=facts.title,
        flops=flops_by_phase(config, facts, len(drafters)),
        memory={
            "runtime": RUNTIME,
            "models": weight_memory(facts),
            "drafters": sum(map(drafter_bytes, drafters)),
            "llama.cpp": len(types) * weight_memory(facts),
        },
        warnings=() if compared else (VANILLA_ALONE,),
    )


def require_tree_sizes(config: BenchmarkJob, drafters: Sequence[Job]) -> None:
    """Refuse trees larger than a drafter's longest ranking of paths."""
    for job in drafters:
        if job.state != State.SUCCEEDED:  # it has no tree yet
            continue
        largest = 1 + len(drafter_config(job)["growth"])
        if config.nodes > largest:
            raise ConfigError(
                f"A tree of {config.nodes} nodes is too large for {job.run}.",
                f"On held-out text no more than {largest} nodes were ever accepted.",
                f"Choose {largest} or fewer, or 0.",
                "nodes",
            )


def flops_by_phase(config: BenchmarkJob, facts: ModelFacts, drafters: int) -> dict[str, float]:
    others = config.pytorch + len(types_named(config.llama_cpp)) + config.lookup
    decoders = 1 + others + 2 * drafters  # each alone, and behind prompt lookup
    responses = decoders * config.count * (1 + config.rounds)
    response = 2.0 * DECODE_COST * facts.parameters * config.max_new_tokens
    return {"compare": responses * response}
