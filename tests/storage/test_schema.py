"""Names of arrays in a run."""

import pytest
import zarr
from zarr.storage import MemoryStore

from ldmprobe_core.storage.probe_schema import RunShape
from ldmprobe_core.storage.schema import RunSchema
from ldmprobe_core.study.layers import LayerShape
from ldmprobe_core.study.loading import parse_study
from ldmprobe_core.study.properties import Property, register_property
from ldmprobe_core.study.samples import make_samples


@pytest.mark.parametrize("keep", ["activations", "statistics"])
def test_names_beside_the_arrays_of_a_property_cannot_be_names_of_properties(keep):
    study = parse_study(
        {
            "name": "names",
            "prompts": {"set": "tabletop", "samples": 12},
            "sampling": {"steps": 2, "batch": 4},
            "capture": {"keep": keep},
            "probes": {"kinds": ["ridge"]},
        }
    )
    shapes = {"layer": LayerShape(4, 4, 3)}
    units = dict.fromkeys((*study.labels.maps, "class"), "1")
    shape = RunShape(
        study, make_samples(study), shapes, (8, 8), [9.0, 1.0], ("cup", "box"), units, ("depth",), 2
    )
    root = zarr.group(MemoryStore())
    RunSchema(root, shape).build()
    taken = set()
    for group in (member for _, member in root.members(None) if isinstance(member, zarr.Group)):
        arrays = dict(group.arrays())
        if "depth" in arrays:
            taken |= {
                *arrays,
                *(dim for one in arrays.values() for dim in one.metadata.dimension_names),
            }
    assert taken >= {"sample", "step", "timestep", "y", "x", "class_score"}
    for name in taken - {*study.labels.maps}:
        with pytest.raises(ValueError, match=f"property '{name}': the name is taken"):
            register_property(Property(name=name, kind="scalar"))
