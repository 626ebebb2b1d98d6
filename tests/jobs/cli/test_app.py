"""Tests of the command line, in a separate process where necessary."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backend.printable import readable_bytes
from backend.queue.artifacts import work_folder
from backend.queue.service import cancel, enqueue
from backend.queue.supervisor import SupervisorLoop
from backend.store import queries
from backend.store.tables import Job
from jobs.cli.app import command_for, main
from jobs.kind import kinds
from jobs.operations.registry import OPERATIONS
from jobs.submit import command_line, validate_config
from tests.queue.conftest import HOST
from tests.shell import slimscope

ROOT = Path(__file__).parents[3]


def test_submit_wait_show_and_logs(queue: Path) -> None:
    words = ("submit", "count", "--steps", "2", "--name", "two", "--wait", "--json")
    completed = slimscope(*words, forks=True)
    assert completed.returncode == 0, completed.stderr
    records = json.loads(completed.stdout)
    assert (records["state"], records["name"], records["config"]["steps"]) == (
        "succeeded",
        "two",
        2,
    )
    again = json.loads(slimscope("show", records["id"], "--json").stdout)
    assert again | {"disk_bytes": records["disk_bytes"]} == records
    assert "attempt 1" in slimscope("logs", records["id"], "-f").stdout
    assert "===== attempt 1 =====" in slimscope("logs", records["id"], "--all").stdout
    listed = json.loads(slimscope("list", "--json").stdout)
    assert [row["id"] for row in listed] == [records["id"]]


def test_warnings_of_a_submission_go_to_stderr_and_into_json(queue: Path) -> None:
    few = "slimscope: Warning: 128 calibration tokens are few for layers with "
    words = ("submit", "profile", "--model", "toy", "--context", "32", "--segments")
    done = slimscope(*words, "4")
    assert done.returncode == 0 and done.stderr.startswith(few) and "few" not in done.stdout
    done = slimscope(*words, "4", "--seed", "1", "--json")
    (warning,) = json.loads(done.stdout)["warnings"]
    assert done.stderr == f"slimscope: Warning: {warning}\n"
    done = slimscope(*words, "32", "--json")
    assert (done.stderr, json.loads(done.stdout)["warnings"]) == ("", [])


def test_a_submission_says_the_size_before_and_after(queue: Path) -> None:
    words = ("submit", "dlqat", "--model", "toy", "--context", "64", "--group-size", "32")
    record = json.loads(slimscope(*words, "--json").stdout)
    before, after = record["size_before_bytes"], record["size_after_bytes"]
    assert 0 < after < before
    text = f"{readable_bytes(before)} before, {readable_bytes(after)} after."
    assert slimscope(*words, "--seed", "1").stdout.rstrip().endswith(text)


def test_exit_codes_say_how_it_went(supervised: SupervisorLoop) -> None:
    words = ("submit", "count", "--fails-at", "0", "--wait")
    failed = slimscope(*words, meanwhile=supervised.turn)
    assert failed.returncode == 1 and "It was told to." in failed.stdout
    for words in (
        ("show", "count-0099"),
        ("show", "count-0099", "--json"),
        ("submit", "count", "--steps", "0"),
        ("submit", "count", "--preset", "none such"),
        ("list", "--state", "happy"),
        ("list", "--limit", "-5"),
        ("submit", "count", "--priority", str(2**70)),
        ("resume", "count-0099"),
        ("submit", "benchmark", "--drafters", "amphista-0099"),
        ("pipeline", "file.yaml", "--model", "toy", "--show"),  # which names its own
        ("pipeline", "file.yaml", "--preset", "prune, quantize", "--show"),
    ):
        refused = slimscope(*words)
        assert refused.returncode == 2 and refused.stderr, words
        assert "Traceback" not in refused.stderr and not refused.stdout


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("SLIMSCOPE_NAMES", "lab.org", "names"),
        ("SLIMSCOPE_DATA_DIR", "/proc/nowhere", "/proc/nowhere"),
        ("SLIMSCOPE_DATABASE_URL", "sqlite:////dev/null/results.db", "cannot be used"),
        ("SLIMSCOPE_DATABASE_URL", "nonsense", "It is not the URL of a database."),
        ("SLIMSCOPE_DATABASE_URL", "no://such@kind/of", "There is no such kind of database."),
        ("SLIMSCOPE_DATABASE_URL", "postgresql://a:hidden@b:port/c", "SLIMSCOPE_DATABASE_URL"),
        ("SLIMSCOPE_PORT", "99999", "SLIMSCOPE_PORT"),
    ],
)
def test_what_keeps_us_from_working_is_one_line(
    queue: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, why: str
) -> None:
    monkeypatch.setenv(variable, value)
    refused = slimscope("doctor")
    assert refused.returncode == 2 and why in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1 and "hidden" not in refused.stderr


@pytest.mark.sqlite("a file that is not there")
def test_looking_makes_no_database(data_dir: Path) -> None:
    listed, as_json = slimscope("list"), slimscope("list", "--json")
    assert listed.returncode == as_json.returncode == 0 and json.loads(as_json.stdout) == []
    assert "No runs in" in listed.stdout and slimscope("models").returncode == 0
    completed = slimscope("show", "sds-0001")
    assert completed.returncode == 2 and "There are no runs in" in completed.stderr
    assert not data_dir.exists()


@pytest.mark.parametrize("words", [["serve", "--port", "8123"], []])
def test_dashboard_opens(data_dir: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    class ReplacedError(Exception):
        """Raised instead of starting the new program."""

    def execve(path: str, command: list[str], environment: dict[str, str]) -> None:
        raise ReplacedError(command[1], environment.get("SLIMSCOPE_PORT"))

    monkeypatch.setattr("os.execve", execve)
    monkeypatch.setattr(sys, "argv", ["slimscope", *words])
    with pytest.raises(ReplacedError) as called:
        main()
    script, port = called.value.args
    assert Path(script) == ROOT / "app.py" and Path(script).is_file()
    assert port == ("8123" if words else None)


def test_the_script_refuses_options_instead_of_ignoring_them(data_dir: Path) -> None:
    script = [sys.executable, str(ROOT / "app.py"), "--port", "8123"]
    completed = subprocess.run(script, capture_output=True, text=True, timeout=60)
    assert completed.returncode == 1 and "slimscope serve" in completed.stderr
    assert not data_dir.exists()


def test_a_package_of_somebody_else_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").touch()
    path = f"{tmp_path}:{ROOT}"
    completed = subprocess.run(
        [sys.executable, "-c", "import slimscope; slimscope.main()"],
        env={**os.environ, "PYTHONPATH": path},
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 1 and len(completed.stderr.splitlines()) == 1
    assert "'jobs' is not Slimscope's" in completed.stderr and "pipx install" in completed.stderr


def test_the_command_line_of_a_config_makes_the_same_config() -> None:
    kind = kinds()["sds"]
    values = {
        "model": "toy",
        "pattern": "4:8",
        "control": True,
        "segments": 4,
        "base": "sparsegpt",
    }
    line = command_line("sds", values)
    assert line == (
        "slimscope submit sds --segments 4 --pattern 4:8 --base sparsegpt --control --model toy"
    )
    assert validate_config("sds", values) == kind.config.model_validate(values)


@pytest.mark.parametrize("name", [*kinds()])
def test_every_preset_is_a_valid_config(name: str) -> None:
    for preset in kinds()[name].presets.values():
        assert validate_config(name, preset)


@pytest.mark.sqlite("its backups")
def test_backup_disk_and_free(queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = enqueue("count", {"steps": 1}, HOST).run
    cancel([run], HOST)
    checkpoint = work_folder(run) / "step-0"
    checkpoint.mkdir(parents=True)
    (checkpoint / "done.txt").write_text("x" * 2000)
    written = slimscope("backup", str(tmp_path / "it.tar"), "--checkpoints")
    assert written.returncode == 0 and "2 files" in written.stdout, written.stderr
    use = json.loads(slimscope("disk", "--json").stdout)
    assert use["freeable"] == {run: 2000} and use["bytes"]["runs"] == 2000
    assert f"slimscope free {run}" in slimscope("disk").stdout
    assert json.loads(slimscope("free", run, "--yes", "--json").stdout)["freed_bytes"] == 2000
    again = slimscope("free", run, "--yes")
    assert again.returncode == 2 and "no checkpoints" in again.stderr
    monkeypatch.setenv("SLIMSCOPE_DATA_DIR", str(tmp_path / "other"))
    restored = slimscope("restore", str(tmp_path / "it.tar"))
    assert restored.returncode == 0 and ": 1 run of" in " ".join(restored.stdout.split()), (
        restored.stderr
    )
    assert (tmp_path / "other" / "artifacts" / run / "work" / "step-0" / "done.txt").exists()
    refused = slimscope("restore", str(tmp_path / "it.tar"))
    assert refused.returncode == 2 and "is not empty" in refused.stderr


@pytest.mark.sqlite("its backups")
def test_nothing_is_wrapped_or_cut_in_a_pipe(
    queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")  # of the terminal that the pipe begins in
    name = "a name of eighty letters " + "x" * 55
    run = enqueue("count", {"steps": 1}, HOST, name=name).run
    (listed,) = (line for line in slimscope("list").stdout.splitlines() if run in line)
    assert listed.split()[-1] == name.split()[-1]
    to = tmp_path / ("folder " * 20) / "it.tar"
    to.parent.mkdir()
    written = slimscope("backup", str(to)).stdout.splitlines()
    assert len(written) == 1 and written[0].startswith(f"{to}: ")


def test_looking_imports_nothing_heavy(queue: Path) -> None:
    """The same holds for lists of choices and the facts of a model."""
    code = (
        "import sys\n"
        "from jobs.cli.app import main\n"
        "for words in ('--help', 'list', 'submit sds --help'):\n"
        "    sys.argv = ['slimscope', *words.split()]\n"
        "    try: main()\n"
        "    except SystemExit: pass\n"
        "heavy = ('torch', 'transformers', 'pandas', 'alembic')\n"
        "print([m for m in heavy if m in sys.modules])\n"
        "from backend.models.memory import memory_needed\n"
        "from backend.models.sources.catalog import entries, inspect\n"
        "from backend.text.corpora import corpora\n"
        "memory_needed(inspect('toy')), inspect('smollm2-135m'), entries(), corpora()\n"
        "heavy = ('torch', 'transformers', 'accelerate', 'datasets')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "--adjust-steps" in completed.stdout
    assert [line for line in completed.stdout.splitlines() if line[:1] == "["] == ["[]", "[]"]


def test_a_pipeline_is_followed_until_a_step_does_not_succeed(
    queue: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    followed: list[str] = []

    def follow(run: str) -> Job:
        followed.append(run)
        cancel([run], HOST)
        return queries.job(run)

    monkeypatch.setattr("jobs.cli.runs.follow", follow)
    words = ["--preset", "prune, quantize", "--model", "toy", "--wait"]
    code = command_for(OPERATIONS["pipeline"]).main(words, standalone_mode=False)
    assert code == 3 and len(followed) == 1
    assert f"slimscope resume {followed[0]}" in capsys.readouterr().out
