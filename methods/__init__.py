"""One folder per paper. Each is found by itself and imported on first access: `methods.Supervised` loads
`methods/supervised/`.

A folder's `module.py` holds one LightningModule whose name is the folder's in capitals or camel case; `CLASSES` maps
class names to folders by reading the sources, without importing torch.
"""

from __future__ import annotations

from typing import Any

from common.training.discovery import find_classes, load

CLASSES = find_classes(__path__, bases=("SegmentationModule", "CamModule"), pattern="*/module.py")
__all__ = list(CLASSES)


def __getattr__(name: str) -> Any:
    return load(__name__, CLASSES, name)


def __dir__() -> list[str]:
    return sorted(CLASSES)
