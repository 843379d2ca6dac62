"""`weakseg fit --data FOLDER`: what nobody said is chosen from the images and their labels, told, and said explicitly.

The choices are options like any others: those of the command line come after them, and the run's config.yaml holds
them. A resumed run takes them from there. All of this is ours, rules of thumb from small experiments.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Collection, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import yaml
from lightning_utilities.core.rank_zero import rank_zero_only
from scipy import ndimage
from skimage import measure

from common.model.networks import NetworkConfig, build_network
from common.ops.array import Array
from common.ops.batch import IGNORE
from common.training.files import plain_yaml
from common.training.run import launched
from datamodules.base import SegmentationDataModule
from datamodules.decode import SUFFIXES, stored_size
from experiments.cli.configs import CONFIG_OPTIONS, expand_configs, named_config
from experiments.cli.doctor import load_data

TABLE = Path(__file__).parent / "decision.yaml"
CHOSEN = "WEAKSEG_CHOSEN"  # what the first process of a machine chose, for those that it starts
NETWORK = {"arch": "DeepLabV3Plus", "encoder": "tu-tf_efficientnet_lite0", "weights": "in1k"}
LEAST, MOST = 256, 512  # pixels of the longer side, where images have as many
BATCHES = (16, 8, 4, 2)
EPOCHS, STEPS = 60, (1000, 20000)
LOOKED_AT = 40  # images
DOT = 0.02  # of an image's longer side: labels of up to this length are dots
OPEN, AWAY = 0.25, 0.2  # between what was measured, see `open_share`; of the diagonal
CLICKS = 3  # dots of a class in an image, on average; more are pixels that were drawn at random
MISSING = object()
GROUPS, LIMITS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")  # of control groups, version 2


def with_choices(words: Sequence[str]) -> list[str]:
    """The words after `weakseg fit`; with `--data FOLDER` among them, what they leave open is chosen and put before.

    A value of `--data` is a folder if it has a / or is there; else it is the name of a data set.

    Raises:
        ValueError, OSError: the folder cannot be used, or there is no pretrained encoder and none is given.
    """
    folder, rest = _folder_of(words)
    if folder is None:
        return [*words]
    own = ["--data", "Folder", "--data.root", str(folder)]
    if named_config(rest, "regimes"):  # which says it all
        return [*rest, *own]
    if CHOSEN in os.environ:
        return [*json.loads(os.environ[CHOSEN]), *rest]
    _, devices, nodes = launched()
    if devices * nodes > 1:
        raise ValueError(
            "nothing is chosen for processes that a launcher starts: start once without it, and give the launcher the "
            "command that is printed"
        )
    data = load_data([*own, *_configs(rest), *_of(rest, "--data.")])
    kind = kind_of(data)
    weights = _value(rest, "--model.network.weights", NETWORK["weights"])
    pretrained = "from scratch" if weights in ("null", "~") else "pretrained"
    advice = yaml.safe_load(TABLE.read_text())[kind]
    method = advice[pretrained]
    named = named_config(rest, "methods") or _value(rest, "--model", None)
    if kind == "boxes" and not _says(rest, "--data.supervision"):
        opencv = find_spec("cv2") is not None
        method = method if opencv else advice["without OpenCV"]
        inside = "grabcut" if opencv and (named or method).lower() != "box" else "filled"  # `Box` makes its own of them
        own += ["--data.supervision", f"{{kind: boxes, real: true, inside: {inside}}}"]
    run_dir = _value(rest, "--run_dir", None)
    if run_dir is None:
        name = _value(rest, "--name", None) or f"seed{_value(rest, '--seed_everything', '0')}"
        run_dir = str(Path("runs", folder.resolve().name, named or method, name))
    own_options = {} if named else advice.get("options", {}).get(method, {})
    options = {f"--{option}": value for option, value in own_options.items()}
    choices = _stored(Path(run_dir), options) if _value(rest, "--resume", None) == "auto" else None
    if choices is None:
        choices = choose(data, rest, kind) | {option: str(value) for option, value in options.items()}
    first = ["--config", "base", *([] if named else ["--config", method]), *own, "--run_dir", run_dir]
    first += [word for option, value in choices.items() if not _says(rest, option) for word in (option, value)]
    _tell(folder, data, kind, named or method, first, rest)
    _advise(advice["postprocess"])
    os.environ[CHOSEN] = json.dumps(first)
    return [*first, *rest]


def kind_of(data: SegmentationDataModule) -> str:
    """The row of the table for a data module's labels, by at most 40 masks."""
    if data.supervision.kind in ("tags", "boxes"):
        return data.supervision.kind
    names = data.names("train")
    with_mask = [name for name in names if data.has_mask(name)]
    if data.supervision.kind == "dense" and sum(name in (data.boxed or ()) for name in names) > len(with_mask):
        return "boxes"
    masks = [data.mask(name) for name in with_mask[:: max(1, -(-len(with_mask) // LOOKED_AT))]]
    drawn = [mask for mask in masks if mask is not None and (mask != IGNORE).any()]
    complete = not drawn or median(float(np.mean(mask != IGNORE)) for mask in drawn) > 0.9
    if complete and len(with_mask) < 0.9 * len(names):
        return "some images labelled"
    if complete and drawn:
        return "all pixels labelled"
    dots = [dots_of(mask) for mask in drawn]
    if not dots or median(share for share, _ in dots) <= 0.5:
        left_open = drawn and median(open_share(mask) for mask in drawn) > OPEN
        return "strokes, much left open" if left_open else "strokes"
    return "clicks" if median(each for _, each in dots) <= CLICKS else "few pixels"


def dots_of(mask: Array) -> tuple[float, float]:
    """Of a partly labelled mask, uint8 (H, W): the share of its connected labels that are dots and not strokes, of up
    to 3 pixels or 2 % of the longer side, and how many there are of each class in it, on average."""
    found: Array = measure.label(mask.astype(np.int32) + 1, background=IGNORE + 1, connectivity=2)  # type: ignore[no-untyped-call]
    places = [place for place in ndimage.find_objects(found) if place]
    most = max(3, DOT * max(mask.shape))
    small = [max(side.stop - side.start for side in place) <= most for place in places]
    return float(np.mean(small)), len(places) / len(np.unique(mask[mask != IGNORE]))


def open_share(mask: Array) -> float:
    """The share of the pixels of a mask, uint8 (H, W), that are farther than a fifth of its diagonal from every label.

    Medians: 0.34 on ACDC, where experts drew around the heart alone, 0.30 on simulated slices of hearts; 0.14 and 0.21
    on Weizmann horses (`human_scribbles`, `scribbles`), 0.04 on the photos of docs/story.md.
    """
    step = -(-max(mask.shape) // LEAST)
    known: Array = measure.block_reduce(mask != IGNORE, step, np.any)  # type: ignore[no-untyped-call]
    return float(np.mean(ndimage.distance_transform_edt(~known) > AWAY * np.hypot(*known.shape)))


def choose(data: SegmentationDataModule, said: Sequence[str], kind: str) -> dict[str, str]:
    """Options and their values, for data with this kind of labels."""
    names = data.names("train")
    some = names[:: max(1, -(-len(names) // LOOKED_AT))]
    sizes = [_longest(data, name) for name in some]
    longest = int(median(sizes) if sizes else LEAST)
    side = min(MOST, max(min(LEAST, 32 * -(-longest // 32)), 32 * (longest // 32)))
    given = yaml.safe_load(str(_value(said, "--data.size", side)))
    sides = [given] if isinstance(given, int) else given if isinstance(given, list) else []
    side = max((one for one in sides if isinstance(one, int)), default=side)
    network = {key: _value(said, f"--model.network.{key}", value) for key, value in NETWORK.items()}
    if network["encoder"] != NETWORK["encoder"] and not _says(said, "--model.network.weights"):
        network["weights"] = "null"
    _check_at_hand(network, data)
    crop = max(32, 32 * round(0.75 * side / 32))
    # With unlabelled images: these too, and what a teacher makes of them.
    one = (3 if kind == "some images labelled" else 1) * saved_bytes(network, data, crop)
    room = free_memory() / 2
    labelled = sum(data.has_mask(name) for name in names) or len(names)
    batch = next((size for size in BATCHES if size * one < room and size <= max(2, labelled)), BATCHES[-1])
    batch = _count(said, "--data.batch_size", batch)
    steps = min(max(100 * round(EPOCHS * len(names) / batch / 100), STEPS[0]), STEPS[1])
    steps = _count(said, "--trainer.max_steps", steps)
    return {
        "--data.size": str(side),
        "--data.crop": f"[{crop}, {crop}]",
        "--data.scale": "[0.6, 1.5]",
        "--data.batch_size": str(batch),
        **{f"--model.network.{key}": str(value) for key, value in network.items()},
        "--model.network.freeze_bn": "true" if batch < 8 and network["weights"] != "null" else "false",
        "--model.encoder_lr_scale": "0.3" if network["weights"] != "null" else "1.0",
        "--trainer.max_steps": str(steps),
        "--trainer.val_check_interval": str(max(1, steps // 10)),
        # Of a packed volume all is unpacked for each slice that is drawn: seconds.
        **({"--data.cache": "disk"} if any(data.images[name].suffix.lower() == ".gz" for name in some) else {}),
    }


def _count(said: Sequence[str], option: str, default: int) -> int:
    value = str(_value(said, option, default))
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"{option} is {value!r}: with --data FOLDER give a number, 1 or more")
    return int(value)


def _longest(data: SegmentationDataModule, name: str) -> int:
    """Pixels of an image's longer side; of a picture they are in its header."""
    file = data.images[name]
    return int(max(stored_size(file)[0] if file.suffix.lower() in SUFFIXES else data.image(name).shape[:2]))


def saved_bytes(network: dict[str, Any], data: SegmentationDataModule, crop: int) -> int:
    """Bytes that the network keeps for the backward pass of one training image: counted in one step without memory, on
    the meta device."""
    config = NetworkConfig(
        arch=network["arch"], encoder=network["encoder"], channels=data.channels, freeze_bn=True
    )  # BatchNorm in training mode wants more than one value
    held: list[torch.Tensor] = []  # storages must live on, or their numbers are given again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        return tensor

    with torch.device("meta"):
        built = build_network(config, data.num_classes)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            built(torch.zeros(1, data.channels, crop, crop))
    weights = {p.untyped_storage()._cdata for p in built.parameters()}
    sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in held}
    return max(1, sum(size for number, size in sizes.items() if number not in weights))


def free_memory() -> int:
    """Bytes of the first GPU, or else of the machine, where a container or a job may have less."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    with Path("/proc/meminfo").open() as told:
        free = 1024 * next(int(line.split()[1]) for line in told if line.startswith("MemAvailable"))
    lines = GROUPS.read_text().splitlines() if GROUPS.exists() else []
    group = next((line[3:] for line in lines if line.startswith("0::")), "/")
    folder = LIMITS / group.strip("/")
    for part in (folder, *folder.parents):
        with suppress(OSError, ValueError):  # not there, or `max`
            free = min(free, int((part / "memory.max").read_text()))
    return free


def _check_at_hand(network: dict[str, Any], data: SegmentationDataModule) -> None:
    """Build the network once: it downloads the encoder's weights, or finds those that it has downloaded before."""
    try:
        weights = None if network["weights"] == "null" else network["weights"]
        build_network(NetworkConfig(**{**network, "weights": weights}), data.num_classes)
    except RuntimeError as error:
        encoder = str(network["encoder"]).removeprefix("tu-")
        raise ValueError(
            f"the pretrained encoder {encoder} is not at hand and cannot be downloaded: give a file of it, "
            f"--model.network.weights {encoder}.safetensors, or start from scratch, --model.network.weights null"
        ) from error


def _stored(run_dir: Path, options: Collection[str]) -> dict[str, str] | None:
    """The choices of a run that is there, numbers for `options` of its model among them. Its config is data: taken are
    numbers, and names that we choose ourselves."""
    file = run_dir / "config.yaml"
    if not file.is_file():
        return None
    try:
        content = plain_yaml(file.read_text())
        data, model, trainer = content["data"]["init_args"], content["model"]["init_args"], content["trainer"]
        network = model["network"]
        found = {
            "--data.size": data["size"] if data["size"] == "native" else int(data["size"]),
            "--data.crop": [int(side) for side in data["crop"]],
            "--data.scale": [float(end) for end in data["scale"]],
            "--data.batch_size": int(data["batch_size"]),
            "--model.network.freeze_bn": str(bool(network["freeze_bn"])).lower(),
            "--model.encoder_lr_scale": float(model["encoder_lr_scale"]),
            "--trainer.max_steps": int(trainer["max_steps"]),
            "--trainer.val_check_interval": int(trainer["val_check_interval"]),
        }
        found |= {option: float(model[option.removeprefix("--model.")]) for option in options}
        found |= {"--data.cache": "disk"} if data.get("cache") == "disk" else {}
        own = {f"--model.network.{key}": value for key, value in NETWORK.items() if network[key] == value}
    except (yaml.YAMLError, KeyError, TypeError, ValueError):
        return None
    if len(own) < len(NETWORK):  # a network that was given, and is given again
        own = {} if network["weights"] is not None else {**own, "--model.network.weights": "null"}
    return {option: str(value) for option, value in (found | own).items()}


@rank_zero_only
def _tell(
    folder: Path, data: SegmentationDataModule, kind: str, method: str, first: Sequence[str], rest: Sequence[str]
) -> None:
    counts = {split: len(data.names(split)) for split in ("train", "val", "test")}
    masks = sum(data.has_mask(name) for name in data.names("train"))
    boxes = sum(name in (data.boxed or ()) for name in data.names("train"))
    having = f"{masks} with a mask{f', {boxes} with boxes' if boxes else ''}"
    images = f"{counts['train']} training images ({having}), {counts['val']} for val, {counts['test']} for test"
    print(f"{folder}: {kind}; {images}; {data.num_classes} classes")
    print(f"chosen: {method}. This command says it all:")
    print(f"  weakseg fit {shlex.join([*first, *rest])}")


@rank_zero_only
def _advise(postprocess: dict[str, Any]) -> None:
    """It is not chosen: it needs the probabilities of a whole image, and seconds for each of a large one."""
    if postprocess:
        words = " ".join(f"--model.postprocess.{key} {value}" for key, value in postprocess.items())
        print(f"test and predict may gain from {words}")


# Words of the command line ------------------------------------------------------------------------------------------


def _folder_of(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The folder that `--data` names, and the other words."""
    for number, word in enumerate(words):
        option, sign, value = word.partition("=")
        if option == "--data":
            value = value if sign else "".join(words[number + 1 : number + 2])
            if "/" in value or (value and Path(value).expanduser().is_dir()):
                return Path(value).expanduser(), [*words[:number], *words[number + (1 if sign else 2) :]]
    return None, [*words]


def _pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """Options and their values; a flag has the next word, which nobody asks for."""
    pairs = zip(words, [*words[1:], ""], strict=False)  # the last word has none after it
    split = [(*word.partition("="), after) for word, after in pairs]
    return [(option, value if sign else after) for option, sign, value, after in split if option.startswith("-")]


def _value(words: Sequence[str], option: str, default: Any) -> Any:
    """What the words say of an option, with or without `init_args` in it, and the configs among them; the last one
    counts. Null is `null`."""
    first, *keys = option.removeprefix("--").split(".")
    inner = ["init_args", *keys] if keys and first in ("data", "model") else keys or ["class_path"] * (first == "model")
    found = default
    for one, value in _pairs(expand_configs([*words])):
        if one in CONFIG_OPTIONS:
            content: Any = yaml.safe_load(value)
            for key in (first, *inner):
                content = content[key] if isinstance(content, dict) and key in content else MISSING
            found = found if content is MISSING else "null" if content is None else content
        elif one.replace(".init_args.", ".") == option:
            found = value
    return found


def _says(words: Sequence[str], option: str) -> bool:
    return _value(words, option, MISSING) is not MISSING


def _configs(words: Sequence[str]) -> list[str]:
    return [word for option, value in _pairs(words) if option in CONFIG_OPTIONS for word in ("--config", value)]


def _of(words: Sequence[str], prefix: str) -> list[str]:
    """Options with this prefix, each with its value."""
    return [word for option, value in _pairs(words) if option.startswith(prefix) for word in (option, value)]
