"""Configs of earlier versions in today's names, so that their checkpoints still load.

Renamed options are renamed, dropped ones left out where they had their default, and the settings of RRN and SCL that
are methods of their own today become these. Anything else is refused by name.
"""

from __future__ import annotations

from typing import Any

Options = dict[str, Any]
RENAMED = {
    "SCL": {"ramp_up": "ramp", "decay": "ema_decay", "decay_warmup": "ema_warmup"},
    "UniMatch": {"decay": "ema_decay"},
}
# Options that are gone, with the value that today's methods keep to.
DROPPED: dict[str, Options] = {
    "TV": {"variant": "aniso", "eps": 0, "where": "all", "directional_weight": 0, "softmin_temperature": None,
           "stride": 1},
    "LevelSet": {"channel_reduce": "sum"},
    "Regularized": {"dilation": 1, "missing_weight": 0},
    "SCL": {"mixing": "cutmix", "confidence": "batch", "pairs": "inside", "detach_norm": False},
    "CutMixSeg": {"relaxation": 0},
    "RRN": {"score": "mean", "target": "partner", "norm": "count", "correct": "partner", "margin": 0.1,
            "d_input": "prob_image", "d_fake": "softmax", "pseudo_mode": "eval"},
    "CPS": {"target": "partner", "correct": "partner", "pseudo_mode": "eval"},
    "DFR": {"deep_source": "online", "decay": 0.99, "eta": 0.5, "norm": "pixels", "gate": "none",
            "fch_input": "decoder", "fch_detach_input": False, "fch_targets": "scribble+confident", "margin": 0.5,
            "tau": 0.1},
}  # fmt: skip
# Without their terms these options of RRN and SCL had no effect.
IDLE = {
    "CPS": {"selection_weight", "matching_weight", "diversity", "threshold", "score", "norm", "margin", "region_conv",
            "d_input", "d_fake", "discriminator_lr"},
    "CutMixSeg": {"structured_weight", "feature", "pairs", "samples", "stride", "detach_norm"},
}  # fmt: skip


def translate(config: dict[str, Any]) -> dict[str, Any]:
    """A stored config (resolved: it holds every option) with today's class paths and options; changed in place.

    Raises:
        ValueError: a dropped option was set to something else than what today's method does.
    """
    model, data = config["model"], config["data"]
    name, options = class_name(model["class_path"]), model["init_args"]
    for old, new in RENAMED.get(name, {}).items():
        if old in options:
            options[new] = options.pop(old)
    if name == "SCL" and "mode" in options:
        options["samples"] = options["samples"] if options.pop("mode") == "sampled" else None
        name = name if options["structured_weight"] else "CutMixSeg"
    if name == "RRN" and is_cps(options):
        name, options["cps_weight"] = "CPS", options.pop("dynamic_weight")
    for option in IDLE.get(name, ()):
        options.pop(option, None)
    if "layer_decay" in options:  # of DFR alone, once
        options["network"]["layer_decay"] = options.pop("layer_decay")
    for option, kept in DROPPED.get(name, {}).items():
        if (value := options.pop(option, kept)) != kept:
            raise ValueError(
                f"{name} was trained with {option}={value}, an option that there is no longer: load it with the "
                "version that trained it (`commit` in the run's summary.json)"
            )
    if is_ours(model["class_path"], "methods"):
        model["class_path"] = f"methods.{name}"
    if is_ours(data["class_path"], "datamodules"):
        data["class_path"] = f"datamodules.{class_name(data['class_path'])}"
    return config


def is_ours(path: str, package: str) -> bool:
    return "." not in path or path.startswith(f"{package}.")


def class_name(path: str) -> str:
    """The last word of a class path: modules have moved, classes kept their names."""
    return str(path).rsplit(".", 1)[-1]


def is_cps(options: Options) -> bool:
    """Whether settings of RRN are those of plain cross pseudo supervision, as it was once run."""
    judged = options["selection_weight"] or options["matching_weight"] or options.get("correct") == "winner"
    return not judged and options["diversity"] == "none"
