"""DL-QAT quantisation as a kind of job."""

from collections.abc import Mapping

from backend.quantization.config import POST_TRAINING, STAGE_LABELS, DLQATStage
from backend.quantization.plan import QuantizationPlan
from jobs.dlqat.config import NAME, DLQATJob
from jobs.dlqat.estimate import requirements
from jobs.kind import KeyFigure, Kind, StageStyle, Values
from jobs.metrics import BITS_PER_WEIGHT, PERPLEXITY
from jobs.wording import StageComparison, apart, fixed

TRAINED = (DLQATStage.DLQAT, DLQATStage.DLQAT_KD)
HELPED = {
    "below": "",
    "above": " Training did not help on this model.",
    "": " The evaluation text is too short to tell whether training helped.",
}


def verdict(stages: StageComparison) -> str:
    """In words, whether the method helped on this model."""
    trained = next((s for s in TRAINED if s in stages.perplexity), None)
    rival = best_untrained(stages.perplexity)
    if trained is None or rival is None:
        return ""
    fair = [s for s in (DLQATStage.BLOCKS, DLQATStage.LORA_GPTQ) if s in stages.perplexity]
    named = {stage: STAGE_LABELS[stage] for stage in (rival, *fair)}
    text = f"{STAGE_LABELS[trained]} {stages.clause(trained, named)}."
    if DLQATStage.LORA in stages.perplexity and trained == DLQATStage.DLQAT:
        plain, value = stages.perplexity[DLQATStage.LORA], stages.perplexity[DLQATStage.DLQAT]
        costs = stages.order(DLQATStage.DLQAT, DLQATStage.LORA) == "above"
        rise = f"raises it by {fixed(100 * (value / plain - 1), 1)} %"
        cost = rise if costs else "changes nothing measurable"
        text += (
            f" The same training without quantisation reaches {fixed(plain, 2)}: "
            f"rounding itself {cost}."
        )
    dense = DLQATStage.DENSE in stages.perplexity
    if dense and stages.order(trained, DLQATStage.DENSE) == "below":
        text += " It is below that of the dense model because it was trained on such text."
    return text + HELPED[stages.order(trained, rival)]


def best_untrained(perplexity: Mapping[str, float]) -> str | None:
    """The post-training quantizer of the run with the lowest perplexity; None without one."""
    return min(
        (s for s in POST_TRAINING if s in perplexity), key=perplexity.__getitem__, default=None
    )


def key_figure(values: Values, kept: str) -> KeyFigure | None:
    """Bits a weight of the kept stage, and what they cost in perplexity: with the best
    post-training quantizer, with training, and as kept."""
    dense = values.get((DLQATStage.DENSE, PERPLEXITY))
    if dense is None or not {(kept, BITS_PER_WEIGHT), (kept, PERPLEXITY)} <= values.keys():
        return None
    trained = next((s for s in TRAINED if (s, PERPLEXITY) in values), kept)
    rival = best_untrained({s: value for (s, name), value in values.items() if name == PERPLEXITY})
    stages = [*dict.fromkeys((rival or kept, trained, kept))]
    figures = apart([dense, *(values[s, PERPLEXITY] for s in stages)])
    named = ["dense", *(f"with {STAGE_LABELS[s]}" for s in stages)]
    return KeyFigure(
        f"{fixed(values[kept, BITS_PER_WEIGHT], 2)} bits",
        "per weight, down from 16",
        f"Perplexity {', '.join(map(' '.join, zip(figures, named, strict=True)))}.",
    )


STYLES = {
    "dense": StageStyle("grey", main=True),
    "rtn": StageStyle("vermillion", main=True),
    "gptq": StageStyle("purple", main=True),
    "block-wise": StageStyle("green", "dot", main=True),
    "m-only": StageStyle("pink"),
    "lora-only": StageStyle("pink", "dot"),
    "dlqat": StageStyle("blue", main=True),
    "dlqat-kd": StageStyle("blue", "dot"),
    "lora": StageStyle("green"),
    "lora-gptq": StageStyle("brown", "dot"),
}
KIND = Kind(
    name=NAME,
    title="DL-QAT quantisation",
    summary="Fine-tune while rounding to a few bits, with one learned scale per group.",
    config=DLQATJob,
    requirements=requirements,
    plan=QuantizationPlan,
    run="jobs.dlqat.run:run",
    order=20,
    main_fields=("bits", "group_size", "embedding"),
    compresses=True,
    saves="model",
    packs=True,
    stages=STAGE_LABELS,
    styles=STYLES,
    default_stage=DLQATStage.DLQAT,
    verdict=verdict,
    remedy="more bits, smaller groups, or more training than a quick look has",
    key_figure=key_figure,
    recipes={
        "DL-QAT": {},
        "DL-QAT beside its rivals": {"stages": "rtn, gptq, dlqat, lora"},
        "DL-QAT distilled": {"stages": "dlqat-kd"},
        "GPTQ": {"stages": "gptq"},
        "GPTQ by layer": {"stages": "gptq", "allocation": "budget:loss 3%"},
        "AWQ": {"stages": "awq", "format": "dense"},
        "HQQ": {"stages": "hqq"},
        "Block-wise": {"stages": "block-wise"},
    },
    notes={
        "DL-QAT": "Low-rank updates trained inside the rounding, from what GPTQ gives.",
        "DL-QAT beside its rivals": "Rounding to nearest, GPTQ and LoRA in 16 bits, on the "
        "same text.",
        "DL-QAT distilled": "Trained on the dense model's distributions.",
        "GPTQ": "Post-training: errors are compensated column by column.",
        "GPTQ by layer": "More bits where a sensitivity profile says that they count.",
        "AWQ": "Post-training: channels with large inputs are scaled up before rounding.",
        "HQQ": "Post-training, without calibration text.",
        "Block-wise": "Weights and grids of a block trained together.",
    },
    presets={
        "quick look": {
            "segments": 12,
            "context": 256,
            "windows": 8,
            "steps": 10,
            "batch": 2,
        },
        "default": {},
        "thorough": {"segments": 64, "windows": 32, "steps": 200},
    },
)
