"""The command ``ldmprobe intervene``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.checks.finished_run import RunArgument, finished_run
from flows.commands.carry_out import carry_out, server_in_advance
from flows.commands.results import console
from flows.commands.tables import print_rows
from ldmprobe_core.errors import UserError
from tasks.display import activity

if TYPE_CHECKING:
    from ldmprobe_core.study.schema import Study
    from ldmprobe_core.study.sections import Execution

WINDOWS = 5
"""Number of windows of steps into which a causal map divides the sampler's steps by default."""

Property = Annotated[
    str,
    typer.Option(
        "--property", help="edited property of the study: a mask, a map, or a component of a vector"
    ),
]
Shift = Annotated[
    list[str] | None,
    typer.Option(help="dx,dy as shares of width and height, such as 0.2,0; may be repeated"),
]
Mirror = Annotated[bool, typer.Option(help="use the mirrored map as the target")]
Tilt = Annotated[
    list[float] | None,
    typer.Option(help="slope added to the map from left to right, in its standard deviations"),
]
TargetFile = Annotated[
    list[str] | None, typer.Option(help="PNG or NPY map as the target; may be repeated")
]
Samples = Annotated[int | None, typer.Option(help="number of test samples; by default 8")]
Method = Annotated[
    str | None,
    typer.Option(help="exact (default), adam (the paper's), leace, mean_projection or donor"),
]
CausalMap = Annotated[
    bool, typer.Option("--map", help="causal map: one layer, one window of steps at a time")
]
Windows = Annotated[
    int | None, typer.Option(help=f"windows of steps of the causal map; by default {WINDOWS}")
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        help="glob over the run's layers, by name or by short name (without transformer_blocks.0), "
        "or latents; may be repeated"
    ),
]
Start = Annotated[int | None, typer.Option(help="first edited step; by default 1")]
Steps = Annotated[int | None, typer.Option(help="number of edited steps; by default half")]
Dose = Annotated[
    list[float] | None,
    typer.Option(help="amplitude in standard deviations of the prediction; may be repeated"),
]
Strength = Annotated[
    float | None, typer.Option(help="fraction of the way to the target, 0 to 1; by default 1")
]
Confidence = Annotated[
    float | None,
    typer.Option(help="target probability inside the mask; by default 0.98"),
]
Metric = Annotated[str | None, typer.Option(help="covariance (default) or l2")]
Control = Annotated[
    list[str] | None,
    typer.Option(
        help="make this null edit alone: orthogonal, coherent, permuted or own_label; may be "
        "repeated.  By default all that apply, in a causal map orthogonal"
    ),
]
Controls = Annotated[bool, typer.Option(help="make null edits beside the edit")]
Published = Annotated[bool, typer.Option("--published", help="the settings of Chen et al. (2023)")]

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="override the run's workers, such as execution.runner=local"),
]


def intervene(
    run: RunArgument,
    prop: Property = "foreground",
    shift: Shift = None,
    mirror: Mirror = False,
    tilt: Tilt = None,
    target: TargetFile = None,
    samples: Samples = None,
    method: Method = None,
    map_: CausalMap = False,
    windows: Windows = None,
    layers: Layers = None,
    start: Start = None,
    steps: Steps = None,
    dose: Dose = None,
    strength: Strength = None,
    confidence: Confidence = None,
    metric: Metric = None,
    control: Control = None,
    controls: Controls = True,
    published: Published = False,
    set_: SetOption = None,
) -> None:
    """Generate test samples again with edited activations, and score the images."""
    from ldmprobe_core.interventions.spec import parse_intervention

    finished = finished_run(run)
    _require_consistent(windows, map_, control, controls)
    targets: list[dict[str, Any]] = [_shift(text) for text in shift or []]
    targets += [{"mirror": True}] if mirror else []
    targets += [{"tilt": slope} for slope in tilt or []] + [{"file": path} for path in target or []]
    options: dict[str, Any] = {
        "prop": prop, "samples": samples, "method": method, "start": start, "steps": steps,
        "strength": strength, "confidence": confidence, "metric": metric,
        "windows": (WINDOWS if windows is None else windows) if map_ else None,
        "layers": layers or None,
        "doses": dose or None, "controls": (control or None) if controls else [],
        "targets": targets or None,
    }  # fmt: skip
    content = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in options.items()
        if value is not None
    }
    if published:
        content = _as_published(content, finished.study.linear_kinds)
    what = parse_intervention(content)
    run_intervention(finished, what, execution_of(finished.study, set_ or []))


def _require_consistent(
    windows: int | None, map_: bool, control: list[str] | None, controls: bool
) -> None:
    """Check that only a causal map has windows, and that null edits are not named but left out."""
    if windows is not None and not map_:
        raise UserError(
            f"windows: only a causal map has windows ({windows}). Fix: ask for a causal map, or "
            "leave windows out."
        )
    if control and not controls:
        raise UserError(
            f"controls: null edits are named, but switched off ({', '.join(control)}). Fix: leave "
            "out one of the two."
        )


def execution_of(study: Study, overrides: list[str]) -> Execution:
    """Return the workers of a finished run's study, with the keys that the user gives instead.

    Args:
        study: study of the run.
        overrides: texts such as ``execution.runner=local``.  If they say where the workers are,
            none of the study's keys about that counts.

    Raises:
        UserError: a text sets no key of the workers, or the keys are invalid or do not fit.
    """
    from flows.commands.submit import merged_execution
    from ldmprobe_core.study.loading import parse_study, set_key

    content: dict[str, Any] = {}
    for override in overrides:
        if not override.startswith("execution.") or override.startswith("execution.device="):
            raise UserError(
                f"--set {override!r:.80}: an intervention has the study, and the type of device, "
                "of its run. Fix: set execution.runner, workers, address, cluster or "
                "gpus_per_worker"
            )
        set_key(content, override)
    stored = study.execution.model_dump(mode="json", exclude_unset=True)
    merged = merged_execution(content.get("execution", {}), stored)
    return parse_study({"execution": merged}, "execution of run and --set").execution


def _as_published(content: dict[str, Any], kinds: tuple[str, ...]) -> dict[str, Any]:
    """Add the published settings to the settings of an intervention.

    Targets that are transformations of the label are stretched as the published target is.

    Args:
        content: settings that are given besides.
        kinds: kinds of linear probes of the run.

    Raises:
        UserError: a given setting is among the published settings.
    """
    from ldmprobe_core.interventions.spec import published_settings

    published = published_settings(content["prop"], kinds)
    for name in sorted(set(content) & set(published) - {"prop", "targets"}):
        raise UserError(
            f"{name}: it is one of the published settings ({content[name]}). Fix: leave it out, or "
            "leave out the published settings."
        )
    stretch = published["targets"][0]["stretch"]
    targets = tuple(
        target if "file" in target else {**target, "stretch": stretch}
        for target in content.get("targets", ())
    )
    return content | published | ({"targets": targets} if targets else {})


def run_intervention(finished: Any, what: Any, execution: Execution) -> None:
    """Carry out an intervention with a Prefect server, and print its results.

    Args:
        finished: run that is edited.
        what: settings of the intervention.
        execution: workers that carry it out.
    """
    from ldmprobe_core.interventions.stages import create_intervention

    with server_in_advance() as server:
        with activity("checking the intervention"):
            create_intervention(finished, what)
        from ldmprobe_core.analysis.report.intervention_text import (
            effect_rows,
            intervention_title,
            map_sentence,
        )
        from ldmprobe_core.interventions.results import InterventionSummary

        result = carry_out(
            "intervene", finished.url, server, url=finished.url, what=what, execution=execution
        )
    summary = InterventionSummary.model_validate(result)
    console.print(f"\n{intervention_title(summary)}", highlight=False)
    rows = effect_rows(summary)
    print_rows(rows, console, names=2 if "dose" in rows[0] else 1)
    if what.windows:
        console.print(f"\n{map_sentence(summary)}", highlight=False)
    console.print(f"\nReport: {finished.url}/report/index.html", highlight=False, soft_wrap=True)


def _shift(text: str) -> dict[str, float]:
    """Parse the option ``--shift``, such as ``0.2,0``."""
    parts = text.split(",")
    try:
        dx, dy = (float(part) for part in parts)
    except ValueError:
        raise UserError(
            f"--shift is {text!r}. Fix: give dx,dy as fractions of the image's size, such as 0.2,0"
        ) from None
    return {"dx": dx, "dy": dy}
