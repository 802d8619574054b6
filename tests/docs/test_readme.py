"""README.md: its Python example, executed as it stands."""

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_readme_example_runs(code_blocks, tmp_path, monkeypatch):
    pytest.importorskip("ldmprobe")
    monkeypatch.chdir(tmp_path)
    (code,) = code_blocks("README.md")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    names = {}
    exec(code, names)
    assert names["means"].dims == ("condition", "kind", "metric", "step", "layer")
    assert names["probe"].weight.ndim == 1
    assert isinstance(names["effect"].mean, float)
    assert list(tmp_path.glob("runs/*/report/index.html"))
