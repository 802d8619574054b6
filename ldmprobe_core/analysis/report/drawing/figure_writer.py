"""Writer of a report's figures: SVG files in the run, and records of them for the page."""

from __future__ import annotations

from typing import Any

from ldmprobe_core.analysis.report.style import svg
from ldmprobe_core.storage.run import Run


class FigureWriter:
    """Writer of figures into a run's report folder.

    Args:
        run: finished run.

    Attributes:
        entries: records of the figures, by section of the page.  A record has the file name, the
            alternative text and further fields that the section needs.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.entries: dict[str, list[dict[str, Any]]] = {
            "overview": [], "overview_images": [], "properties": [], "heatmaps": [],
            "generalization": [], "samples": [], "classes": [], "interventions": [],
        }  # fmt: skip

    def write(
        self,
        section: str,
        name: str,
        figure: Any,
        alternative: str,
        titles: dict[str, str] | None = None,
        **more: Any,
    ) -> None:
        """Write a figure as SVG, and list it in a section with its alternative text.

        Args:
            section: section of the page.
            name: name of the file, without its suffix.
            figure: Matplotlib figure.
            alternative: alternative text.
            titles: as in `style.svg`.
            more: further fields of the figure's record.
        """
        self.run.location.write_bytes(f"report/{name}.svg", svg(figure, titles))
        hover = titles is not None
        self.entries[section].append(
            {"file": f"{name}.svg", "alt": alternative, "hover": hover, **more}
        )
