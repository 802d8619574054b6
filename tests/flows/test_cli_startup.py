"""Tests of what a command imports, its CPU time, and terminals without Unicode."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiers import rest_slow

HEAVY = {"torch", "diffusers", "transformers", "matplotlib", "prefect", "distributed"}
SCRIPT = """
import json, os, sys
from flows.cli import main
sys.argv = {argv!r}
try:
    main()
except SystemExit:
    pass
sys.stdout.flush()
times = os.times()
print(json.dumps([sorted(sys.modules), times.user + times.system]), file=sys.stderr)
"""


def command(*words: str) -> tuple[str, set[str], float]:
    """Run a command, and return its output, the packages that it imported, and its CPU seconds."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(argv=["ldmprobe", *words])],
        capture_output=True,
        check=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    modules, seconds = json.loads(done.stderr.decode().splitlines()[-1])
    return done.stdout.decode(), {name.partition(".")[0] for name in modules}, seconds


LIBRARIES = """
import os
import rich.console, rich.table, typer, typer.rich_utils
times = os.times()
print(times.user + times.system)
"""


def test_help_takes_half_a_second_of_cpu():
    """The time is the CPU's, so that other processes hardly count, and the least of three."""
    seconds = min(command("--help")[2] for _ in range(3))
    libraries = min(
        float(subprocess.run([sys.executable, "-c", LIBRARIES], capture_output=True).stdout)
        for _ in range(3)
    )
    # On a slow machine, typer and rich alone, which print the help, can take as long.
    assert seconds < max(0.5, 2 * libraries)


@pytest.mark.parametrize("name", ["run", "check", "classify", "fetch", "submit"])
@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["missing.yaml"], "no such file"),
        (["tabletop", "--set", "sampling.steps=0"], "sampling.steps is 0"),
    ],
)
def test_a_mistake_in_a_study_is_reported_before_models_are_imported(name, words, problem):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(argv=["ldmprobe", name, *words])],
        capture_output=True,
        text=True,
        check=True,
    )
    assert problem in done.stderr
    modules, _ = json.loads(done.stderr.splitlines()[-1])
    assert not {name.partition(".")[0] for name in modules} & HEAVY


def test_an_unknown_backend_of_matplotlib_ends_no_command():
    """A notebook leaves the name of its backend to the commands that are called from it."""
    subprocess.run(
        [sys.executable, "-c", "import flows.cli, matplotlib"],
        check=True,
        env=os.environ | {"MPLBACKEND": "nothing"},
    )


def test_help_of_every_command_imports_no_library_of_the_core():
    """One process prints all help texts, and then lists every module that it imported."""
    from flows.cli import app

    names = [str(c.name or c.callback.__name__).rstrip("_") for c in app.registered_commands]
    assert {"check", "run", "verify", "open"} <= set(names)
    script = (
        "import json, sys\nfrom flows.cli import app\n"
        f"for words in {[[], *([name] for name in names)]!r}:\n"
        "    try:\n        app([*words, '--help'])\n"
        "    except SystemExit as stop:\n        assert not stop.code, words\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.decode().count("Usage:") == len(names) + 1
    modules = {name.partition(".")[0] for name in json.loads(done.stderr)}
    core = {"numpy", "zarr", "xarray", "pandas", "fsspec"}
    assert not modules & (HEAVY | core)
    # Typer itself imports pydantic to read the parameters of a command, but not for all commands.
    _, modules, _ = command("--help")
    assert not modules & (HEAVY | core | {"pydantic"})


@pytest.fixture(scope="module")
def finished(finished_run, tmp_path_factory):
    """Return a copy of a finished run, whose report the command `report` writes again."""
    from ldmprobe_core.storage.run import Run

    target = tmp_path_factory.mktemp("shown") / Path(finished_run.url).name
    return Run(str(shutil.copytree(finished_run.url, target)))


def test_show_and_compare_read_runs_without_torch(finished):
    output, modules, _ = command("show", finished.url)
    assert "foreground" in output
    assert not modules & HEAVY
    output, modules, _ = command("compare", finished.url, finished.url)
    assert "last step" in output
    assert not modules & HEAVY


@pytest.fixture
def terminal(monkeypatch):
    """Return a function that runs a command on a terminal with an encoding, in this process."""

    def call(encoding, *words):
        from flows import cli

        streams = [io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        monkeypatch.setattr(sys, "argv", ["ldmprobe", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        for stream in streams:
            stream.flush()
        return stop.value.code, *(stream.buffer.getvalue().decode(encoding) for stream in streams)

    return call


@pytest.mark.parametrize("encoding", rest_slow(["ascii", "latin-1"], (0,)))
@pytest.mark.parametrize(
    ("words", "code", "shown"),
    [
        (["--help"], 0, "Usage: "),
        (["check", "STUDY"], 0, "about 0.0"),
        (["run", "STUDY", "--store", "STORE"], 0, "is finished already"),
        (["show", "RUN"], 0, "foreground"),
        (["show", "RUN", "--json"], 0, '"properties"'),
        (["compare", "RUN", "RUN"], 0, "last step"),
        (["compare", "RUN", "RUN", "--json"], 0, '"last step"'),
        (["verify", "RUN"], 0, "every chunk is as it was written"),
        (["report", "RUN"], 0, "report/index.html"),
        (["classify", "STUDY", "--store", "STORE", "--photographs", "größe–→"], 1, "ldmprobe: "),
        (["intervene", "RUN", "--property", "größe–→"], 1, "ldmprobe: "),
        (["open", "größe–→"], 1, "ldmprobe: "),
        (["check", "größe–→.yaml"], 1, "ldmprobe: "),
    ],
    ids=lambda value: (
        " ".join(value).encode("ascii", "replace").decode() if isinstance(value, list) else None
    ),
)
def test_command_prints_on_a_terminal_without_unicode(
    terminal, finished, tmp_path, encoding, words, code, shown
):
    """Characters that the terminal lacks appear as question marks, and the exit code stays."""
    study = tmp_path / "große–→.yaml"
    study.write_text(finished.location.read_text("study.json"), "utf-8")
    places = {"STUDY": str(study), "RUN": finished.url, "STORE": finished.url.rpartition("/")[0]}
    exit_code, output, errors = terminal(encoding, *(places.get(word, word) for word in words))
    assert exit_code == code, errors
    assert shown in output + errors
    assert "unexpected" not in errors
    assert "Traceback" not in errors
