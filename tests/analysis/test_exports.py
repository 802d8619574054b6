"""Export of scores: values against the stored arrays, and refused paths."""

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

import ldmprobe as lp
from flows import cli
from ldmprobe_core.analysis.exports import latex_table
from ldmprobe_core.analysis.records import load_summary
from ldmprobe_core.errors import UserError
from ldmprobe_core.probing.inference.emergence import Crossing


def stored_means(run):
    """Mean over test samples of every defined cell, read from the arrays without ldmprobe."""
    root = zarr.open_group(run.url, mode="r")
    split = root["samples/split"][...]
    means = {}
    for prop in ("foreground", "depth", "shading"):
        group = root[f"scores/{prop}"]
        axes = [group[dim][...] for dim in ("condition", "kind", "metric", "step", "layer")]
        scores = group["score"][...][..., split[group["sample"][...]] == "test"].astype(float)
        for index in np.ndindex(scores.shape[:-1]):
            values = scores[index][np.isfinite(scores[index])]
            if len(values):
                names = [str(axis[i]) for axis, i in zip(axes, index, strict=True)]
                means[prop, *names] = values.mean(), len(values)
    return means


def keyed(rows):
    names = ("property", "condition", "kind", "metric", "step", "layer")
    return {
        tuple(str(row[name]) for name in names): (float(row["mean"]), int(row["samples"]))
        for row in rows
    }


def test_csv_has_the_mean_of_every_stored_cell(finished_run, tmp_path):
    lp.open_run(finished_run.url).export_scores(tmp_path / "scores.csv")
    with open(tmp_path / "scores.csv", newline="") as file:
        exported = keyed(csv.DictReader(file))
    expected = stored_means(finished_run)
    assert exported.keys() == expected.keys()
    for cell, (mean, samples) in expected.items():
        assert exported[cell] == (pytest.approx(mean, abs=1e-6), samples)


def test_parquet_has_the_mean_of_every_stored_cell(finished_run, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    lp.open_run(finished_run.url).export_scores(tmp_path / "scores.parquet")
    table = parquet.read_table(tmp_path / "scores.parquet")
    types = {name: str(table.schema.field(name).type) for name in ("step", "mean", "layer")}
    assert types == {"step": "int64", "mean": "double", "layer": "string"}
    exported, expected = keyed(table.to_pylist()), stored_means(finished_run)
    assert exported.keys() == expected.keys()
    for cell, (mean, samples) in expected.items():
        assert exported[cell] == (pytest.approx(mean, abs=1e-6), samples)


def test_parquet_without_pyarrow_is_one_sentence(finished_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(lp.UserError, match=r"path: Parquet needs the package pyarrow \(a.parquet"):
        lp.open_run(finished_run.url).export_scores(tmp_path / "a.parquet")


def test_latex_has_a_row_for_each_property(finished_run, tmp_path):
    lp.open_run(finished_run.url).export_scores(str(tmp_path / "table.tex"))
    text = (tmp_path / "table.tex").read_text()
    body = text.partition("\\midrule\n")[2].partition("\\bottomrule")[0]
    rows = [re.split(r" & ", line.removesuffix(" \\\\")) for line in body.splitlines()]
    summary, means = load_summary(finished_run), stored_means(finished_run)
    assert [row[0].partition(" ")[0] for row in rows] == ["foreground", "depth", "shading"]
    for row, (name, result) in zip(rows, summary.properties.items(), strict=True):
        assert len(row) == 8
        best = result.best
        mean, _ = means[name, "probe", best.kind, best.metric, str(best.step), best.layer]
        assert float(row[1].partition(" ")[0]) == pytest.approx(mean, abs=0.005001)
        assert row[6] == str(best.step)
        assert row[7] == best.layer.replace(".transformer_blocks.0", "").replace("_", "\\_")
    assert not re.search(r"(?<!\\)[_#$]|–", body)


def test_latex_sets_steps_after_the_last_one_in_mathematics(finished_run):
    """In text, `>` prints as an inverted question mark."""
    summary = load_summary(finished_run).model_copy(deep=True)
    depth = summary.properties["depth"]
    depth.emergence.probe.relative.onset = Crossing(
        step=None, low=1, high=None, determined=False, distribution=[0.5] * 3
    )
    depth.best.layer = "a<b|c"
    table = latex_table(summary)
    assert "not determined [1, $>$3]" in table
    assert "a$<$b$|$c" in table
    assert not re.search(r"(?<!\$)[<>|]", table.partition(r"\midrule")[2])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("scores.xlsx", r"path: scores cannot be exported .* suffix \(scores.xlsx\)"),
        ("scores", "path: scores cannot be exported to a file with this suffix"),
        ("nowhere/scores.csv", r"path: its folder does not exist"),
    ],
)
def test_a_path_without_format_or_folder_is_refused(finished_run, tmp_path, name, words):
    with pytest.raises(lp.UserError, match=words):
        lp.open_run(finished_run.url).export_scores(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", [None, 3, ["scores.csv"]])
def test_what_is_no_path_is_refused(finished_run, path):
    with pytest.raises(
        lp.UserError, match=r"path: .* is not a path\. Fix: give the path of a file"
    ):
        lp.open_run(finished_run.url).export_scores(path)


@pytest.mark.parametrize("address", ["s3://bucket/scores.csv", "gs://bucket/scores.tex"])
def test_an_address_is_no_path(finished_run, tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    for path in (address, Path(address)):
        with pytest.raises(
            UserError, match=rf"path: '{address[:4]}.* is no local path\. Fix: give"
        ):
            lp.open_run(finished_run.url).export_scores(path)
    (tmp_path / "a:").mkdir()
    lp.open_run(finished_run.url).export_scores("a:/scores.csv")
    assert (tmp_path / "a:/scores.csv").is_file()


def test_a_path_below_the_home_folder_is_read_as_a_shell_does(finished_run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    lp.open_run(finished_run.url).export_scores("~/scores.csv")
    assert (tmp_path / "scores.csv").is_file()


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".tex"])
def test_a_file_that_cannot_be_written_is_one_sentence(finished_run, tmp_path, suffix, monkeypatch):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow.parquet")
    run = lp.open_run(finished_run.url)
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(UserError, match=r"cannot be written there .*Is a directory\)\. Fix: "):
        run.export_scores(tmp_path / f"folder{suffix}")
    former = tmp_path / f"scores{suffix}"
    former.write_text("former")

    def full(path, content):
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"No space left on device\)\. Fix: "):
        run.export_scores(former)
    assert former.read_text() == "former"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"folder{suffix}", former.name]


def test_the_command_export_writes_the_file(finished_run, tmp_path, monkeypatch, capsys):
    target = tmp_path / "scores.csv"
    monkeypatch.setattr("sys.argv", ["ldmprobe", "export", finished_run.url, "--to", str(target)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    assert target.read_text().startswith("property,metric,kind,condition,step,layer,mean,samples")
