"""Builder of Zarr groups and arrays with descriptions, units and named dimensions.

Every array has named dimensions, a description, units and a checksum at the end of each chunk.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec


class GroupBuilder:
    """Builder that creates groups and arrays below a root group."""

    def __init__(self, root: zarr.Group) -> None:
        self.root = root

    def group(self, path: str, description: str) -> zarr.Group:
        """Create a Zarr group with the attribute ``description``."""
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
        """Create an array with named dimensions and no data.

        Args:
            sizes: length of each dimension by name, in the order of the array's dimensions.
            chunks: chunk length by dimension; a dimension without an entry is not divided.
        """
        floating = np.dtype(dtype).kind == "f"
        group.create_array(
            name,
            shape=tuple(sizes.values()),
            chunks=tuple(chunks.get(dim, size) for dim, size in sizes.items()),
            dtype=dtype,
            # Values that were never written read as the fill value.  For floats it is NaN, which
            # cannot be mistaken for a result.
            fill_value=np.nan if floating else 0,
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
            # Suppress Zarr's warning that strings are not among the dtypes of the v3 specification.
            warnings.simplefilter("ignore")
            array = group.create_array(
                name,
                shape=data.shape,
                chunks=data.shape,
                dtype=str if text else data.dtype,
                compressors=(ZstdCodec(level=1), Crc32cCodec()),
                dimension_names=(dim,),
                attributes={"description": description, "units": units},
                # By default, Zarr omits chunks that hold only the fill value.  They are written
                # here, so that an absent chunk always means lost data.
                config={"write_empty_chunks": True},
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
        """Create a coordinate array of a dimension and write its values.

        Args:
            name: name of an additional coordinate of the dimension; None creates the main one,
                which has the dimension's name.
        """
        self.table(group, name or dim, dim, values, description, units)
        if name:
            known = str(group.attrs.get("coordinates", "")).split()
            group.attrs["coordinates"] = " ".join([*known, name])
