"""The command ``ldmprobe intervene``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from flows.checks.finished_run import RunArgument, finished_run
from flows.checks.prefect_settings import check_prefect_settings
from flows.cli_tables import print_rows
from ldmprobe_core.errors import UserError

console = Console(markup=False, emoji=False)


def intervene(
    run: RunArgument,
    prop: Annotated[
        str, typer.Option("--property", help="foreground, depth or shading")
    ] = "foreground",
    shift: Annotated[
        list[str] | None,
        typer.Option(help="dx,dy as shares of width and height, such as 0.2,0; may be repeated"),
    ] = None,
    mirror: Annotated[bool, typer.Option(help="aim at the mirrored map")] = False,
    tilt: Annotated[
        list[float] | None,
        typer.Option(help="slope added to the map from left to right, in its deviations"),
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="PNG or NPY map to aim for; may be repeated")
    ] = None,
    samples: Annotated[int, typer.Option(help="how many test samples")] = 8,
    method: Annotated[
        str, typer.Option(help="exact, adam (the paper's), leace, mean_projection or donor")
    ] = "exact",
    map_: Annotated[
        bool, typer.Option("--map", help="causal map: one layer, one window of steps at a time")
    ] = False,
    windows: Annotated[int, typer.Option(help="windows of steps of the causal map")] = 5,
    layers: Annotated[
        list[str] | None,
        typer.Option(help="glob over the run's layers, or latents; may be repeated"),
    ] = None,
    start: Annotated[int, typer.Option(help="first edited step")] = 1,
    steps: Annotated[int | None, typer.Option(help="how many steps; by default half")] = None,
    dose: Annotated[
        list[float] | None,
        typer.Option(help="amplitude in deviations of the probe's prediction; may be repeated"),
    ] = None,
    strength: Annotated[float, typer.Option(help="share of the way, 0 to 1")] = 1.0,
    confidence: Annotated[
        float, typer.Option(help="what a logistic probe is to read inside the mask")
    ] = 0.98,
    metric: Annotated[str, typer.Option(help="covariance or l2")] = "covariance",
    control: Annotated[
        list[str] | None,
        typer.Option(help="orthogonal, coherent, permuted or own_label; may be repeated"),
    ] = None,
    controls: Annotated[bool, typer.Option(help="make null edits")] = True,
    published: Annotated[
        bool, typer.Option("--published", help="the settings of Chen et al. (2023)")
    ] = False,
) -> None:
    """Generate test samples again with edited activations, and score the images."""
    from ldmprobe_core.interventions.spec import parse_intervention, published_settings
    from ldmprobe_core.interventions.stages import create_intervention

    finished = finished_run(run)
    content: dict[str, Any] = {
        "prop": prop, "samples": samples, "method": method, "start": start, "steps": steps,
        "strength": strength, "confidence": confidence, "metric": metric,
        "windows": windows if map_ else None, "layers": tuple(layers) if layers else None,
        "doses": tuple(dose) if dose else None,
        "controls": (tuple(control) if control else None) if controls else (),
    }  # fmt: skip
    targets: list[dict[str, Any]] = [_shift(text) for text in shift or []]
    targets += [{"mirror": True}] if mirror else []
    targets += [{"tilt": slope} for slope in tilt or []] + [{"file": path} for path in target or []]
    if published:
        content |= published_settings(prop)
    if targets:
        content["targets"] = tuple(targets)
    what = parse_intervention(content)
    create_intervention(finished, what)
    check_prefect_settings()
    from flows.intervene import intervene_flow
    from flows.server import prefect_server, run_flow, ui_url
    from ldmprobe_core.analysis.report.intervention_text import effect_rows, map_sentence
    from ldmprobe_core.interventions.results import InterventionSummary

    with prefect_server() as api:
        console.print(f"Prefect UI: {ui_url(api)}\nRun: {finished.url}\n", highlight=False)
        result = run_flow(intervene_flow, url=finished.url, what=what)
    summary = InterventionSummary.model_validate(result)
    print_rows(effect_rows(summary), console)
    if map_:
        console.print(f"\n{map_sentence(summary)}", highlight=False)
    console.print(f"\nReport: {finished.url}/report/index.html", highlight=False, soft_wrap=True)


def _shift(text: str) -> dict[str, float]:
    parts = text.split(",")
    try:
        dx, dy = (float(part) for part in parts)
    except ValueError:
        raise UserError(
            f"--shift is {text!r}. Fix: give dx,dy as fractions of the image's size, such as 0.2,0"
        ) from None
    return {"dx": dx, "dy": dy}
