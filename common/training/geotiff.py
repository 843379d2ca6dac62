"""Labels as a GeoTIFF in the place of the image that they were predicted of. Needs the extra `geo` (rasterio)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.ops.array import Array

# Of an image nothing is opened but its own file, and of the block cache, 5 % of the memory otherwise, little is used.
ENV = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_CACHEMAX": 64}


def georeference(path: Path) -> dict[str, Any]:
    """`crs`, and `transform` or `gcps`, of a GeoTIFF, with its `height` and `width`.

    Raises:
        ModuleNotFoundError: there is no rasterio.
        ValueError: it is none, or says nothing of its place.
    """
    if find_spec("rasterio") is None:
        raise ModuleNotFoundError("GeoTIFF needs the package rasterio: pip install -e '.[geo]', or leave --geotiff out")
    import rasterio
    from rasterio.errors import RasterioIOError

    try:
        with rasterio.Env(**ENV), rasterio.open(path, driver="GTiff") as source:
            points, system = source.gcps
            found = {"crs": source.crs or system, "height": source.height, "width": source.width}
            found |= {"gcps": points} if points else {"transform": source.transform}
            placed = bool(points) or not source.transform.is_identity
    except RasterioIOError as error:
        raise ValueError(f"{path} is no GeoTIFF ({' '.join(str(error).split())}): leave --geotiff out") from error
    if not placed or found["crs"] is None:
        raise ValueError(f"{path} does not say where on the earth it is: leave --geotiff out")
    return found


class GeoTiff:
    """Class ids (H, W) as a GeoTIFF of one band in the colours of the classes, written in strips of rows from the top.

    Args:
        files: closes it.
        path: of the new file.
        source: the image.
        size: (height, width) of the labels.
        colors: of the classes.

    Raises:
        ModuleNotFoundError, ValueError: what `georeference` raises, or the image has another size.
    """

    def __init__(
        self, files: ExitStack, path: Path, source: Path, size: tuple[int, int], colors: Sequence[tuple[int, int, int]]
    ) -> None:
        place = georeference(source)
        if (place["height"], place["width"]) != size:  # turned by its EXIF orientation
            raise ValueError(f"{source} is shown turned, and its place is that of the picture as stored")
        import rasterio

        files.enter_context(rasterio.Env(**ENV))
        how = {"driver": "GTiff", "count": 1, "dtype": "uint8", "compress": "deflate", "BIGTIFF": "IF_SAFER"}
        self.file = files.enter_context(rasterio.open(path, "w", **how, **place))
        self.file.write_colormap(1, {number: (*color, 255) for number, color in enumerate(colors)})

    def write(self, rows: Array, top: int) -> None:
        """The rows from `top` on, uint8 (rows, W)."""
        self.file.write(rows, 1, window=((top, top + len(rows)), (0, rows.shape[1])))
