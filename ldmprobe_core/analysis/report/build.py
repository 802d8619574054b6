"""The report of a run: one folder, no network."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import suppress
from importlib import resources
from typing import Any

import jinja2
import numpy as np
import yaml
from plotly.offline import get_plotlyjs

from ldmprobe_core.analysis.class_curves import first_stable_step, target_classes
from ldmprobe_core.analysis.records import Summary, load_summary
from ldmprobe_core.analysis.report import figures, intervention_figures, published
from ldmprobe_core.analysis.report.text import (
    best_rows,
    control_columns,
    control_title,
    effect_rows,
    headline,
    lead,
    metric_title,
    number,
    short_layer,
    step,
)
from ldmprobe_core.analysis.summarize import RunAnalysis, summarise
from ldmprobe_core.errors import UserError
from ldmprobe_core.interventions.results import (
    FOLDER,
    completed_interventions,
    read_intervention_summary,
)
from ldmprobe_core.pipeline.labels import label_set
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.probe_kinds import PROBE_KINDS
from ldmprobe_core.study.properties import property_of

GRID_SAMPLES = 4


def build_report(
    run: Run, seconds: dict[str, float], samples: tuple[int, ...] | None = None
) -> Summary:
    """Write ``summary.json`` and ``report/`` into the run.

    Args:
        seconds: wall time of each stage, for the record.
        samples: held-out samples whose step-by-step grids are shown; None takes test samples of
            different classes.

    Raises:
        UserError: a sample is not among those held out.
        RuntimeError: the run is not finished.
    """
    findings = summarise(run, seconds)
    shown = _shown(run, findings, samples)
    pictures = _pictures(run, findings, shown)
    record = findings.summary.model_dump(mode="json", by_alias=True)
    run.location.write_text("report/index.html", _page(run, findings.summary, pictures))
    run.location.write_text("report/plotly.min.js", get_plotlyjs())
    # Last, and whole: a run that has a summary is a finished run.
    run.location.write_text("summary.json", json.dumps(record, indent=2, allow_nan=False) + "\n")
    return findings.summary


def rebuild_report(run: Run, samples: tuple[int, ...] | None = None) -> Summary:
    """Rebuild the report of a finished run from its stored scores.

    Raises:
        UserError: the run is not finished, or a sample is not among those held out.
    """
    return build_report(run, load_summary(run).seconds, samples)


def _shown(run: Run, findings: RunAnalysis, samples: tuple[int, ...] | None) -> list[int]:
    """Samples for the grids: as asked for, or test samples of as many classes as possible."""
    heldout = {int(i) for i in label_set(run).heldout}
    for sample in samples or ():
        if sample not in heldout:
            raise UserError(
                f"sample {sample} was trained on, or is none: held out are "
                f"{min(heldout)}..{max(heldout)}"
                f" without the training samples, such as {int(findings.test[0])}"
            )
    if samples:
        return list(samples)
    everyone = run.samples
    seen: dict[str, list[int]] = {}
    for index in findings.test:
        sample = everyone[index]
        seen.setdefault(sample.category or sample.prompt, []).append(int(index))
    rounds = [group[i] for i in range(GRID_SAMPLES) for group in seen.values() if i < len(group)]
    return sorted(rounds[:GRID_SAMPLES])


def _pictures(run: Run, findings: RunAnalysis, shown: list[int]) -> dict[str, list[dict[str, Any]]]:
    """Draw every figure into the run; file names, alternatives and captions by section."""
    summary, labels, samples = findings.summary, label_set(run), run.samples
    pictures: dict[str, list[dict[str, Any]]] = {
        "properties": [], "samples": [], "classes": [],
        "interventions": [],
    }  # fmt: skip

    def draw(section: str, name: str, figure: Any, alternative: str, **more: Any) -> None:
        run.location.write_bytes(f"report/{name}", figures.png(figure))
        pictures[section].append({"file": name, "alt": alternative, **more})

    for prop, curves in findings.curves.items():
        best = summary.properties[prop].best
        metric = metric_title(best.metric)
        draw(
            "properties",
            f"{prop}-heatmap.png",
            figures.heatmap(prop, curves, run.layers, summary),
            f"Heatmap of {prop} scores, step by layer; best at step {best.step}, {best.layer}.",
            hover={
                "z": [[None if np.isnan(v) else round(float(v), 4) for v in row]
                      for row in curves.cells.T],
                "layers": [short_layer(name) for name in run.layers],
                "best": [best.step, short_layer(best.layer)],
                "title": f"{prop}: {metric} of {curves.kind} probes on test samples",
            },
        )  # fmt: skip
        draw(
            "properties",
            f"{prop}-curves.png",
            figures.curves_figure(prop, findings),
            f"{prop} scores over steps for probes, image labelers and controls.",
        )
    for name in completed_interventions(run):
        draw(
            "interventions",
            f"{name}.png",
            intervention_figures.before_and_after(run, name),
            f"Samples before and after the intervention {name}, with its controls.",
            result=read_intervention_summary(run, name),
        )
        if run.open(f"{FOLDER}/{name}").sizes["target"] > 1:
            draw(
                "interventions",
                f"{name}-strip.png",
                intervention_figures.strip(run, name),
                f"One sample, every target of {name} above and what came out of it below.",
            )
            run.location.write_bytes(
                f"report/{name}.gif", intervention_figures.animation(run, name)
            )
            pictures["interventions"].append(
                {"file": f"{name}.gif", "alt": f"Animation of one sample over {name}'s targets."}
            )
            ffmpeg = shutil.which("ffmpeg")
            if ffmpeg:
                with suppress(OSError, subprocess.CalledProcessError):  # one without H.264, say
                    run.location.write_bytes(
                        f"report/{name}.mp4", intervention_figures.film(run, name, ffmpeg)
                    )
                    pictures["interventions"][-1]["film"] = f"{name}.mp4"
    steps = _columns(summary.steps)
    for index in shown:
        draw(
            "samples",
            f"sample-{index:05d}.png",
            figures.sample_grid(run, labels, summary, index, steps),
            f"Step images, probe maps and labeler maps of sample {index}.",
            caption=samples[index].prompt or samples[index].source_image,
        )
    if summary.classes is not None:
        right, _ = target_classes(run)
        scores = run.read("labels_trajectory", "class_score", sample=shown)
        leading = first_stable_step(scores, right[shown])
        for index, leads in zip(shown, leading, strict=True):
            draw(
                "classes",
                f"class-{index:05d}.png",
                figures.class_figure(run, index, int(right[index]), float(leads)),
                f"Class probabilities over steps of sample {index}.",
                caption=samples[index].prompt or samples[index].source_image,
            )
    return pictures


def _page(run: Run, summary: Summary, pictures: dict[str, Any]) -> str:
    template = resources.files(__package__) / "page.html"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(
        number=number, step=step, lead=lead, effects=effect_rows, control_title=control_title
    )
    study, columns = run.study, control_columns(summary)
    content = yaml.safe_dump(
        json.loads(study.to_json()), sort_keys=False, allow_unicode=True, width=100
    )
    return environment.from_string(template.read_text("utf-8")).render(
        summary=summary,
        study=study,
        headline=headline(summary),
        rows=best_rows(summary),
        pictures=pictures,
        columns=columns,
        residual_columns=[n for n in columns if n != "position" and n not in PROBE_KINDS],
        masks=[name for name in summary.properties if property_of(name).is_mask],
        published=published,
        study_yaml=content,
    )


def _columns(steps: int) -> list[int]:
    """Steps to show: the early ones, where the news is, and the last."""
    wanted = [1, 2, 3, 5, 8, 10, 12, 15]
    return sorted({s for s in wanted if s < steps} | {steps})
