"""The type of a NumPy array whose shape and numbers are told in words."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
