"""The dense weights of one layer, from which the page's scripts make any format at once: rows of
the matrix as they lie in the model's files, and the energies of its inputs where a run has stored
them. Needs no process that holds the model."""

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from backend.errors import ModelError, NotFoundError, SlimscopeError
from backend.models.families.stored import LinearShape
from backend.models.sources.catalogue import local_folder
from backend.statistics.regions import Region, read_region
from backend.statistics.tensors import BINS, INPUT_ENERGY, QUANTILES, histogram_edge
from backend.store import queries, tensors
from jobs.fields.models import is_run, resolve_model
from ui.api_errors import error_response
from ui.runs.weights import DENSE
from ui.widgets.packed import PackedArrays

PATH = "/slimscope/workbench/weights"
MOST = 1_000_000  # weights that are sent; of a larger matrix, rows at equal distances

ELSEWHERE = ("The files of this model are not here yet.", "", "They come with its first run.")


def weights(request: Request) -> Response:
    """Answer to `?model=smollm2-135m&name=model.layers.0.mlp.up_proj`: arrays weights [rows,
    columns] float32, and energy [columns], which may be missing; the header has all rows."""
    query = request.query_params
    try:
        return _packed(query.get("model", ""), query.get("name", "")).answer(request)
    except SlimscopeError as error:
        return error_response(error, 404)


def _packed(model: str, name: str) -> PackedArrays:
    if not is_run(model) and local_folder(model) is None:  # nothing is looked up elsewhere
        raise ModelError(*ELSEWHERE)
    resolved = resolve_model(model, reads=False)
    matrices = (*resolved.facts.linears, *resolved.facts.embeddings)
    shape = next((x for x in matrices if x.name == name), None)
    if shape is None:
        raise NotFoundError(f"{name[:80]!r} is no layer of {model[:80]}.")
    values = _rows(resolved.source, shape)
    arrays = {"weights": values} | _energy(model, f"{name}.weight", shape.columns)
    edge = histogram_edge(*map(float, np.quantile(values, (QUANTILES[0], QUANTILES[-1]))))
    return PackedArrays.of({"name": name, "bins": BINS, "edge": edge}, arrays, compress=False)


def _rows(source: str, shape: LinearShape) -> np.ndarray:
    """At most `MOST` weights of a matrix, whole rows of it [rows, columns]."""
    folder, stored = local_folder(source), shape.stored
    if folder is None:
        raise ModelError(*ELSEWHERE)
    step = -(-shape.weights // MOST)
    tensor = stored.names[0] if stored.names else f"{shape.name}.weight"
    rows, columns, steps, found = (0, shape.rows), (0, shape.columns), (step, 1), None
    if stored.transposed:
        rows, columns, steps = columns, rows, (1, step)
    if len(stored.names) < 2 and stored.expert is None:
        found = read_region(folder, tensor, Region(rows, columns), steps)
    if found is None:
        raise ModelError("The weights of this layer are stored together with others, or packed.")
    return np.ascontiguousarray(found.T if stored.transposed else found, "<f4")


def _energy(model: str, tensor: str, columns: int) -> dict[str, np.ndarray]:
    """Mean square [columns] of the inputs in the dense model, of the newest run that has it."""
    jobs = queries.runs_with_profile(INPUT_ENERGY)
    for job in (job for job in jobs if job.config.get("model") == model):
        for found in tensors.profiles(job.id, tensor, INPUT_ENERGY):
            if found.stage == DENSE and len(found.values) == columns:
                return {"energy": found.values.astype("<f4")}
    return {}
