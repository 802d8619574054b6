"""Map network with and without normals."""

import numpy as np
import pytest
import torch

from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers.tabletop import load_depth, load_foreground, load_normals
from ldmprobe_core.labelers.tabletop_networks import MapNetwork
from ldmprobe_core.study.probe_sections import LabelerSpec
from ldmprobe_core.tabletop import export

CPU = torch.device("cpu")


def test_map_network_load_fewer_keeps_the_maps_of_a_network_without_normals(tmp_path):
    torch.manual_seed(0)
    old, new = MapNetwork(outputs=3).eval(), MapNetwork().eval()
    new.load_fewer(old.state_dict())
    images = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    with torch.no_grad():
        given = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        torch.testing.assert_close(new(given)[:, :3], old(given))
    again = MapNetwork()
    again.load_fewer(new.state_dict())
    assert all(torch.equal(a, new.state_dict()[key]) for key, a in again.state_dict().items())
    for name, network in (("old", old), ("new", new)):
        export.save_labelers(tmp_path / name, {"maps": network})
    depths = {}
    for name in ("old", "new"):
        spec = LabelerSpec(name="tabletop", weights=str(tmp_path / name))
        depths[name] = load_depth(spec, CPU)(images)
    np.testing.assert_array_equal(depths["old"], depths["new"])
    normals = load_normals(LabelerSpec(name="tabletop", weights=str(tmp_path / "new")), CPU)(images)
    assert normals.shape == (2, 64, 64, 3)
    assert normals.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)
    with pytest.raises(UserError, match="have no outputs for normals"):
        load_normals(LabelerSpec(name="tabletop", weights=str(tmp_path / "old")), CPU)


def test_map_labelers_share_a_network_until_its_file_is_overwritten(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    torch.manual_seed(0)
    networks = {"first": MapNetwork(outputs=3).eval(), "second": MapNetwork(outputs=3).eval()}
    spec = LabelerSpec(name="tabletop", weights=str(tmp_path))
    for network in networks.values():
        export.save_labelers(tmp_path, {"maps": network})
        depth, foreground = load_depth(spec, CPU), load_foreground(spec, CPU)
        assert depth.maps is foreground.maps
        given = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        with torch.no_grad():
            expected = torch.sigmoid(network(given)[:, 0]).numpy()
        # Weights are saved in half precision.
        np.testing.assert_allclose(foreground(images), expected, atol=2e-3)
