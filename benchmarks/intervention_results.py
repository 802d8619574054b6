"""Effects of edits in the default study: the interventions of docs/interventions.md.

    python -m benchmarks.intervention_results RUN [--only NAME ...] [--to FILE]

RUN is a finished run of the study ``tabletop``.  Each intervention is that of the command
``ldmprobe intervene RUN`` with the options of the same name below, without a Prefect server.  Those
that are complete are not repeated, so a run in which the commands were typed is only read.  FILE
gets the results of all of them as JSON, by name; docs/interventions-summary.json is such a file.
About an hour of CPU time.
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

import ldmprobe as lp
from ldmprobe_core.interventions.results import (
    InterventionSummary,
    has_intervention_summary,
    read_intervention_summary,
)
from ldmprobe_core.interventions.spec import Intervention, parse_intervention

COMMANDS = {
    "foreground": "--shift 0.2,0 --shift -0.2,0 --samples 64",
    "depth": "--property depth --mirror --samples 64",
    "shading": "--property shading --mirror --samples 64",
    "foreground-map": "--map --samples 16",
    "depth-map": "--property depth --mirror --map --samples 16",
    "foreground-erased": "--method leace --samples 32",
    "depth-erased": "--property depth --method leace --samples 32",
    "depth-erased-map": "--property depth --method leace --map --windows 1 --samples 16",
    "foreground-donor-map": "--method donor --map --samples 16",
}
"""Options of ``ldmprobe intervene RUN`` by the name of an intervention in the JSON file."""

DIGITS = 6


def settings_of(options: str) -> Intervention:
    """Return the settings that the command line makes of options.

    Args:
        options: options of ``ldmprobe intervene RUN`` as they are typed.
    """
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--property", dest="prop", default="foreground")
    parser.add_argument("--method")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--shift", action="append", default=[])
    parser.add_argument("--mirror", action="store_true")
    parser.add_argument("--map", action="store_true")
    parser.add_argument("--windows", type=int, default=5)
    # A value such as -0.2,0 is not to be read as an option, so it is joined to the option's name.
    given = parser.parse_args(shlex.split(options.replace("--shift ", "--shift=")))
    shifts = [[float(part) for part in pair.split(",")] for pair in given.shift]
    targets: list[dict[str, Any]] = [{"dx": dx, "dy": dy} for dx, dy in shifts]
    content = {
        "prop": given.prop, "samples": given.samples, "method": given.method,
        "targets": tuple(targets + [{"mirror": True}] * given.mirror) or None,
        "windows": given.windows if given.map else None,
    }  # fmt: skip
    return parse_intervention({name: value for name, value in content.items() if value is not None})


def results(run: lp.Run, options: str) -> InterventionSummary:
    """Carry out an intervention, unless the run has it, and return its results."""
    spec = settings_of(options)
    if has_intervention_summary(run, spec.name):
        return read_intervention_summary(run, spec.name)
    changed = {name: getattr(spec, name) for name in spec.model_fields_set - {"prop", "samples"}}
    return lp.intervene(run, spec.prop, shift=None, samples=spec.samples, **changed)


def record(options: str, summary: InterventionSummary) -> dict[str, Any]:
    """Return an intervention's entry in the JSON file.

    Numbers have six decimals, and wall time is left out.  A causal map has no measures but the
    headline score; the others would make most of the file.
    """
    content = summary.model_dump(mode="json", exclude={"seconds"})
    for site in content["sites"] if summary.intervention.windows else []:
        for effect in site["effects"].values():
            del effect["measures"]
    return {"command": f"ldmprobe intervene RUN {options}", **_rounded(content)}


def _rounded(value: Any) -> Any:
    """Round every float of nested dicts and lists."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, DIGITS) if isinstance(value, float) else value


def main(arguments: list[str] | None = None) -> None:
    """Carry out the interventions that are missing, and write the results of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--only", nargs="+", choices=tuple(COMMANDS), default=tuple(COMMANDS))
    parser.add_argument("--to", type=Path)
    given = parser.parse_args(arguments)
    run = lp.open_run(given.run)
    content = {}
    for name in given.only:
        summary = results(run, COMMANDS[name])
        content[name] = record(COMMANDS[name], summary)
        print(f"{name}: {summary.pairs} pairs, {summary.seconds:.0f} s", flush=True)
    if given.to:
        whole = {"versions": run.summary.versions, "interventions": content}
        given.to.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
