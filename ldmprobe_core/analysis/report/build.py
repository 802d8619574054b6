"""Build a run's report: a folder with an HTML page and figures.

The page loads nothing from the network, so the folder can be copied and read offline.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import resources
from typing import Any

import jinja2
import yaml

from ldmprobe_core.analysis.controls.records import LARGEST_P
from ldmprobe_core.analysis.controls.wording import (
    control_columns,
    control_title,
    difference_sentences,
    few_categories_sentence,
    named_controls,
    partial_input_lines,
)
from ldmprobe_core.analysis.exports import scores_csv
from ldmprobe_core.analysis.kept_analysis import analyse
from ldmprobe_core.analysis.records import PeakRecord, Summary, load_summary
from ldmprobe_core.analysis.report import figures, intervention_figures, published
from ldmprobe_core.analysis.report.citation import bibtex
from ldmprobe_core.analysis.report.drawing import heatmaps
from ldmprobe_core.analysis.report.drawing.figure_writer import FigureWriter
from ldmprobe_core.analysis.report.drawing.sample_figures import (
    add_sample_grids,
    class_figures,
    draw_sample_pages,
)
from ldmprobe_core.analysis.report.drawing.second_process import SecondProcess
from ldmprobe_core.analysis.report.generalization_figures import (
    generalization_figure,
    generalization_rows,
)
from ldmprobe_core.analysis.report.intervention_text import (
    effect_rows,
    intervention_title,
    map_sentence,
    readings_sentence,
)
from ldmprobe_core.analysis.report.overview import overview_figures
from ldmprobe_core.analysis.report.samples_page import write_samples_page
from ldmprobe_core.analysis.report.text import (
    best_rows,
    headline,
    lead,
    number,
    recognition_sentence,
    spread_sentence,
    step,
    warning_lines,
)
from ldmprobe_core.analysis.run_analysis import RunAnalysis, write_summary
from ldmprobe_core.analysis.stored_probes import SampleMaps
from ldmprobe_core.errors import RunError, UserError, counted
from ldmprobe_core.interventions.results import completed_interventions, read_intervention_summary
from ldmprobe_core.labelers.registry import labelers_of
from ldmprobe_core.pipeline.groups import STEP_IMAGES, samples_in
from ldmprobe_core.probing.inference.bootstrap import fewest_clusters
from ldmprobe_core.storage.lease import hold_lease
from ldmprobe_core.storage.run import Run
from ldmprobe_core.study.layers import short_layer
from ldmprobe_core.study.probe_kinds import PROBE_KINDS
from ldmprobe_core.study.schema import Study

GRID_SAMPLES = 4

_PATIENCE_S = 900.0
"""Longest time in seconds to wait for another process that writes the same report."""


def build_report(
    run: Run,
    seconds: dict[str, float],
    samples: tuple[int, ...] | None = None,
    memory: dict[str, PeakRecord] | None = None,
    second: SecondProcess | None = None,
) -> Summary:
    """Write the HTML report with its figures, and then ``summary.json``, into a run.

    Args:
        run: finished run.
        seconds: wall time by stage, which the summary reports.
        samples: indices of held-out samples to show step by step; None chooses test samples of
            different classes.  They must have step images.
        memory: planned and measured peaks of memory, which the summary reports.
        second: a second process, which computes and draws a part of the report; None does all in
            this one.

    Returns:
        the summary of the run.

    Raises:
        UserError: a sample is not held out, or has no step images.
        RuntimeError: the run is not finished.
    """
    analysis = analyse(run, seconds, memory, second)
    drawn = _samples_to_draw(run, analysis, samples)
    figure_records = _draw(run, analysis, drawn, second)
    page = _page(run, analysis.summary, figure_records)
    run.location.write_text("report/index.html", page)
    run.location.write_text("report/scores.csv", scores_csv(run, list(analysis.curves)))
    run.location.write_text("report/cite.bib", bibtex(analysis.summary))
    # Write the summary last, because a run that has a summary counts as finished.
    write_summary(run, analysis.summary)
    return analysis.summary


def rebuild_report(
    run: Run, samples: tuple[int, ...] | None = None, second: SecondProcess | None = None
) -> Summary:
    """Rebuild the report of a finished run from its stored scores.

    A damaged ``summary.json`` is replaced.  The new one then lacks the wall time of the stages and
    the peaks of memory, of which the damaged file had the only record.

    The run's lease is held meanwhile; another process that holds it is waited for.

    Args:
        run: finished run.
        samples, second: as in `build_report`.

    Raises:
        UserError: the run is not finished, another process works on it for longer than
            a quarter of an hour, or a sample is not held out.
    """
    # The summary lists interventions that are finished when it is written, and marks the run as
    # finished, so no other process may write it, or mark units for repair, at the same time.
    with hold_lease(run.url, "ldmprobe report", patience_s=_PATIENCE_S):
        try:
            summary = load_summary(run)
        except RunError:
            return build_report(run, {}, samples, second=second)
        return build_report(run, summary.seconds, samples, summary.memory, second)


def _samples_to_draw(run: Run, analysis: RunAnalysis, samples: tuple[int, ...] | None) -> list[int]:
    """Return the samples to draw step by step: those given, or test samples of distinct classes."""
    decoded = {int(i) for i in samples_in(run, STEP_IMAGES)}
    heldout = {i for i, sample in enumerate(run.samples[: run.n_stored]) if sample.split != "train"}
    for sample in samples or ():
        if sample not in heldout:
            raise UserError(
                f"samples: sample {sample} is not held out in this run. Fix: choose held-out "
                f"samples, such as {', '.join(str(i) for i in sorted(heldout)[:3])}."
            )
        if sample not in decoded:
            raise UserError(
                f"samples: sample {sample} has no step images in this run. Fix: choose samples "
                f"such as {', '.join(str(i) for i in sorted(decoded & heldout)[:3])}, or make a "
                "run with more trajectory.samples"
            )
    if samples:
        return list(samples)
    by_class: dict[str, list[int]] = {}
    for index in analysis.test:
        if int(index) not in decoded:
            continue
        sample = run.samples[index]
        by_class.setdefault(sample.category or sample.prompt, []).append(int(index))
    # List one sample of each class, then a second one of each, and so on, so that the figures show
    # as many classes as possible.
    candidates = [
        members[i] for i in range(GRID_SAMPLES) for members in by_class.values() if i < len(members)
    ]
    return sorted(candidates[:GRID_SAMPLES])


class _ReportFigures(FigureWriter):
    """Writer of the figures that show a run's statistics and interventions."""

    def __init__(self, run: Run, analysis: RunAnalysis) -> None:
        super().__init__(run)
        self.analysis, self.summary = analysis, analysis.summary

    def add_samples(self, maps: SampleMaps, indices: list[int]) -> None:
        """Draw the overview, and the step images and property maps of the given samples."""
        steps = figures.shown_steps(maps.steps)
        samples = figures.sample_rows(self.run, maps, self.summary.properties, indices, steps)
        for prop, curves, strip in overview_figures(self.analysis, samples, steps):
            self.write("overview", f"overview-{prop}", **curves)
            if strip:
                self.write("overview_images", f"overview-{prop}-sample", **strip)
        add_sample_grids(self, samples, steps, indices)

    def add_properties(self) -> None:
        """Draw each property's score heatmap (step by layer) and its score curves over steps."""
        layers = self.run.layers
        for prop, curves in self.analysis.curves.items():
            best = self.summary.properties[prop].best
            figure, titles = heatmaps.heatmap(prop, curves, layers, self.summary)
            self.write(
                "properties",
                f"{prop}-heatmap",
                figure,
                heatmaps.heatmap_text(prop, self.summary),
                titles,
                caption=heatmaps.heatmap_caption(prop, curves, layers, self.summary),
            )
            self.write(
                "properties",
                f"{prop}-curves",
                figures.curves_figure(prop, self.analysis),
                f"{prop} scores over steps for probes{', image labelers' * curves.labeled} and "
                "controls.",
                caption=figures.curves_caption(prop, curves, best.metric),
            )
            if curves.other_cells or curves.partial_cells is not None:
                text, caption = heatmaps.other_heatmaps_text(prop, curves)
                self.write(
                    "heatmaps",
                    f"{prop}-others",
                    heatmaps.other_heatmaps(curves, layers),
                    text,
                    caption=caption,
                )

    def add_generalization(self) -> None:
        """Draw each property's transfer matrix and learning curves."""
        for prop, result in self.summary.properties.items():
            if result.analyses is not None:
                limits = heatmaps.color_range(self.analysis.curves[prop])
                sizes = ", and over numbers of training images" if result.analyses.learning else ""
                self.write(
                    "generalization",
                    f"{prop}-generalization",
                    generalization_figure(prop, result.analyses, limits),
                    f"Scores of {prop} probes at other steps{sizes}.",
                )

    def add_intervention(self, name: str) -> None:
        """Draw an intervention's effects and images; for several targets, animate the images."""
        run, result = self.run, read_intervention_summary(self.run, name)
        sentence = map_sentence(result) if result.intervention.windows else None
        sentences = [text for text in (sentence, readings_sentence(result)) if text is not None]
        self.write(
            "interventions",
            name,
            intervention_figures.before_and_after(run, name),
            f"Samples before and after the intervention {name}"
            f"{', with its null edits' if len(result.intervention.conditions) > 1 else ''}.",
            result=result,
            sentence=" ".join(sentences),
        )
        if sentence is not None:
            figure = intervention_figures.causal_map(result)
            self.write(
                "interventions",
                f"{name}-map",
                figure,
                f"Effects and scores of probes by layer and steps, of the intervention {name}.",
            )
        elif len(result.sites) > 1:
            self.write(
                "interventions",
                f"{name}-doses",
                intervention_figures.dose_response(result),
                f"Scores with the target over the dose of the intervention {name}.",
            )
        if len(result.intervention.target_names) < 2:
            return
        self.write(
            "interventions",
            f"{name}-strip",
            intervention_figures.strip(run, name),
            f"One sample: every target of {name} above, the edited image below.",
        )
        run.location.write_bytes(f"report/{name}.gif", intervention_figures.animation(run, name))
        animation = {
            "file": f"{name}.gif",
            "alt": f"Animation of one sample over {name}'s targets.",
            "hover": False,
        }
        self.entries["interventions"].append(animation)
        ffmpeg = shutil.which("ffmpeg")
        if ffmpeg:
            # Continue without the MP4 film if ffmpeg fails, because some builds of it have no H.264
            # encoder.
            with suppress(OSError, subprocess.CalledProcessError):
                film = intervention_figures.film(run, name, ffmpeg)
                run.location.write_bytes(f"report/{name}.mp4", film)
                animation["film"] = f"{name}.mp4"


def _draw(
    run: Run, analysis: RunAnalysis, indices: list[int], second: SecondProcess | None
) -> dict[str, Any]:
    """Draw all figures and the page of samples, and write them into the run.

    Args:
        run: finished run.
        analysis: its analysis.
        indices: indices of the samples to draw step by step.
        second: as in `build_report`.

    Returns:
        records of the figures by section of the page, and as ``viewed`` the number of samples on
        the page of samples.
    """
    writer = _ReportFigures(run, analysis)
    summary, maps = analysis.summary, SampleMaps(run, analysis.labels, analysis.summary)

    def draw_statistics() -> None:
        writer.add_properties()
        writer.add_generalization()
        for name in completed_interventions(run):
            writer.add_intervention(name)
        writer.add_samples(maps, indices)

    if second is not None and second.can_read(run):
        second.submit(run, summary, indices)
        draw_statistics()
        part = second.result(lambda: draw_sample_pages(run, maps, summary, indices))
        return writer.entries | part
    # Write the samples page in a second thread while this one draws the figures: reading and
    # encoding images releases the GIL.  Only one thread may draw with Matplotlib.
    with ThreadPoolExecutor(1) as pool:
        viewed = pool.submit(write_samples_page, run, maps, summary)
        draw_statistics()
        classes = class_figures(run, summary, indices)
    return writer.entries | {"classes": classes, "viewed": viewed.result()}


def _page(run: Run, summary: Summary, figure_records: dict[str, Any]) -> str:
    """Render the report's HTML page."""
    template = resources.files(__package__) / "page.html"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(
        number=number, step=step, lead=lead, effects=effect_rows, short_layer=short_layer,
        intervention_title=intervention_title, control_title=control_title, counted=counted,
        partial_input_lines=partial_input_lines,
    )  # fmt: skip
    study, columns = run.study, control_columns(summary)
    made = labelers_of(study)
    analyses = [part.analyses for part in summary.properties.values() if part.analyses]
    content = yaml.safe_dump(
        json.loads(study.to_json()), sort_keys=False, allow_unicode=True, width=100
    )
    return environment.from_string(template.read_text("utf-8")).render(
        summary=summary,
        study=study,
        headline=headline(summary),
        rows=best_rows(summary),
        generalization=generalization_rows(summary),
        figures=figure_records,
        contents=_contents(study, summary, figure_records),
        viewed=figure_records["viewed"],
        columns=columns,
        made=[prop for prop in summary.properties if prop in made],
        named_controls=named_controls(summary),
        differences=difference_sentences(summary, study.capture.keep),
        largest_p=LARGEST_P,
        partial_columns=[n for n in columns if n != "position" and n not in PROBE_KINDS],
        few_categories=few_categories_sentence(summary),
        fewest_clusters=fewest_clusters(study.bootstrap.level),
        intervals=summary.samples["test_groups"] >= fewest_clusters(study.bootstrap.level),
        partial_rows={name: part for name, part in summary.properties.items() if part.best.partial},
        learning=any(one.learning for one in analyses),
        categories=any(one.holdout for one in analyses),
        exact={name: part for name, part in summary.properties.items() if part.exact},
        recognition=recognition_sentence(summary.classes) if summary.classes else "",
        spread=spread_sentence(summary, study.capture.keep),
        warnings=warning_lines(summary, study.capture.keep),
        published=published,
        study_yaml=content,
    )


def _contents(study: Study, summary: Summary, drawn: dict[str, Any]) -> list[tuple[str, str]]:
    """Return anchors and titles of the page's sections; sections without content are left out."""
    exact = any(part.exact for part in summary.properties.values())
    sections = [
        ("exact", "results on exact maps", exact),
        ("vectors", "vectors", bool(summary.vectors)),
        ("class_maps", "class maps", bool(summary.class_maps)),
        ("numbers", "numbers per image", bool(summary.numbers)),
        ("results", "results", True),
        ("controls", "best cells and controls", True),
        ("published", "published results", published.applies(study)),
        ("emergence", "emergence, by step and layer", True),
        ("analyses", "further analyses", bool(drawn["generalization"])),
        ("samples", "samples", True),
        ("class", "class", summary.classes is not None),
        ("interventions", "interventions", bool(drawn["interventions"])),
        ("warnings", "warnings", True),
        ("provenance", "provenance, numbers, citation", True),
    ]
    return [(anchor, title) for anchor, title, present in sections if present]
