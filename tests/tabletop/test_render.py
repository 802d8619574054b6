"""Renderings of known scenes, against closed forms."""

from dataclasses import replace

import numpy as np
import pytest

from ldmprobe_core.tabletop import render
from ldmprobe_core.tabletop.dataset import quantize
from ldmprobe_core.tabletop.scenes import (
    LOOK_AT,
    Arrangement,
    Item,
    Scene,
    camera_axes,
    sample_scene,
)

BALL = Scene(
    category="ball", color="red", floor="gray", wall=None, walls=(), yaw=0, lying=False,
    size=0.5, offset=(0.0, 0.0), elevation=40, roll=0, field_of_view=40, lamp_azimuth=0,
    lamp_elevation=50,
)  # fmt: skip


RADIUS = 0.45  # of the ball's mesh


def camera_of(scene):
    """Distance of the camera from the ball's centre, from the scene's definition of size."""
    return RADIUS / (scene.size * np.tan(np.radians(scene.field_of_view) / 2))


def test_render_depth_at_the_balls_nearest_point():
    picture = render.render(BALL, size=33, samples=1)
    nearest = camera_of(BALL) - RADIUS
    assert np.exp(picture.depth[16, 16]) == pytest.approx(nearest, rel=2e-3)
    assert picture.foreground[16, 16] == 1


def test_render_depth_of_the_floor_plane():
    """z where the pixel's ray meets z = 0, worked out from the camera alone."""
    picture = render.render(BALL, size=33, samples=1)
    distance, tangent = camera_of(BALL), np.tan(np.radians(20))
    elevation = np.radians(40)
    height = RADIUS + distance * np.sin(elevation)
    for row in (30, 31, 32):
        up = -((row + 0.5) / 33 * 2 - 1) * tangent
        falls = np.sin(elevation) - up * np.cos(elevation)  # of a ray of unit length along the axis
        assert np.exp(picture.depth[row, 1]) == pytest.approx(height / falls, rel=1e-3)
        assert picture.foreground[row, 1] == 0


def axes_of(scene):
    """Right, up and back (towards the camera) of a camera without roll, in the room's axes."""
    e = np.radians(scene.elevation)
    right, back = np.array([0.0, 1.0, 0.0]), np.array([np.cos(e), 0.0, np.sin(e)])
    return np.stack([right, np.cross(back, right), back])


def degrees_between(a, b):
    return np.degrees(np.arccos(np.clip((a * b).sum(-1), -1, 1)))


def test_render_normals_of_floor_and_wall_planes():
    """The floor faces up; a wall at azimuth a faces (cos a, sin a, 0); seen in camera axes."""
    scene = replace(BALL, size=0.2, wall="white", walls=((30.0, 0.8),), roll=0)
    picture = render.render(scene, size=33)
    axes = axes_of(scene)
    np.testing.assert_allclose(axes[1] @ (0, 0, 1), np.cos(np.radians(40)))
    np.testing.assert_allclose(picture.normal[32, 30], axes @ (0, 0, 1), atol=1e-5)
    wall = np.array([np.cos(np.radians(30)), np.sin(np.radians(30)), 0])
    np.testing.assert_allclose(picture.normal[0, 2], axes @ wall, atol=1e-5)
    assert picture.normal[0, 2, 0] == pytest.approx(0.5)  # it faces the right of the picture
    # A camera rolled by r turns the picture's right towards up: y of the floor grows to x.
    rolled = render.render(replace(scene, roll=20), size=33)
    c, s = np.cos(np.radians(20)), np.sin(np.radians(20))
    floor = axes @ (0, 0, 1)
    turned = (c * floor[0] + s * floor[1], -s * floor[0] + c * floor[1], floor[2])
    np.testing.assert_allclose(rolled.normal[32, 30], turned, atol=1e-5)


def test_render_normals_of_a_sphere():
    """(point - centre) / radius where each pixel's ray meets the sphere."""
    size = 65
    picture = render.render(BALL, size=size, samples=1)
    distance, tangent = camera_of(BALL), np.tan(np.radians(20))
    ticks = ((np.arange(size) + 0.5) / size * 2 - 1) * tangent
    rays = np.stack(
        [np.tile(ticks, (size, 1)), np.tile(-ticks[:, None], size), np.full((size, size), -1.0)], -1
    )
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    along = -rays[..., 2] * distance  # from the camera to the point of the ray nearest the centre
    inside = RADIUS**2 - (distance**2 - along**2)
    seen = inside > 0.05 * RADIUS**2
    t = along - np.sqrt(np.where(seen, inside, 0))
    normal = (t[..., None] * rays + (0, 0, distance)) / RADIUS
    off = degrees_between(picture.normal, normal)[seen]
    assert off.max() < 3  # the mesh's triangles are flat
    assert off.mean() < 1.5
    np.testing.assert_allclose(normal[32, 32], (0, 0, 1), atol=1e-9)


def test_render_normals_have_unit_length_and_survive_int8():
    for seed in range(12):
        picture = render.render(sample_scene(seed))
        length = np.linalg.norm(picture.normal, axis=-1)
        sky = length == 0
        np.testing.assert_allclose(length[~sky], 1, atol=1e-5)
        assert (picture.depth[sky] == np.float32(np.log(render.FAR))).all()
        stored = quantize(picture)["normal"]
        assert stored.dtype == np.int8
        back = stored / np.linalg.norm(stored, axis=-1, keepdims=True).clip(1)
        assert degrees_between(back, picture.normal)[~sky].max() < 0.5


def test_render_outline_has_the_scenes_size():
    picture = render.render(replace(BALL, size=0.4), size=128, samples=2)
    # A sphere's outline is the tangent cone: a little wider than the sphere at its centre's depth.
    half = np.arcsin(RADIUS / camera_of(replace(BALL, size=0.4)))
    width = np.tan(half) / np.tan(np.radians(20)) * 128
    assert picture.foreground[64].sum() == pytest.approx(width, abs=1.0)


def test_render_offset_moves_the_object():
    picture = render.render(replace(BALL, offset=(0.2, -0.1)), size=64)
    rows, columns = np.nonzero(picture.foreground > 0.5)
    assert columns.mean() == pytest.approx(31.5 + 0.2 * 64, abs=1.5)
    assert rows.mean() == pytest.approx(31.5 + 0.1 * 64, abs=1.5)


def test_render_shading_follows_lamberts_law():
    """Far from the ball the floor sees lamp and sky: ambient + lamp x sine of its elevation."""
    for elevation in (30, 60):
        scene = replace(BALL, lamp_elevation=elevation, size=0.15)
        picture = render.render(scene, size=32, samples=2)
        expected = 0.12 + 0.33 + 0.55 * np.sin(np.radians(elevation))
        assert picture.shading[30, 1] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("seed", range(12))
def test_render_rgb_is_albedo_times_shading(seed):
    picture = render.render(sample_scene(seed), samples=1)
    np.testing.assert_allclose(picture.rgb, picture.albedo * picture.shading[..., None], atol=1e-6)
    assert picture.rgb.min() >= 0
    assert picture.rgb.max() <= 1
    assert picture.shading.max() <= 1
    colors = np.unique(picture.albedo.reshape(-1, 3).round(4), axis=0)
    assert len(colors) <= 8


TWO_BALLS = Arrangement(
    items=(
        Item("ball", "red", 0, False, 1.0, (0.0, -0.8, 0.0)),
        Item("ball", "blue", 0, False, 0.5, (1.0, 0.8, 0.6)),
    ),
    floor="gray", wall=None, walls=(), distance=5.0, elevation=30, roll=0, field_of_view=40,
    lamp_azimuth=0, lamp_elevation=50,
)  # fmt: skip


def test_render_arrangement_places_objects():
    """Outline's middle and nearest depth of each ball, worked out from its centre alone."""
    size = 129
    picture = render.render(TWO_BALLS, size=size, samples=1)
    np.testing.assert_array_equal(picture.objects.sum(0), picture.foreground)
    right, up, back = camera_axes(30, 0)
    camera = np.array(LOOK_AT) + 5 * back
    for item, mask in zip(TWO_BALLS.items, picture.objects, strict=True):
        radius = RADIUS * item.scale
        center = np.array(item.place) + np.array([0, 0, radius]) - camera
        depth = -center @ back
        column = (1 + center @ right / depth / np.tan(np.radians(20))) / 2 * size
        row = (1 - center @ up / depth / np.tan(np.radians(20))) / 2 * size
        rows, columns = np.nonzero(mask)
        assert columns.mean() + 0.5 == pytest.approx(column, abs=0.6)
        assert rows.mean() + 0.5 == pytest.approx(row, abs=0.6)
        nearest = np.linalg.norm(center) - radius
        seen = np.exp(picture.depth[int(row), int(column)])
        assert seen == pytest.approx(nearest * depth / np.linalg.norm(center), rel=3e-3)


def test_render_arrangement_nearer_object_hides_the_other():
    near = replace(TWO_BALLS.items[1], place=(1.5, -0.8, 0.9))
    both = render.render(replace(TWO_BALLS, items=(TWO_BALLS.items[0], near)))
    swapped = render.render(replace(TWO_BALLS, items=(near, TWO_BALLS.items[0])))
    alone = render.render(replace(TWO_BALLS, items=TWO_BALLS.items[:1]))
    assert (both.objects[0] <= alone.objects[0]).all()
    assert both.objects[0].sum() < 0.9 * alone.objects[0].sum()
    np.testing.assert_array_equal(both.objects, swapped.objects[::-1])
    np.testing.assert_array_equal(both.rgb, swapped.rgb)


def test_render_is_deterministic_in_the_seed():
    assert sample_scene(5) == sample_scene(5)
    assert sample_scene(5) != sample_scene(6)
    a, b = render.render(sample_scene(5)), render.render(sample_scene(5))
    np.testing.assert_array_equal(a.rgb, b.rgb)
    np.testing.assert_array_equal(a.depth, b.depth)


def test_correspondences_of_a_shifted_object_are_its_pixels_shifted():
    moved = replace(BALL, offset=(0.25, -0.125), lamp_azimuth=90, floor="brown")
    places = render.correspondences(BALL, moved, size=32)
    ball = render.render(BALL, size=32, samples=1).foreground == 1
    np.testing.assert_array_equal(np.isfinite(places).all(-1), ball)
    rows, columns = np.nonzero(ball)
    expected = np.column_stack([rows + 0.5 + 4, columns + 0.5 + 8]) / 32
    np.testing.assert_allclose(places[ball], expected, atol=1e-4)
    # Half of the ball is beyond the right edge of the image.
    places = render.correspondences(BALL, replace(BALL, offset=(0.5, 0.0)), size=32)
    assert np.isnan(places[ball][columns >= 16]).all()
    assert np.isfinite(places[ball][columns < 16]).all()


def test_correspondences_of_a_turned_ball_equal_its_rotation_about_the_vertical():
    """Points are worked out from the depth map, turned by 60 degrees, and seen again."""
    size, tangent, distance = 33, np.tan(np.radians(20)), camera_of(BALL)
    picture = render.render(BALL, size=size, samples=1)
    rows, columns = np.nonzero(picture.foreground == 1)
    z = np.exp(picture.depth[rows, columns])
    across, above = (
        ((columns + 0.5) / size * 2 - 1) * tangent,
        (1 - (rows + 0.5) / size * 2) * tangent,
    )
    axes = axes_of(BALL)
    # Relative to the ball's centre, about which the scene is symmetric.
    points = np.column_stack([across * z, above * z, distance - z]) @ axes
    c, s = np.cos(np.radians(60)), np.sin(np.radians(60))
    turned = points @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]).T
    right, up, back = axes @ turned.T
    faces = (turned * (distance * axes[2] - turned)).sum(1) / RADIUS
    depth = (distance - back) * tangent
    expected = np.column_stack([1 - up / depth, 1 + right / depth]) / 2
    places = render.correspondences(BALL, replace(BALL, yaw=60), size=size)[rows, columns]
    # Points within a few degrees of the rim depend on the triangles of the mesh.
    visible, hidden = faces > 0.25, faces < -0.25
    assert visible.sum() > 50
    assert hidden.sum() > 20
    np.testing.assert_allclose(places[visible], expected[visible], atol=5e-3)
    assert np.isnan(places[hidden]).all()


def test_correspondences_refuse_another_object():
    with pytest.raises(ValueError, match=r"the objects differ \(ball, cube\)"):
        render.correspondences(BALL, replace(BALL, category="cube"))
