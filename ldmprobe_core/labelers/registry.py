"""Registry of labelers by property (such as ``depth``) and name (such as ``midas``).

Labelers are built in, registered with `register_labeler`, named as ``module:function`` in a study,
or offered by other packages as entry points.  The name of an entry point is ``property.name``; its
value is a class or function as for `register_labeler`::

    [project.entry-points."ldmprobe.labelers"]
    "depth.mine" = "my_package.depth:MyDepthLabeler"
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from ldmprobe_core.errors import UserError
from ldmprobe_core.labelers import classes, depth, edges, foreground, shading, tabletop
from ldmprobe_core.labelers.base import Labeler, LabelerEntry, no_weights
from ldmprobe_core.labelers.checks.global_settings import restored_settings
from ldmprobe_core.labelers.checks.results import LabelerFilesError, load_checked, named_errors
from ldmprobe_core.labelers.functions import (
    ComponentLabeler,
    JointLabeler,
    function_entry,
    import_labeler,
    takes_images,
    with_definition,
)
from ldmprobe_core.labelers.weights import published_repository
from ldmprobe_core.study.extensions.components import Component, component_records
from ldmprobe_core.study.extensions.entry_points import load_entry_points
from ldmprobe_core.study.extensions.joint import components_of
from ldmprobe_core.study.loading import sentence
from ldmprobe_core.study.probe_sections import EXACT_MAPS, LabelerSpec
from ldmprobe_core.study.properties import (
    PROPERTIES,
    Property,
    map_properties,
    register_properties,
)
from ldmprobe_core.study.schema import Study

if TYPE_CHECKING:
    import torch

ENTRY_POINTS = "ldmprobe.labelers"
"""Name of the entry-point group in which other packages offer labelers."""

_LABELERS: dict[tuple[str, str], LabelerEntry] = {}
_joint_labelers: dict[tuple[str, LabelerSpec, torch.device, str], JointLabeler] = {}
_MAX_JOINT_LABELERS = 4

Loader = TypeVar("Loader", bound=Callable[..., Any])


def register_labeler(
    prop: str, name: str, entry: LabelerEntry | None = None
) -> Callable[[Loader], Loader]:
    """Register a labeler under a property and a name, usually as a decorator.

    The decorated function takes images (n, y, x, rgb) uint8 and returns maps (n, y, x), see
    `FunctionLabeler`; or a class or function takes a `LabelerSpec` and a ``torch.device``, and
    returns a `Labeler`.  The latter may have an attribute ``locate_weights`` (see `LabelerEntry`).
    A later registration replaces an earlier one with the same property and name.  Registrations
    hold for one process; for worker processes, name the labeler as ``module:function`` in the
    study, or offer it as an entry point (see this module's docstring).

    Args:
        prop: property that is labeled, such as ``depth``.
        name: name of the labeler in ``labels.<property>`` of a study.
        entry: registry entry, for use without decoration; None builds it from the decorated object.

    Raises:
        UserError: the name is ``maps``, which stands for ground-truth maps.

    Example::

        @register_labeler("depth", "mine")
        def my_depth(images): return my_network(images)
    """
    if name == EXACT_MAPS:
        raise UserError(
            f"name: {name!r} is reserved, since in a study it stands for exact maps from files. "
            "Fix: register the labeler under another name"
        )

    # The labeler of a vector property is registered for each component of the vector.
    props = components_of(prop) or (prop,)

    def register(loader: Loader) -> Loader:
        for one in props:
            _set_entry(one, name, as_entry(loader))
        return loader

    if entry is not None:
        for one in props:
            _set_entry(one, name, as_entry(entry))
    return register


def _set_entry(prop: str, name: str, entry: LabelerEntry) -> None:
    """Register a labeler's entry, and forget a former one of this name that is loaded."""
    _LABELERS[prop, name] = entry
    _joint_labelers.clear()


def property(name: str, kind: str, **fields: Any) -> Callable[[Loader], Loader]:
    """Return a decorator that registers a property with the labeler that measures it.

    A study names the decorated function as ``module:function`` under ``labels.<name>``.  It then
    carries the property's record, so that other processes know the property without importing the
    module; only processes that label images import it.

    Args:
        name: name of the property: lowercase letters, digits and _.
        kind: ``mask`` or ``scalar``, see `Property`; ``vector``, whose labeler returns maps
            (n, y, x, component); ``classes``, whose labeler returns maps (n, y, x) of the indices
            of classes, from 0; or ``number``, whose labeler returns one number per image, (n,).
        fields: other fields of `Property`, such as ``title``; their defaults depend on the kind.  A
            vector also has ``components``, and a class map ``classes``: their names.

    Raises:
        UserError: a field is wrong, the name is taken by another property, or what is decorated is
            neither a function nor a class.

    Example::

        @lp.property("sunlit", kind="mask")
        def sunlit(images): return images.mean(-1) > 128
    """
    try:
        register_properties(records := _records(name, kind, fields))
    except ValidationError as error:
        problem_and_remedy = sentence(error, Property, "property")
        raise UserError(f"property {name!r}: {problem_and_remedy}") from None
    except ValueError as problem_and_remedy:
        raise UserError(str(problem_and_remedy)) from None

    def register(loader: Loader) -> Loader:
        if not hasattr(loader, "__qualname__"):
            raise UserError(
                f"property {name!r}: an object of type {type(loader).__name__} has no name that a "
                "study could give. Fix: decorate a function that calls it"
            )
        named = f"{loader.__module__}:{loader.__qualname__}"
        for record in records:
            _set_entry(record.name, named, as_entry(loader))
        return loader

    return register


def _records(name: str, kind: str, fields: dict[str, Any]) -> list[Property]:
    """Build the record of a property, or one for each component of a vector or class map."""
    parts = component_records(name, kind, fields)
    if parts is None:
        parts = {name: {"kind": kind, **fields}}
    return [Property.model_validate({"name": part} | record) for part, record in parts.items()]


def _component(prop: str) -> Component | None:
    """Return a property's place in a vector or class map; None if it is not a component."""
    return PROPERTIES[prop].component if prop in PROPERTIES else None


def as_entry(loader: Any) -> LabelerEntry:
    """Build a labeler's registry entry from a class, a loading function or a function of images.

    The entry of a labeler that is not part of this package has the file or code that defines it.
    """
    if isinstance(loader, LabelerEntry):
        is_ours = (getattr(loader.load, "__module__", None) or "").startswith("ldmprobe_core.")
        return loader if is_ours else with_definition(loader, loader.load)
    if takes_images(loader):
        return function_entry(loader)
    entry = LabelerEntry(loader, getattr(loader, "locate_weights", no_weights))
    return with_definition(entry, loader)


register_labeler(
    "foreground",
    "tabletop",
    LabelerEntry(
        tabletop.load_foreground, tabletop.locate_weights, call_memory=tabletop.maps_memory
    ),
)
register_labeler(
    "foreground",
    "tracer",
    LabelerEntry(
        foreground.load_tracer,
        foreground.locate_tracer,
        foreground.published_tracer,
        foreground.tracer_memory,
    ),
)
register_labeler(
    "foreground",
    "inspyrenet",
    LabelerEntry(
        foreground.load_inspyrenet,
        foreground.locate_inspyrenet,
        foreground.published_inspyrenet,
        foreground.inspyrenet_memory,
    ),
)
register_labeler(
    "depth",
    "tabletop",
    LabelerEntry(tabletop.load_depth, tabletop.locate_weights, call_memory=tabletop.maps_memory),
)
register_labeler(
    "depth",
    "midas",
    LabelerEntry(depth.load_midas, depth.locate_midas, depth.published_midas, depth.midas_memory),
)
_TRANSFORMERS_DEPTH = LabelerEntry(
    depth.load_transformers_depth, depth.locate_transformers_depth, published_repository
)
register_labeler("depth", "depth-anything", _TRANSFORMERS_DEPTH)
register_labeler("depth", "transformers", _TRANSFORMERS_DEPTH)
register_labeler(
    "shading",
    "tabletop",
    LabelerEntry(tabletop.load_shading, tabletop.locate_weights, call_memory=tabletop.maps_memory),
)
register_labeler("shading", "retinex", LabelerEntry(shading.load_retinex, shading.locate_retinex))
register_labeler(
    "shading",
    "marigold",
    LabelerEntry(shading.load_marigold, shading.locate_marigold, shading.published_marigold),
)
register_labeler(
    "shading", "intrinsic", LabelerEntry(shading.load_intrinsic, shading.locate_intrinsic, None)
)
register_labeler("edges", "gradient")(edges.gradient_edges)
register_labeler(
    "normals",
    "tabletop",
    LabelerEntry(tabletop.load_normals, tabletop.locate_weights, call_memory=tabletop.maps_memory),
)
register_labeler(
    "class",
    "tabletop",
    LabelerEntry(
        tabletop.load_classes, tabletop.locate_weights, call_memory=tabletop.classes_memory
    ),
)
register_labeler(
    "class",
    "vgg16",
    LabelerEntry(
        classes.load_vgg16, classes.locate_vgg16, classes.published_vgg16, classes.vgg16_memory
    ),
)
register_labeler(
    "class",
    "transformers",
    LabelerEntry(
        classes.load_transformers_classes,
        classes.locate_transformers_classes,
        published_repository,
    ),
)


def labeler_names(prop: str) -> list[str]:
    """List the names of a property's labelers, sorted; entry points are included but not loaded.

    ``maps`` is one of them for map properties.  Names such as ``module:function`` are not listed.
    """
    registered = {name for known, name in _LABELERS if known == prop and ":" not in name}
    if prop in map_properties():
        registered.add(EXACT_MAPS)
    component = _component(prop)
    prefix = f"{component.vector if component else prop}."
    offered = {
        point.name.removeprefix(prefix)
        for point in entry_points(group=ENTRY_POINTS)
        if point.name.startswith(prefix)
    }
    return sorted(registered | offered)


def find_labeler(prop: str, name: str) -> LabelerEntry:
    """Return the registry entry of a labeler, and import the package that provides it.

    Args:
        prop: property that is labeled.
        name: name of a registered labeler or an entry point, or ``module:function``.

    Raises:
        UserError: the property has no labeler of this name, or its package cannot be imported.
    """
    if (prop, name) not in _LABELERS and ":" in name:
        _LABELERS[prop, name] = as_entry(import_labeler(prop, name))
    if (prop, name) not in _LABELERS:
        component = _component(prop)
        offered = f"{component.vector if component else prop}.{name}"
        with restored_settings():
            loaders = load_entry_points(ENTRY_POINTS, offered, f"labels.{prop}")
        for loader in loaders:
            _LABELERS[prop, name] = as_entry(loader)
    if (prop, name) not in _LABELERS:
        if parts := components_of(prop):
            raise UserError(
                f"labels.{prop}: the property has a labeler for each of its components ({name}). "
                f"Fix: use one of the properties {', '.join(parts)}"
            )
        names, remedy = labeler_names(prop), "package.module:function"
        if names:
            remedy = f"one of {', '.join(names)}, or {remedy}"
        raise UserError(f"labels.{prop} is {name!r}: there is no such labeler. Fix: use {remedy}")
    return _LABELERS[prop, name]


def load_labeler(prop: str, spec: LabelerSpec, device: torch.device) -> Labeler:
    """Load the labeler that a study names for a property.

    Raises:
        UserError: there is no such labeler, or its package or weights are missing.
    """
    component = _component(prop)
    if component is None:
        entry = find_labeler(prop, spec.name)
        return load_checked(entry, prop, spec, device, PROPERTIES.get(prop))
    return ComponentLabeler(_joint_labeler(component.vector, spec, device), component)


def _joint_labeler(name: str, spec: LabelerSpec, device: torch.device) -> JointLabeler:
    """Load the labeler of a vector or class map, which all its components share."""
    first = components_of(name)[0]
    key = name, spec, device, check_labeler(first, spec)
    if key not in _joint_labelers:
        if len(_joint_labelers) >= _MAX_JOINT_LABELERS:
            _joint_labelers.clear()
        entry = find_labeler(first, spec.name)
        _joint_labelers[key] = JointLabeler(
            load_checked(entry, name, spec, device, PROPERTIES[first])
        )
    return _joint_labelers[key]


def require_known(prop: str, spec: LabelerSpec) -> None:
    """Raise `UserError` if the property has no labeler of this name."""
    find_labeler(prop, spec.name)


def check_labeler(prop: str, spec: LabelerSpec) -> str:
    """Check that a labeler's package and weights are on this machine, without loading them.

    Returns:
        fingerprint of the labeler: 16 hexadecimal digits, a hash of its name and weight files, and
            of the file that defines it, or of its code if it was defined interactively.

    Raises:
        UserError: its package or weights are missing, or its file was changed after its import.
    """
    entry = find_labeler(prop, spec.name)
    failure = "does not find its weights"
    with named_errors(prop, spec.name, LabelerFilesError, "correct it", failure):
        files = entry.locate_weights(spec)
        if entry.file is not None:
            files = [*files, entry.file.require_unchanged()]
    digest = hashlib.sha256(spec.name.encode() + entry.code)
    for path in sorted(files):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def definition_of(prop: str, spec: LabelerSpec) -> str:
    """Return what a labeler's fingerprint covers, in words, with the file of its code if any."""
    entry = find_labeler(prop, spec.name)
    if entry.file is not None:
        return f"weights or code ({entry.file.path})"
    return "weights or code" if entry.code else "weights"


def labelers_of(study: Study) -> dict[str, LabelerSpec]:
    """Return labeler settings by property; properties that are read from map files are left out."""
    labeled = (*study.labels.maps, *study.labels.numbers)
    specs = {prop: study.labels.labeler(prop) for prop in labeled}
    specs["class"] = study.labels.classes
    return {
        prop: spec for prop, spec in specs.items() if spec is not None and spec.name != EXACT_MAPS
    }
