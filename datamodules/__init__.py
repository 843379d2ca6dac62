"""One file per data set, found by itself and imported on first access: `datamodules.WeizmannHorse`."""

from __future__ import annotations

from typing import Any

from common.training.discovery import find_classes, load

CLASSES = find_classes(__path__, bases=("SegmentationDataModule",), pattern="sets/*.py")
__all__ = list(CLASSES)


def __getattr__(name: str) -> Any:
    return load(__name__, CLASSES, name)


def __dir__() -> list[str]:
    return sorted(CLASSES)
