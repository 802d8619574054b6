"""Messages of ``ldmprobe intervene`` about wrong options."""

import shlex

import pytest

from benchmarks.intervention_results import COMMANDS, settings_of
from flows import cli
from flows.commands import intervene
from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.targets import Target
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.sections import Execution


def test_cli_intervene_refuses_wrong_options(run, monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr("sys.argv", ["ldmprobe", "intervene", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        assert stop.value.code == 1
        assert "Prefect" not in captured.out
        return " ".join(captured.err.split())

    assert "no property of this name that can be edited ('shape')" in call(
        run.url, "--property", "shape"
    )
    assert "--shift is 'right'" in call(run.url, "--shift", "right")
    assert "steps do not apply to a causal map" in call(run.url, "--map", "--steps", "1")
    assert "does not edit this property" in call(run.url, "--published", "--property", "shading")
    assert "windows: only a causal map has windows (3)" in call(run.url, "--windows", "3")
    for number in ("0", "-2"):
        assert f"windows is {number}" in call(run.url, "--map", "--windows", number)
    assert "controls: null edits are named, but switched off (coherent)" in call(
        run.url, "--control", "coherent", "--no-controls"
    )
    assert "targets: the method leace does not use it (shift 0.2, 0)" in call(
        run.url, "--method", "leace", "--shift", "0.2,0"
    )
    assert "add adam or plain_logistic to probes.kinds" in call(run.url, "--published")
    assert "add adam or plain_ridge to probes.kinds" in call(
        run.url, "--published", "--property", "depth"
    )
    assert "an intervention has the study, and the type of device, of its run. Fix: set" in call(
        run.url, "--set", "sampling.steps=3"
    )
    assert "execution.workers is 0" in call(run.url, "--set", "execution.workers=0")
    assert "strength is 2" in call(run.url, "--strength", "2")
    assert "holds no summary.json" in call(run.url + "-none")


CLUSTER = {"runner": "dask", "address": "tcp://gone:8786", "gpus_per_worker": 1, "device": "cuda"}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], CLUSTER),
        (["runner=local", "workers=3"], {"runner": "local", "workers": 3, "device": "cuda"}),
        (
            ["runner=dask", "address=tcp://here:8786"],
            {"runner": "dask", "address": "tcp://here:8786", "device": "cuda"},
        ),
    ],
)
def test_execution_of_an_intervention_replaces_workers_that_are_gone(overrides, expected):
    stored = parse_study({"execution": CLUSTER})
    words = [f"execution.{override}" for override in overrides]
    assert intervene.execution_of(stored, words) == Execution(**expected)


@pytest.mark.parametrize("override", ["execution.device=cpu", "sampling.steps=3", "execution"])
def test_execution_of_an_intervention_changes_nothing_else(override):
    with pytest.raises(UserError, match=r"Fix: set execution\.runner"):
        intervene.execution_of(parse_study({}), [override])


@pytest.fixture
def settings_of_call(run, monkeypatch):
    """Function from words of the command line to the parsed intervention, which is not made."""
    parsed = []
    monkeypatch.setattr(
        intervene, "run_intervention", lambda finished, spec, _: parsed.append(spec)
    )

    def call(*words, kinds=("plain_ridge", "plain_logistic", "adam")):
        monkeypatch.setattr(type(run.study), "linear_kinds", property(lambda study: kinds))
        monkeypatch.setattr("sys.argv", ["ldmprobe", "intervene", run.url, *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return parsed.pop() if stop.value.code in (0, None) else None

    return call


def test_cli_intervene_published_takes_the_published_settings_and_kind(settings_of_call, capsys):
    spec = settings_of_call("--published", "--samples", "4")
    assert (spec.kind, spec.method, spec.steps, spec.samples) == ("adam", "adam", 5, 4)
    spec = settings_of_call(
        "--published", "--property", "depth", "--mirror", kinds=("plain_ridge",)
    )
    assert (spec.kind, spec.targets) == ("plain_ridge", (Target(mirror=True, stretch=9.0),))
    assert settings_of_call("--published", "--steps", "2") is None
    assert "steps: it is one of the published settings (2)" in capsys.readouterr().err


def test_cli_intervene_divides_the_steps_of_a_causal_map_into_five_windows(settings_of_call):
    assert settings_of_call("--map").windows == 5
    assert settings_of_call("--map", "--windows", "1").windows == 1
    assert settings_of_call().windows is None


@pytest.mark.parametrize("name", COMMANDS)
def test_documented_commands_have_the_settings_of_the_committed_results(name, settings_of_call):
    assert settings_of_call(*shlex.split(COMMANDS[name])) == settings_of(COMMANDS[name])
