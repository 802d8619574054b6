"""What is read off an image: foreground, depth, shading (maps), class (a label per image)."""

from __future__ import annotations

MAP_PROPERTIES = ("foreground", "depth", "shading")
"""Properties that are maps, probed per pixel; `class` is a label an image."""

METRICS: dict[str, tuple[str, ...]] = {
    "foreground": ("dice", "iou"),
    "depth": ("spearman", "pearson", "rmse", "spearman_residual", "pearson_residual"),
    "shading": ("spearman", "pearson", "rmse", "spearman_residual", "pearson_residual"),
}
"""Metrics of each property; the first is its headline.  Residual: the training mean map is taken
off label and prediction first, so that position alone scores nothing."""
