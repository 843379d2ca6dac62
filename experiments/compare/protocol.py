"""What two runs must share to stand in one column of a table, and what to stand in one row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePath
from typing import Any

from common.model.labeled import LabeledConfig
from experiments.compare.runs import Finished

Flat = dict[str, Any]
# Options of the data that say how it is trained on. All others say what the data are, `size` and the like how they are
# evaluated; an option nobody has thought of here therefore keeps runs apart.
TRAINING = {"batch_size", "unlabeled_batch_size", "unlabeled_pool", "scale", "flip", "strong_views", "crop",
            "class_sampling", "superpixels", "group"}  # fmt: skip
HARDWARE = {"num_workers", "cache", "cache_dir", "seed"}  # options that change no result, or are the seed
# Options of the trainer that change what is learned.
TRAINER = {"max_steps", "max_epochs", "max_time", "precision", "accumulate_grad_batches", "gradient_clip_val",
           "gradient_clip_algorithm", "limit_train_batches", "overfit_batches"}  # fmt: skip


def flatten(content: Any, prefix: str = "") -> Flat:
    """Nested mappings as one, keys joined by dots."""
    if not isinstance(content, Mapping):
        return {prefix: content}
    parts = [flatten(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in content.items()]
    return {key: value for part in parts for key, value in part.items()}


def text(value: Any) -> str:
    """A value as it is compared and shown. W&B gives 1.0 back as 1: both are `1`."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(text, value))}]"
    return f"{value:.12g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def as_text(parts: Mapping[str, Any]) -> Flat:
    return {key: text(value) for key, value in flatten(parts).items()}


def evaluation(inference: Mapping[str, Any], postprocess: Mapping[str, Any], size: int | str | Sequence[int]) -> Flat:
    """How images are predicted; the parameters of a post-processing that is off say nothing."""
    refined: Any = postprocess if postprocess["kind"] != "none" else "none"
    size = [size, size] if isinstance(size, int) else size
    # Runs of before this option are as those without it.
    inference = {key: value for key, value in inference.items() if key != "smooth" or value}
    return as_text({"inference": inference, "postprocess": refined, "size": size})


def protocol(run: Finished) -> Flat:
    """What two runs must share to stand in one column: data, split, labels and evaluation."""
    data = {k: v for k, v in run.config["data"]["init_args"].items() if k not in TRAINING | HARDWARE}
    if "root" in data:  # one data set may lie at different places
        data["root"] = PurePath(str(data["root"])).name
    supervision = {k: v for k, v in data.pop("supervision").items() if v not in (None, False, 0)}
    for option in ("pseudo_masks", "tags"):  # labels; without them as runs of before these options
        value = data.pop(option, None)
        if value is not None:
            supervision[option] = PurePath(str(value)).name
    model = run.config["model"]["init_args"]
    own = evaluation(model["inference"], model["postprocess"], data.pop("size"))
    # `weakseg test` may have been told another way than the run's own; refinements (`best+mrf`) have their own columns.
    told = [json.loads(images.evaluation) for which, images in run.images.items() if "+" not in which]
    used = [evaluation(**one) for one in told] or [own]
    how = {key: " and ".join(sorted({one.get(key, "none") for one in used})) for one in used for key in one}
    if (limit := run.config["trainer"].get("limit_test_batches")) is not None:
        how["limit_test_batches"] = text(limit)
    return as_text({"data": {"set": run.data, **data}, "labels": supervision, "evaluation": how})


def settings(run: Finished) -> Flat:
    """What makes a row: method, its options, network, optimiser, budget. Runs that differ in the seed share it."""
    model = {k: v for k, v in run.config["model"]["init_args"].items() if k not in ("inference", "postprocess")}
    network = dict(model["network"])
    # Without the defaults as runs of before these options.
    usual = asdict(LabeledConfig())
    labeled = {k: v for k, v in model.pop("labeled", {}).items() if v != usual.get(k)}
    if labeled:
        model["labeled"] = labeled
    network["weights"] = network["weights"] and PurePath(network["weights"]).name
    data = {k: v for k, v in run.config["data"]["init_args"].items() if k in TRAINING}
    for option in ("class_sampling", "superpixels", "group"):  # as labeled
        if not data.get(option):
            data.pop(option, None)
    trainer = {k: v for k, v in run.config["trainer"].items() if k in TRAINER}
    if (patience := run.config.get("patience")) is not None:
        trainer["patience"] = patience
    return as_text({"method": run.method, "model": {**model, "network": network}, "data": data, "trainer": trainer})
