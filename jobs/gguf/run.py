"""GGUF export job: writes a saved model as one GGUF file with a model card."""

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
    """Run the export. It takes seconds to minutes, so an interrupted run starts over."""
    prepare(config, context)
    model = resolve_model(config.model)
    source = Path(model.source)
    folder = source if source.is_dir() else materialize(model.source, context.log)
    model = resolve_model(config.model)  # again: facts are more precise once the model is set up
    if model.facts.note:
        context.record_environment(source=model.facts.note)
    context.phases(work(model))
    linear_type = exported_type(config.type, model)
    exported_embedding(config.embedding, linear_type, model)
    file_stem = re.sub(r"[^\w.]+", "-", model.facts.title).strip("-") or "model"
    file_name = f"{file_stem}-{linear_type}.gguf"
    context.log(f"Writing {config.model} as {file_name}.")
    with Checkpoints(context.folder).write(FOLDER) as draft:
        write_gguf(
            folder,
            draft / file_name,
            linear_type,
            model.packed,
            model.facts.title,
            context,
            config.embedding,
        )
        origin = origin_of(model.source)
        card = gguf_card(
            file_name, config.model, linear_type, context.run, origin, model.facts.note
        )
        (draft / CARD).write_text(card, encoding="utf-8")
        copy_terms(origin, draft)
    file = context.folder / FOLDER / file_name
    digest, size = sha256_of(file), file.stat().st_size
    context.result(MODEL, MetricKey(BYTES, series=linear_type), size)
    context.record_environment(weights_sha256=digest)
    context.artifact(file.parent, FOLDER, digest)
    context.log(f"Wrote {file_name}, {size / 1e6:.1f} MB. sha256: {digest}")
