"""Straightness of the floor-wall edge in an image.

In a rendering the edge is a straight line, or two lines that meet in a corner.  A caption names the
colours of floor and wall, and shading changes only the brightness of a colour.  So the edge can be
located in any image of that caption, column by column.  Its waviness is the residual of the best
line through it, in pixels.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation

from ldmprobe_core.study.prompt_sets import FLOOR_COLORS, RGB, WALL_COLORS

_LEAST_ANGLE = 6.0  # smallest angle in degrees between two RGB vectors
_LEAST_CONTRAST = 0.06  # smallest difference of brightness (0..1) between floor and wall
_NEAR, _FAR = 3, 6  # distances in pixels between which an edge's sides are measured
_SLACK = 0.5  # negligible squared error of an image; a VAE reconstruction has about 2
_LEAST_POINTS = 16
_TOLERANCE = 3.0  # distance in pixels beyond which a point belongs to another edge
_CORNER_GAIN = 0.4  # a corner's two lines leave at most this share of one line's squared error


def edge_colors(caption: str) -> tuple[RGB, RGB] | None:
    """Colours of floor and wall in a caption; None without a wall, or if their hues are close."""
    _, _, surroundings = caption.partition(" on a ")
    floor, _, wall = surroundings.partition(" floor, ")
    if not wall:
        return None
    colors = FLOOR_COLORS[floor], WALL_COLORS[wall.removesuffix(" wall")]
    a, b = (np.array(color) / np.linalg.norm(color) for color in colors)
    return colors if a @ b < np.cos(np.radians(_LEAST_ANGLE)) else None


def floor_edge(image: np.ndarray, foreground: np.ndarray, floor: RGB, wall: RGB) -> np.ndarray:
    """Points on the edge between floor and wall.

    Scan lines are the columns, with the wall above the floor, or the rows if more of them meet the
    edge, as with a steep one.  In each scan line, the change from the wall's colour (at any
    brightness) to the floor's is placed where the squared distance from the two colours is least.
    It is then refined to a fraction of a pixel, by the mixture of the colours just before and just
    after it.  Scan lines in which the object hides the edge, or a side is too thin, give no point.

    Args:
        image: (y, x, rgb) uint8.
        foreground: (y, x) bool, pixels of the object.
        floor, wall: colours of the two sides.

    Returns:
        (n, 2) float64 in pixels: position of the scan line, position of the edge in it.
    """
    pixels = image.astype(np.float64) / 255
    hidden = binary_dilation(foreground, iterations=2)
    candidates = []
    for view in (_wall_above, _wall_left, _wall_right):
        scan, covered = view(pixels), view(hidden)
        change, cost = _changes(scan, covered, floor, wall)
        candidates.append((cost, _refined_points(scan, covered, change)))
    # A view whose scan lines run along the edge also fits well, but few of its lines cross the
    # edge.  Of the views that fit well, the one with the most points is taken.
    bound = 1.5 * min(cost for cost, _ in candidates) + _SLACK
    return max((points for cost, points in candidates if cost <= bound), key=len)


def _wall_above(image: np.ndarray) -> np.ndarray:
    """Arrange an image with a wall above the floor as scan lines, (along, line)."""
    return image


def _wall_left(image: np.ndarray) -> np.ndarray:
    """Arrange an image with a wall left of the floor as scan lines, (along, line)."""
    return image.swapaxes(0, 1)


def _wall_right(image: np.ndarray) -> np.ndarray:
    """Arrange an image with a wall right of the floor as scan lines, (along, line)."""
    return image.swapaxes(0, 1)[::-1]


def _changes(
    scan: np.ndarray, covered: np.ndarray, floor: RGB, wall: RGB
) -> tuple[np.ndarray, float]:
    """Index of the first floor pixel in every scan line (axis 1), and the total squared error."""

    def squared_distance(color: RGB) -> np.ndarray:
        """Squared distance (y, x) of pixels from the shades of a colour."""
        unit = np.array(color) / np.linalg.norm(color)
        squared = np.square(scan).sum(-1) - np.square(scan @ unit)
        return np.where(covered, 0, squared)

    none = np.zeros((1, scan.shape[1]))
    as_wall = np.concatenate([none, np.cumsum(squared_distance(wall), axis=0)])
    as_floor = np.concatenate([none, np.cumsum(squared_distance(floor), axis=0)])
    cost = as_wall + as_floor[-1] - as_floor
    return cost.argmin(0), float(cost.min(0).sum())


def _refined_points(scan: np.ndarray, covered: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Edge points (n, 2) in pixels: scan line, and sub-pixel position along the scan line."""
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
    """Root-mean-square distance in pixels of points (n, 2) from their best line; NaN for n < 16.

    The best line has the least squared error, with distances truncated at 3 pixels; points farther
    off belong to other structures and are excluded from the result.  Two lines, for consecutive
    stretches, are used if they reduce the error below 0.4 of one line's, as in a corner of a room.
    """
    if len(points) < _LEAST_POINTS:
        return float("nan")
    points = points[np.argsort(points[:, 0])]
    distances = _off_line(points)
    least = _CORNER_GAIN * _truncated(distances)
    for cut in range(10, len(points) - 9, 2):
        sides = np.concatenate([_off_line(points[:cut]), _off_line(points[cut:])])
        if _truncated(sides) < least:
            distances, least = sides, _truncated(sides)
    near = distances[np.abs(distances) < _TOLERANCE]
    return float(np.sqrt(np.square(near).mean()))


def _truncated(distances: np.ndarray) -> float:
    """Sum of squared distances, each at most ``_TOLERANCE`` squared."""
    return float(np.minimum(np.square(distances), _TOLERANCE**2).sum())


def _off_line(points: np.ndarray) -> np.ndarray:
    """Signed distance (n,) of points from the line along which most of them lie."""
    x, y = points.T
    first, second = np.triu_indices(len(points), max(4, len(points) // 3))
    apart = x[second] - x[first]
    slope = (y[second] - y[first]) / apart
    shift = y[first] - slope * x[first]
    distances = (y - slope[:, None] * x - shift[:, None]) / np.hypot(1, slope)[:, None]
    cost = np.minimum(np.square(distances), _TOLERANCE**2).sum(1)
    best = cost.argmin()
    distances = distances[best]
    for _ in range(5):  # least squares over the nearest points
        near = np.abs(distances) < _TOLERANCE
        if near.sum() < 3:
            break
        slope, shift = np.polyfit(x[near], y[near], 1)
        distances = (y - slope * x - shift) / np.hypot(1, slope)
    return distances


def edge_residuals(
    images: np.ndarray, foreground: np.ndarray, captions: list[str]
) -> tuple[np.ndarray, int]:
    """Measure how straight the floor's edge is; images without a clear edge are skipped.

    Args:
        images: (n, y, x, rgb) uint8.
        foreground: (n, y, x) bool, pixels of the object.
        captions: captions of the images; images without a wall, or with floor and wall of one hue,
            are not attempted.

    Returns:
        residuals (measured image,) float64 in pixels, and the number of attempted images.
    """
    measured, tried = [], 0
    for image, mask, caption in zip(images, foreground, captions, strict=True):
        colors = edge_colors(caption)
        if colors is not None:
            tried += 1
            measured.append(line_residual(floor_edge(image, mask, *colors)))
    residuals = np.array(measured, np.float64)
    return residuals[np.isfinite(residuals)], tried
