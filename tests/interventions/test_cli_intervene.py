"""Messages of ``ldmprobe intervene`` about wrong options."""

import pytest

from flows import cli


def test_cli_intervene_refuses_wrong_options(run, monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr("sys.argv", ["ldmprobe", "intervene", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        assert stop.value.code == 1
        assert "Prefect" not in captured.out
        return " ".join(captured.err.split())

    assert "prop: 'shape'" in call(run.url, "--property", "shape")
    assert "--shift is 'right'" in call(run.url, "--shift", "right")
    assert "steps do not apply to a causal map" in call(run.url, "--map", "--steps", "1")
    assert "does not edit this property" in call(run.url, "--published", "--property", "shading")
    assert "strength is 2" in call(run.url, "--strength", "2")
    assert "holds no summary.json" in call(run.url + "-none")
