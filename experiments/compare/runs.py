"""Finished runs as `compare` needs them, from run directories, offline W&B folders or the W&B server."""

from __future__ import annotations

import csv
import glob
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from common.ops.array import Array
from common.training.files import plain_yaml, read_summary
from experiments.runs.wandb_api import wandb_api

SERVER = "wandb:"  # how a source on the W&B server begins
MOST_BYTES = 2**31  # of the confusion matrices in a file
BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError, zipfile.BadZipFile)
IMAGES = re.compile(r"test_(.+)_images\.npz")


@dataclass
class Images:
    """What `weakseg test` found image by image: `names` (N,), `confusion` (N, K, K), rows truth, columns prediction."""

    names: Array
    confusion: Array
    evaluation: str = ""  # how it was predicted, JSON
    others: dict[str, Array] = field(default_factory=dict)  # the same of each other network, by its name


@dataclass
class Finished:
    """A run: where it was read, its resolved config, its `summary.json`, its curve and its test images."""

    source: str
    config: dict[str, Any]
    summary: dict[str, Any]
    curve: list[tuple[int, float]]  # optimizer steps done, score
    images: dict[str, Images] = field(default_factory=dict)  # by what was tested: best, last, best+mrf, ...
    folder: Path | None = None  # the run directory, if its checkpoints are at hand
    logged: dict[str, float] = field(default_factory=dict)  # last value of each `train/...`, of run directories

    @property
    def seed(self) -> int:
        return int(self.config["seed_everything"])

    @property
    def method(self) -> str:
        return str(self.config["model"]["class_path"]).rsplit(".", 1)[-1]

    @property
    def data(self) -> str:
        return str(self.config["data"]["class_path"]).rsplit(".", 1)[-1]

    @property
    def score(self) -> str:
        """The metric on val by which `best.ckpt` was chosen: `val/miou`, or of maps `val/cam_miou`."""
        return score_of(self.summary)

    def test(self, which: str, metric: str = "miou") -> float | None:
        """mIoU on test in per cent, or another of the metrics; None if it was not measured."""
        value: float | None = self.summary.get("test", {}).get(which, {}).get(f"test/{metric}")
        return value


def score_of(summary: Mapping[str, Any]) -> str:
    """A run's score by its summary; older ones do not name it."""
    return str(summary.get("score", "val/miou"))


def read_runs(sources: Iterable[str]) -> tuple[list[Finished], list[str]]:
    """All finished runs of the sources, and a line for each run that was left out.

    Args:
        sources: run directories, folders that are searched for them, offline W&B folders or files, patterns of these,
            or `wandb:ENTITY/PROJECT[/GROUP]`.

    Raises:
        FileNotFoundError: a source that is not there, or has no run on the server.
    """
    found: dict[str, Finished] = {}
    left_out: list[str] = []
    for source in sources:
        runs, unfinished = (from_server(source), []) if source.startswith(SERVER) else from_disk(source)
        if not (runs or unfinished):
            nothing = f"there is no run in {source}: give run directories, or a folder that holds some"
            if not Path(source).exists():
                raise FileNotFoundError(nothing)
            unfinished = [nothing]  # no mistake: `runs/*`, written out by the shell, names the logs of runs too
        found |= {run.source: run for run in runs}
        left_out += unfinished
    return list(found.values()), left_out


def from_disk(source: str) -> tuple[list[Finished], list[str]]:
    """The finished runs of a path or pattern, and a line for each of the others."""
    from experiments.compare.protocol import protocol, settings  # which reads what is defined here

    found: list[Finished] = []
    unfinished: list[str] = []
    for path in [Path(source)] if Path(source).exists() else [Path(path) for path in sorted(glob.glob(source))]:
        folders = list(run_folders(path))
        for folder in folders:
            if (folder / "summary.json").exists():
                try:
                    run = from_folder(folder)
                    protocol(run), settings(run)  # what makes columns and rows of it
                    found.append(run)
                except BROKEN as error:
                    told = " ".join(f"{type(error).__name__}: {error}".split())
                    unfinished.append(f"{folder}: cannot be read ({told[:200]})")
            else:
                unfinished.append(f"{folder}: not finished (`weakseg fit ... --resume auto` continues it)")
        for run in [] if folders else from_offline(path):
            if "steps" in run.summary:
                found.append(run)
            else:
                unfinished.append(f"{run.source}: not finished")
    return found, unfinished


def run_folders(path: Path) -> Iterator[Path]:
    """Run directories in a folder, the folder itself included, sorted; what lies in a run's own folder is not one."""
    for folder, below, files in os.walk(path):
        below.sort()
        if "config.yaml" in files and {"metrics.csv", "summary.json"} & {*files}:
            below.clear()
            yield Path(folder)
        else:
            below[:] = [name for name in below if name not in ("wandb", "checkpoints")]


def from_folder(folder: Path) -> Finished:
    """A run directory that has its `summary.json`.

    Raises:
        OSError, ValueError, TypeError, ...: (`BROKEN`) a file in it is missing, or not what a run writes.
    """
    images = {IMAGES.fullmatch(path.name)[1]: path for path in sorted(folder.glob("test_*_images.npz"))}  # type: ignore[index]
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    # A later row overwrites an earlier one.
    logged = {key: float(value) for row in rows for key, value in row.items() if value and key.startswith("train/")}
    config = plain_yaml((folder / "config.yaml").read_text())
    summary = read_summary(folder)
    score = score_of(summary)
    curve = [(int(row["step"]) + 1, float(row[score])) for row in rows if row.get(score)]
    _ = config["seed_everything"] + 0, config["trainer"].keys()
    for part, options in (("model", ("network", "inference", "postprocess")), ("data", ("supervision",))):
        _ = config[part]["class_path"], [config[part]["init_args"][option].keys() for option in options]
    for part in ("last", "best"):
        _ = summary["steps"] + 0, summary[part].keys()
    return Finished(
        str(folder),
        config,
        summary,
        curve,
        {which: read_images(path) for which, path in images.items()},
        folder,
        {key: value for key, value in logged.items() if value == value},  # a term that was never computed is NaN
    )


def read_images(path: Path) -> Images:
    start = "confusion_"
    with zipfile.ZipFile(path) as packed:
        if sum(one.file_size for one in packed.infolist()) > MOST_BYTES:
            raise ValueError(f"{path} unpacks to more than {MOST_BYTES >> 30} GiB")
    with np.load(path) as content:
        others = {name.removeprefix(start): content[name] for name in content.files if name.startswith(start)}
        told = str(content["evaluation"])
        if not isinstance(json.loads(told), dict):
            raise ValueError(f"{path} does not say how images were predicted")
        return Images(content["names"], content["confusion"], told, others)


def from_offline(path: Path) -> list[Finished]:
    """Runs in offline W&B folders. A run that was resumed, or tested, has several: they are joined by its id."""
    files = [path] if path.suffix == ".wandb" else sorted(path.rglob("*.wandb"))
    parts: dict[str, list[tuple[Path, list[dict[str, Any]]]]] = defaultdict(list)
    for file in files:  # folders are named by time
        records = read_records(file)
        run = next((record["run"] for record in records if record["type"] == "run"), None)
        if run:
            parts[run["run_id"]].append((file, records))
    return [join_parts(found) for found in parts.values()]


def read_records(file: Path) -> list[dict[str, Any]]:
    """What an offline W&B file holds, read by W&B's own command, which needs neither an account nor a network."""
    words = [sys.executable, "-m", "wandb", "leet", "inspect", str(file), "--json"]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
        raise ValueError(f"W&B cannot read {file} ({reason}): it needs wandb 0.30 or newer")
    return [json.loads(line) for line in done.stdout.splitlines()]


def join_parts(parts: list[tuple[Path, list[dict[str, Any]]]]) -> Finished:
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    curve: dict[int, float] = {}
    images: dict[str, Images] = {}
    score = "val/miou"
    for record in (record for _, records in parts for record in records if record["type"] == "summary"):
        score = str(record["summary"].get("update", {}).get("score", score))
    for file, records in parts:
        for record in records:
            content = record.get(record["type"], {})
            if record["type"] == "config":
                config |= content.get("update", {})
            elif record["type"] == "summary":
                summary |= content.get("update", {})
            elif record["type"] == "history" and score in content["item"]:
                curve[int(content["item"]["_step"]) + 1] = float(content["item"][score])  # repeated steps are equal
        images |= images_below(file.parent / "files")
    # The run directory it was written into, if it is still around it.
    folder = parts[0][0].parent.parent.parent
    here = folder if (folder / "checkpoints").is_dir() else None
    return Finished(str(parts[0][0].parent), config, summary, sorted(curve.items()), images, here)


def images_below(folder: Path) -> dict[str, Images]:
    return {match[1]: read_images(path) for path in sorted(folder.glob("*.npz")) if (match := IMAGES.match(path.name))}


def from_server(source: str) -> list[Finished]:
    """Runs on the W&B server, of a whole project or one of its groups.

    Raises:
        ModuleNotFoundError, ValueError: there is no W&B, or it refuses.
    """
    entity, project, *group = [*source.removeprefix(SERVER).split("/", 2), ""]
    if not project:
        raise ValueError(f"{source} names no project: give {SERVER}ENTITY/PROJECT, perhaps with /GROUP")
    filters = {"group": group[0]} if group[0] else {}
    with wandb_api(source, "compare run directories") as api:
        return [from_api(run) for run in api.runs(f"{entity}/{project}", filters=filters) if is_ours(run)]


def is_ours(run: Any) -> bool:
    """Whether a run of the server is one of `weakseg fit`, and finished."""
    return "model" in run.config and "steps" in run.summary


def from_api(run: Any) -> Finished:
    """One run of `wandb.Api().runs`."""
    score = str(run.summary.get("score", "val/miou"))
    rows = run.scan_history(keys=["_step", score])
    curve = sorted({int(row["_step"]) + 1: float(row[score]) for row in rows}.items())
    with tempfile.TemporaryDirectory() as folder:
        for file in run.files():
            if IMAGES.fullmatch(file.name):
                file.download(root=folder, replace=True)
        images = images_below(Path(folder))
    return Finished(SERVER + "/".join(run.path), plain(run.config), plain(run.summary), curve, images)


def plain(content: Any) -> Any:
    """W&B's own mappings as dicts."""
    if isinstance(content, Mapping) or hasattr(content, "keys"):
        return {key: plain(content[key]) for key in content.keys()}  # noqa: SIM118 (some are no mappings)
    return content
