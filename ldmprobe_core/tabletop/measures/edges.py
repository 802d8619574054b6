"""Straightness of the floor-wall edge in an image.

In a render that edge is a straight line, or two lines that meet where two walls do.  A caption
names the colours of floor and wall, and shading changes a colour's brightness only: the edge can be
found in any picture of that caption, column by column, and its waviness is the residual of the best
line through it, in pixels.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation

from ldmprobe_core.study.prompt_sets import FLOOR_COLORS, RGB, WALL_COLORS

_LEAST_ANGLE = 6.0  # degrees between the two colours, as vectors from black
_LEAST_CONTRAST = 0.06  # of the two sides, in 0..1
_NEAR, _FAR = 3, 6  # pixels from the edge: the blurred part, and what it is compared with
_SLACK = 0.5  # squared error of a picture that means nothing; the VAE's own is about 2
_LEAST_POINTS = 16
_TOLERANCE = 3.0  # pixels; what lies farther off the line is another edge
_CORNER_GAIN = 0.4  # two lines must leave at most this share of one line's squared error


def edge_colors(caption: str) -> tuple[RGB, RGB] | None:
    """Floor's and wall's colour of a caption, or None where hue does not tell them apart."""
    _, _, place = caption.partition(" on a ")
    floor, _, wall = place.partition(" floor, ")
    if not wall:
        return None
    colors = FLOOR_COLORS[floor], WALL_COLORS[wall.removesuffix(" wall")]
    a, b = (np.array(color) / np.linalg.norm(color) for color in colors)
    return colors if a @ b < np.cos(np.radians(_LEAST_ANGLE)) else None


def floor_edge(image: np.ndarray, foreground: np.ndarray, floor: RGB, wall: RGB) -> np.ndarray:
    """Points (n, 2) float64 on the edge between floor and wall: along the scan lines, across them.

    Scan lines are the columns, wall above floor, or the rows where more of them meet a steep edge.
    In each, the change from the wall's colour (at any brightness) to the floor's is put
    where the squared distance from the two colours is least; then the edge is where the mixture
    of the colours met just before and just after it changes sides, to a fraction of a pixel.  Lines
    in which the object hides the edge, or a side is too thin to be seen, give no point.

    Args:
        image: (y, x, rgb) uint8.
        foreground: (y, x) bool, pixels of the object.
    """
    pixels = image.astype(np.float64) / 255
    hidden = binary_dilation(foreground, iterations=2)
    found = []
    for view in (_as_it_is, _wall_left, _wall_right):
        scan, covered = view(pixels), view(hidden)
        change, cost = _changes(scan, covered, floor, wall)
        found.append((cost, _between_pixels(scan, covered, change)))
    # A level edge costs the rows nothing either, but they hardly meet it: most points win.
    bound = 1.5 * min(cost for cost, _ in found) + _SLACK
    return max((points for cost, points in found if cost <= bound), key=len)


def _as_it_is(picture: np.ndarray) -> np.ndarray:
    return picture


def _wall_left(picture: np.ndarray) -> np.ndarray:
    return picture.swapaxes(0, 1)


def _wall_right(picture: np.ndarray) -> np.ndarray:
    return picture.swapaxes(0, 1)[::-1]


def _changes(
    scan: np.ndarray, covered: np.ndarray, floor: RGB, wall: RGB
) -> tuple[np.ndarray, float]:
    """First floor pixel of every scan line (axis 1), and the squared error of it all."""

    def off(color: RGB) -> np.ndarray:
        """Squared distance from a colour's shades, (y, x)."""
        unit = np.array(color) / np.linalg.norm(color)
        squared = np.square(scan).sum(-1) - np.square(scan @ unit)
        return np.where(covered, 0, squared)

    none = np.zeros((1, scan.shape[1]))
    as_wall = np.concatenate([none, np.cumsum(off(wall), axis=0)])
    as_floor = np.concatenate([none, np.cumsum(off(floor), axis=0)])
    cost = as_wall + as_floor[-1] - as_floor
    return cost.argmin(0), float(cost.min(0).sum())


def _between_pixels(scan: np.ndarray, covered: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Points (n, 2): middle of the scan line, place of the edge in it, both in pixels."""
    length = len(scan)
    points = []
    for line, k in enumerate(change):
        if k < _FAR or k > length - _FAR or covered[k - _FAR : k + _FAR, line].any():
            continue
        before = scan[k - _FAR : k - _NEAR, line].mean(0)
        after = scan[k + _NEAR : k + _FAR, line].mean(0)
        step = before - after
        if np.abs(step).max() < _LEAST_CONTRAST:
            continue
        share = (scan[k - _NEAR : k + _NEAR, line] - after) @ step / (step @ step)
        points.append((line + 0.5, k - _NEAR + share.clip(0, 1).sum()))
    return np.array(points).reshape(-1, 2)


def line_residual(points: np.ndarray) -> float:
    """Root mean squared distance in pixels of points (n, 2) from the line they lie along.

    The line is the one with the least squared error when no point counts as more than 3 pixels off
    (points that are farther off belong to something else, and are left out); two lines, each for
    its own stretch, where they leave less than 0.4 of one line's error, as in a room's corner.
    NaN for fewer than 16 points.
    """
    if len(points) < _LEAST_POINTS:
        return float("nan")
    points = points[np.argsort(points[:, 0])]
    off = _off_line(points)
    least = _CORNER_GAIN * _truncated(off)
    for cut in range(10, len(points) - 9, 2):
        sides = np.concatenate([_off_line(points[:cut]), _off_line(points[cut:])])
        if _truncated(sides) < least:
            off, least = sides, _truncated(sides)
    near = off[np.abs(off) < _TOLERANCE]
    return float(np.sqrt(np.square(near).mean()))


def _truncated(off: np.ndarray) -> float:
    return float(np.minimum(np.square(off), _TOLERANCE**2).sum())


def _off_line(points: np.ndarray) -> np.ndarray:
    """Signed distance (n,) of points from the line that most of them lie along."""
    x, y = points.T
    first, second = np.triu_indices(len(points), max(4, len(points) // 3))
    apart = x[second] - x[first]
    slope = (y[second] - y[first]) / apart
    shift = y[first] - slope * x[first]
    off = (y - slope[:, None] * x - shift[:, None]) / np.hypot(1, slope)[:, None]
    cost = np.minimum(np.square(off), _TOLERANCE**2).sum(1)
    best = cost.argmin()
    off = off[best]
    for _ in range(5):  # least squares over what is near
        near = np.abs(off) < _TOLERANCE
        if near.sum() < 3:
            break
        slope, shift = np.polyfit(x[near], y[near], 1)
        off = (y - slope * x - shift) / np.hypot(1, slope)
    return off


def edge_residuals(
    images: np.ndarray, foreground: np.ndarray, captions: list[str]
) -> tuple[np.ndarray, int]:
    """`line_residual` of every picture whose edge can be measured (n,), and how many were tried.

    Args:
        images: (n, y, x, rgb) uint8.
        foreground: (n, y, x) bool.
        captions: of the images; those without a wall, or whose floor and wall have one hue, are
            not tried.
    """
    found, tried = [], 0
    for image, mask, caption in zip(images, foreground, captions, strict=True):
        colors = edge_colors(caption)
        if colors is not None:
            tried += 1
            found.append(line_residual(floor_edge(image, mask, *colors)))
    residuals = np.array(found, np.float64)
    return residuals[np.isfinite(residuals)], tried
