"""An export as a job: a saved model becomes one GGUF file, with a model card beside it."""

import re
from pathlib import Path

from backend.checkpoints import Checkpoints, sha256_of
from backend.export.card import CARD, copy_terms, gguf_card, origin_of
from backend.export.gguf.writing import write_gguf
from backend.metric_key import MetricKey
from backend.models.sources.catalog import materialize
from jobs.fields.gguf import exported_embedding, exported_type
from jobs.fields.models import resolve_model
from jobs.gguf.kind import FOLDER, MODEL, GGUFJob, work
from jobs.metrics import BYTES
from jobs.runtime.context import JobContext
from jobs.runtime.environment import prepare


def run(config: GGUFJob, context: JobContext) -> None:
    """The whole job. It takes seconds to minutes, so a killed one starts again."""
    prepare(config, context)
    base = resolve_model(config.model)
    saved = Path(base.source)
    folder = saved if saved.is_dir() else materialize(base.source, context.log)
    base = resolve_model(config.model)  # again: setting up a model gives more precise facts
    if base.facts.note:
        context.environment(source=base.facts.note)
    context.phases(work(base))
    type = exported_type(config.type, base)
    exported_embedding(config.embedding, type, base)
    title = re.sub(r"[^\w.]+", "-", base.facts.title).strip("-") or "model"
    name = f"{title}-{type}.gguf"
    context.log(f"Writing {config.model} as {name}.")
    with Checkpoints(context.folder).write(FOLDER) as draft:
        write_gguf(
            folder, draft / name, type, base.packed, base.facts.title, context, config.embedding
        )
        origin = origin_of(base.source)
        card = gguf_card(name, config.model, type, context.run, origin, base.facts.note)
        (draft / CARD).write_text(card, encoding="utf-8")
        copy_terms(origin, draft)
    file = context.folder / FOLDER / name
    digest, size = sha256_of(file), file.stat().st_size
    context.result(MODEL, MetricKey(BYTES, series=type), size)
    context.environment(weights_sha256=digest)
    context.artifact(file.parent, FOLDER, digest)
    context.log(f"Wrote {name}, {size / 1e6:.1f} MB. sha256: {digest}")
