"""Checkpoints of `weakseg fit`: the file, and the config in it, those of earlier layouts included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from experiments.runs.legacy import translate

Checkpoint = dict[str, Any]


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint written by `fit`, on the CPU.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not one.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no checkpoint {path}") from None
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(content, dict) or "weakseg" not in content:
        raise ValueError(f"{path} was not written by `weakseg fit`")
    return content


def stored_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config in a checkpoint, in today's names, without the weights that its encoder started from: the trained ones
    follow, and the file or the download may not be at hand here.

    Raises:
        ValueError: it uses an option that there is no longer.
    """
    config = translate(yaml.safe_load(checkpoint["weakseg"]["config"]))
    config["model"]["init_args"]["network"]["weights"] = None
    return config


def check_method(path: Path, method: str) -> Checkpoint:
    """The checkpoint, refused if it is of another method (`Class`), before anything is loaded or written."""
    content = read_checkpoint(path)
    stored = str(stored_config(content)["model"]["class_path"]).rsplit(".", 1)[-1]
    if stored != method:
        raise ValueError(f"{path} is a checkpoint of {stored}, this run is {method}: give a checkpoint of {method}")
    return content
