"""The client of the W&B server, with errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def wandb_api(source: str, otherwise: str) -> Iterator[Any]:
    """`wandb.Api()`, asked within the context; `otherwise` ends the advice of an error's message.

    Raises:
        ModuleNotFoundError, ValueError: there is no W&B, or it refuses.
    """
    try:
        import wandb
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"{source} needs the package wandb: pip install wandb") from None
    try:
        yield wandb.Api()
    except Exception as error:
        # Not all of the client's errors are wandb.Error.
        if not isinstance(error, ValueError) and not type(error).__module__.startswith("wandb"):
            raise
        raise ValueError(f"W&B: {error}; log in with `wandb login`, or {otherwise}") from error
