"""What the scripts of Weights are sent: every number as it is stored, once, to whom it belongs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import save_file
from sqlalchemy import delete, update
from starlette.testclient import TestClient

from backend.models.loading import load
from backend.settings import Settings
from backend.statistics.tensors import RELATIVE_ERROR
from backend.store import frames, tensors
from backend.store.session import writing
from backend.store.tables import Job, TensorRow
from tests.ui.visits import OTHER, Visit, unpacked
from ui.pages.weights import histograms
from ui.static import MODULES, modules_version

TENSOR = "model.layers.2.mlp.up_proj.weight"


@pytest.fixture
def client(visit: Visit) -> TestClient:
    return visit()


def got(client: TestClient, **query: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of an answer."""
    answer = client.get(histograms.PATH, params=query)
    assert answer.status_code == 200 and answer.headers["cache-control"] == "private, no-cache"
    return unpacked(answer.content)


def test_perplexity_and_output_error_may_disagree() -> None:
    """Stages are ranked by the error of most layers and by perplexity."""
    rows = [("a", "sds", 0.1), ("a", "control", 0.2), ("b", "sds", 0.3), ("b", "control", 0.4)]
    rows += [("a", "gptq", 0.1), ("a", "dlqat", 0.2)]  # a trained stage
    weights: Any = SimpleNamespace(
        table=pd.DataFrame(rows, columns=["tensor", "stage", RELATIVE_ERROR])
    )
    sds_first = {"after": "sds", "rival": "control", "before": ""}
    control_first = {"after": "control", "rival": "", "before": "sds"}
    trained = {"after": "dlqat", "rival": "", "before": "gptq"}
    perplexity = {"dlqat": 20.0, "gptq": 22.0}
    assert histograms.disagreement(weights, perplexity, trained) == histograms.TRADED
    for own, theirs, words in (
        (20.0, 22.0, ""),
        (22.0, 20.0, "higher, 22.0 against 20.0"),
        (np.nan, 20.0, ""),
    ):
        perplexity = {"sds": own, "control": theirs}
        said = histograms.disagreement(weights, perplexity, sds_first)
        assert words in said and bool(words) == bool(said)
        other = histograms.disagreement(weights, perplexity, control_first)
        assert bool(other) == bool(words)
        assert not histograms.disagreement(weights, perplexity, sds_first | {"rival": ""})


def test_a_run_opens_on_its_result(seeded: Settings, client: TestClient) -> None:
    """Also on a stage beside the main ones, without an output error of its own."""
    with writing() as session:
        session.get_one(Job, 1).kept_stage = "second"
    header, _ = got(client, run="sds-0001")
    assert header["defaults"]["stage"] == "second" == header["effect"]["after"]


def test_every_histogram_and_statistic_is_sent_as_it_is_stored(client: TestClient) -> None:
    header, arrays = got(client, run="sds-0001")
    stages = [stage["name"] for stage in header["stages"]]
    names = [name for name, *_ in header["tensors"]]
    assert stages == ["dense", "first", "control", "redense", "second", "sds"]
    assert len(names) == 21 and arrays["counts"].shape == (21, 6, 256)
    stages_of_effect = {"before": "first", "after": "sds", "rival": "control"}
    note = "Yet perplexity is lower, 5.9 against 6.1: errors of layers add up or cancel."
    assert header["effect"] == stages_of_effect | {"note": note}
    errors = frames.tensor_table(1).pivot(index="tensor", columns="stage", values=RELATIVE_ERROR)
    assert (errors["sds"] > errors["control"]).mean() > 0.5
    assert {s["name"] for s in header["stages"] if not s["pruned"]} == {"dense", "redense"}
    typical = "model.layers.1.mlp.up_proj.weight"
    assert header["defaults"] == {"stage": "sds", "stat": "relative_error", "tensor": typical}
    assert header["kept"] == "sds" and header["stages"][1]["perplexity"] == 8.2
    for t, name in enumerate(names):
        for one in tensors.tensor_snapshots(1, name):
            s = stages.index(one.stage)
            assert arrays["counts"][t, s].tolist() == one.counts.tolist()
            assert arrays["tails"][t, s].tolist() == [one.n, one.zeros, one.below, one.above]
            assert tuple(arrays["edges"][t]) == (one.lo, one.hi)
            assert arrays["tails"][t, s, 0] == one.counts.sum() + arrays["tails"][t, s, 1:].sum()
    table = frames.tensor_table(1).set_index(["tensor", "stage"])
    for k, statistic in enumerate(header["statistics"]):
        if statistic["name"] in table:  # the largest magnitude is of two that are stored
            by_stage = table[statistic["name"]].unstack().loc[names, stages]
            if statistic["name"] in histograms.FROM_DENSE:
                by_stage = by_stage.fillna({"dense": 0.0})  # the reference
            stored = by_stage.to_numpy(float)
            assert np.array_equal(arrays["values"][k], stored, equal_nan=True)
    unlisted = header["unlisted"].index("cutoff") + len(header["statistics"])
    assert arrays["values"][unlisted, 0, 1] == table.loc[(names[0], "first"), "cutoff"]


def test_a_browser_that_has_it_is_told_so(client: TestClient, seeded: Settings) -> None:
    params = {"run": "sds-0002"}
    first = client.get(histograms.PATH, params=params)
    assert first.headers["content-encoding"] == "gzip"
    known = {"If-None-Match": f"W/{first.headers['etag']}"}
    again = client.get(histograms.PATH, params=params, headers=known)
    assert (again.status_code, again.content) == (304, b"")
    plain = client.get(histograms.PATH, params=params, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers and plain.content == first.content
    with writing() as session:
        session.execute(delete(TensorRow).where(TensorRow.job_id == 2, TensorRow.stage == "first"))
    after = client.get(histograms.PATH, params=params, headers=known)
    assert after.status_code == 200 and after.headers["etag"] != first.headers["etag"]
    assert [s["name"] for s in got(client, **params)[0]["stages"]] == ["dense"]


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("sds-0003", "sds-0003 has stored no weight statistics yet. They appear here"),
        ("sds-0005", "sds-0005 has stored no weight statistics."),
        ("sds-0999", "There is no run sds-0999. Choose one above."),
        ("<img src=x>", "There is no run <img src=x>."),
        ("../results.db", "There is no run ../results.db."),
        ("sds-0001' OR 1=1", "There is no run"),
        ("1", ""),
        ("x" * 5000, "There is no run"),
    ],
)
def test_who_has_none_and_odd_names_are_refused_with_the_reason(
    client: TestClient, run: str, said: str
) -> None:
    answer = client.get(histograms.PATH, params={"run": run})
    if not said:
        assert answer.status_code == 200  # the number of a run is its name, too
        return
    code = 404 if "no run" in said else 200  # a run without statistics is no error
    assert answer.status_code == code and answer.json()["what"].startswith(said)
    assert "<img" not in answer.json()["html"]


def test_no_run_a_removed_and_a_purged_one(client: TestClient, seeded: Settings) -> None:
    assert got(client)[0]["run"] == "sds-0002", "the newest, without a name"
    with writing() as session:
        session.get_one(Job, 1).removed_at = 1
    header, _ = got(client, run="sds-0001")
    assert any("(deleted)" in label for label, run, _ in header["runs"] if run == "sds-0001")
    with writing() as session:
        session.get_one(Job, 1).purged = True
        session.execute(delete(TensorRow))
    answer = client.get(histograms.PATH, params={"run": "sds-0001"})
    assert answer.status_code == 200 and "and its figures were deleted" in answer.json()["what"]
    gone = client.get(histograms.PATH, params={"run": "sds-0001", "tensor": TENSOR})
    assert gone.status_code == 200 and "deleted" in gone.json()["what"]
    answer = client.get(histograms.PATH)
    assert answer.status_code == 200 and answer.json()["what"].startswith(histograms.NO_RUN)
    assert 'href="new-run"' in answer.json()["html"]


def test_who_may_not_see_pages_gets_no_numbers_and_guests_what_pages_show(shared: Visit) -> None:
    here = {"params": {"run": "sds-0001"}}
    assert shared(OTHER).get(histograms.PATH, **here).status_code == 200
    for headers, refused in (
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Authorization": "Bearer wrong"}, 401),
    ):
        answer = shared(OTHER).get(histograms.PATH, **here, headers=headers)
        assert answer.status_code == refused and b"counts" not in answer.content
    for method in ("post", "put", "delete"):
        assert getattr(shared(OTHER), method)(histograms.PATH).status_code in (403, 405, 411)


def test_many_histograms_come_with_fewer_bins_and_too_many_not_at_all(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = got(client, run="sds-0001")
    for most, bins in ((4 * 21 * 6 * 256 - 1, 128), (4 * 21 * 6 * 16, 16)):
        monkeypatch.setattr(histograms, "MAX_BYTES", most)
        histograms.packed_of.clear()
        header, arrays = got(client, run="sds-0001")
        assert (header["bins"], header["merged"]) == (bins, 256 // bins)
        assert (arrays["counts"] == whole["counts"].reshape(21, 6, bins, -1).sum(-1)).all()
    monkeypatch.setattr(histograms, "MAX_BYTES", 4 * 21 * 6 * 16 - 1)
    histograms.packed_of.clear()
    answer = client.get(histograms.PATH, params={"run": "sds-0001"})
    assert answer.status_code == 413 and "21 matrices at 6 stages" in answer.json()["what"]
    histograms.packed_of.clear()


def test_damaged_rows_are_left_out(client: TestClient, seeded: Settings) -> None:
    with writing() as session:
        session.execute(
            update(TensorRow)
            .where(TensorRow.tensor == TENSOR, TensorRow.stage == "sds")
            .values(counts=b"broken")
        )
        session.execute(
            update(TensorRow)
            .where(TensorRow.tensor == TENSOR, TensorRow.stage == "first")
            .values(lo=-9.0)
        )
    histograms.packed_of.clear()
    header, arrays = got(client, run="sds-0001")
    t = [name for name, *_ in header["tensors"]].index(TENSOR)
    known = zip(header["stages"], arrays["tails"][t, :, 0], strict=True)
    missing = [stage["name"] for stage, n in known if not n]
    assert missing == ["first", "sds"]
    histograms.packed_of.clear()


def test_profiles_of_a_tensor_are_sent_by_name(client: TestClient) -> None:
    asked = {"run": "sds-0001", "tensor": TENSOR}
    _, arrays = got(client, **asked, names="joint,map_mean,../x,alpha")
    assert {name.split("/")[2] for name in arrays} == {"joint", "map_mean"}
    stored = {p.stage: p.values for p in tensors.profiles(1, TENSOR, "joint")}
    assert np.array_equal(arrays["2/sds/joint"], stored["sds"])
    for odd in ({"tensor": "no"}, {"names": ""}, {"names": "x" * 3000}):
        assert got(client, **{**asked, "names": "joint", **odd})[1] == {}
    other = got(client, run="sds-0002", tensor=TENSOR, names="map_mean")[1]
    assert {name.split("/")[1] for name in other} == {"dense", "first"}, "of that run alone"


def test_single_weights_are_read_from_what_is_there(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = load("toy").model.get_parameter(TENSOR)
    save_file({TENSOR: weight.detach().bfloat16()}, tmp_path / "model.safetensors")
    monkeypatch.setattr(histograms, "saved_folders", lambda job: {"dense": tmp_path})
    asked = {"run": "sds-0001", "tensor": TENSOR}
    header, arrays = got(client, **asked, spot="60,5")
    top, left = header["first"]
    assert arrays["dense"].shape == (48, 48) and top in (16, 36) and left == 0
    assert arrays["dense"][0, 0] == pytest.approx(weight[top, 0].item(), rel=0.01)
    assert got(client, **asked, spot="9999,0")[1] == {}
    assert got(client, **asked, spot="../x")[1] == {}


def test_modules_are_sent_by_their_names_alone(client: TestClient) -> None:
    script = client.get(f"/{MODULES}/{modules_version()}/weights/page.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert "immutable" in script.headers["cache-control"]
    old = client.get(f"/{MODULES}/old/weights/page.js")
    assert old.status_code == 200 and old.headers["cache-control"] == "no-store"
    for path in ("../../app.py", "weights/../slimscope.js", "%2e%2e/static.py", "weights/no.js"):
        assert client.get(f"/{MODULES}/x/{path}").status_code == 404
