"""Builder of Zarr arrays with named dimensions, description, units and a checksum per chunk."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec


class GroupBuilder:
    """Creates groups and arrays below a root."""

    def __init__(self, root: zarr.Group) -> None:
        self.root = root

    def group(self, path: str, description: str) -> zarr.Group:
        """Create a group with a description."""
        return self.root.create_group(path, attributes={"description": description})

    def array(
        self,
        group: zarr.Group,
        name: str,
        sizes: dict[str, int],
        chunks: dict[str, int],
        dtype: str,
        description: str,
        units: str = "1",
        compress: bool = True,
    ) -> None:
        """Create an empty array with named dimensions.

        Args:
            sizes: dimension to its length, in the order of the array's dimensions.
            chunks: dimension to its chunk length; a dimension that is absent is not chunked.
        """
        floating = np.dtype(dtype).kind == "f"
        group.create_array(
            name,
            shape=tuple(sizes.values()),
            chunks=tuple(chunks.get(dim, size) for dim, size in sizes.items()),
            dtype=dtype,
            fill_value=np.nan if floating else 0,  # a missing chunk of floats reads as NaN
            compressors=(ZstdCodec(level=1), Crc32cCodec()) if compress else (Crc32cCodec(),),
            dimension_names=tuple(sizes),
            attributes={"description": description, "units": units},
            config={"write_empty_chunks": True},
        )

    def table(
        self,
        group: zarr.Group,
        name: str,
        dim: str,
        values: Any,
        description: str,
        units: str = "1",
    ) -> None:
        """Create a one-dimensional array of one chunk and write its data."""
        data = np.asarray(values)
        text = data.dtype.kind == "U"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # string dtypes are an extension of Zarr v3
            array = group.create_array(
                name,
                shape=data.shape,
                chunks=data.shape,
                dtype=str if text else data.dtype,
                compressors=(ZstdCodec(level=1), Crc32cCodec()),
                dimension_names=(dim,),
                attributes={"description": description, "units": units},
                config={"write_empty_chunks": True},  # so that an absent chunk means lost data
            )
            array[:] = data.astype(object) if text else data

    def coordinate(
        self,
        group: zarr.Group,
        dim: str,
        values: Any,
        description: str,
        units: str = "1",
        name: str | None = None,
    ) -> None:
        """Create a coordinate of a dimension.

        Args:
            name: of a further coordinate of the same dimension; None for the dimension's own.
        """
        self.table(group, name or dim, dim, values, description, units)
        if name:
            known = str(group.attrs.get("coordinates", "")).split()
            group.attrs["coordinates"] = " ".join([*known, name])
