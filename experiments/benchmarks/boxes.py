"""What boxes are worth with depth: proposals by votes, by GrabCut and by filled boxes, and networks that learn of them.

    python -m experiments.benchmarks.boxes rooms --output runs/boxes
    python -m experiments.benchmarks.boxes sun3d --output runs/boxes --root data/sun3d_tables --weights FILE
    python -m experiments.benchmarks.boxes page --output runs/boxes

`rooms`: synthetic rooms with the depth noise of a sensor; `sun3d`: real frames, in the layout of `RGBD`; `page`: what
was measured so far, in Markdown, into `boxes.md`. Each result is a row of `boxes.csv` as soon as it is there, and what
has a row is not done again; rounds and runs that were stopped go on. `--dry` says what is left, and about how long it
takes.
Boxes are those of the labelled objects in a share of the training views, drawn by the seed; proposals are compared with
the masks of training views, over all pixels, 255 counted as background; networks with those of test, `last`.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from common.model.metrics import SegmentationMetrics
from common.ops.batch import IGNORE
from common.training.files import write_text
from common.training.memory import reset_peak, resident_gb
from datamodules.annotation import people_boxes
from datamodules.sets.rooms import Rooms
from datamodules.supervision import Supervision
from experiments.benchmarks.measure import machine, spread
from experiments.cli import main as weakseg
from experiments.cli.doctor import load_data
from experiments.compare.columns import markdown
from experiments.runs.propose import How, Round, check_data

SHARES = (0.05, 0.1, 0.25)
WAYS: dict[str, list[str]] = {  # of `weakseg propose`
    "votes": [],
    "votes, veto": ["--vote", "veto"],
    "votes, GrabCut": ["--refine", "grabcut"],
    "votes, voxels": ["--cloud", "voxel"],
    "votes, no visibility": ["--through"],
}
TRAINED = ("votes", "votes, no visibility")  # of them, networks learn
ROUNDS = 3
COLUMNS = (
    *(
        "set",
        "what",
        "share",
        "seed",
        "way",
        "round",
        "unboxed",
        "boxed",
        "unlabeled",
        "last",
        "best",
        "iou",
        "minutes",
    ),
    *("mebibytes", "views"),
)
# Core-minutes of one job: 400 times a step that was timed on one core, and some for the rest. Rows take their place.
ABOUT = {("rooms", "proposals"): 0.2, ("rooms", "network"): 2.0, ("sun3d", "proposals"): 0.3, ("sun3d", "network"): 6.5}
Row = dict[str, Any]


class Job(NamedTuple):
    """Something to measure: the first columns of its row, and what finds the others."""

    key: Row
    run: Callable[[], Row]


class Bed(NamedTuple):
    """A data set to measure on: its name, its options, and those of the networks that learn from it."""

    name: str
    folder: Path
    data: list[str]
    fit: list[str]
    steps: int
    shares: Sequence[float]
    seeds: Sequence[int]


def rooms(options: argparse.Namespace) -> Bed:
    data = ["--data.train", options.rooms, "--data.around", options.around]
    fit = ["--config", "rooms_boxes", *data, "--data.num_workers", 0]
    place = options.output / "rooms"
    return Bed(
        "rooms", place, words(fit), [], options.steps or 400, options.shares or SHARES, options.seeds or (0, 1, 2)
    )


def sun3d(options: argparse.Namespace) -> Bed:
    """DeepLabV3+ on a pretrained EfficientNet-Lite0, at half the frames' size."""
    if options.root is None:
        raise ValueError("sun3d needs --root, the folder with the frames")
    data = ["--config", "base", "--config", "sun3d_tables", "--config", "supervised", "--data.root", options.root]
    data += ["--data.size", "[120, 160]", "--data.crop", "[96, 128]", "--data.num_workers", 0]
    fit: list[Any] = ["--model.network.arch", "DeepLabV3Plus", "--model.network.encoder", "tu-tf_efficientnet_lite0"]
    fit += ["--model.network.weights", options.weights or "in1k", "--model.encoder_lr_scale", 0.3]
    fit += ["--model.optimizer", "{class_path: torch.optim.AdamW, init_args: {lr: 0.001, weight_decay: 0.0001}}"]
    place, steps = options.output / "sun3d", options.steps or 400
    return Bed("sun3d", place, words(data), words(fit), steps, options.shares or (1 / 3,), options.seeds or (0, 1))


def words(given: Sequence[Any]) -> list[str]:
    return [str(word) for word in given]


def command(*given: Any) -> None:
    """Run a command; end with its error."""
    if status := weakseg(words(given)):
        sys.exit(status)


def supervision(share: float, inside: str) -> list[str]:
    return ["--data.supervision", f"{{kind: boxes, real: true, inside: {inside}, fraction: {share:.4f}}}"]


# Jobs ----------------------------------------------------------------------------------------------------------------


def by_itself(bed: Bed, share: float, seed: int, inside: str) -> Row:
    """mIoU of boxed views, each by its own boxes as `supervision.inside` says."""
    data = load_data([*bed.data, *supervision(share, inside), "--seed_everything", str(seed)])
    metric, boxed = SegmentationMetrics(data.num_classes), data.lists()[0]
    for name in boxed:
        image, mask = data.image(name), data.mask(name)
        assert mask is not None
        drawn = people_boxes(data.boxes(name), mask.shape, mask.shape, data, image)
        made = torch.from_numpy(drawn.astype(np.int64))[None]
        metric.update(made.masked_fill(made == IGNORE, 0), torch.from_numpy(mask.astype(np.int64))[None])
    return {"boxed": round(float(metric.compute()["miou"]), 4), "views": len(boxed)}


def proposals(bed: Bed, share: float, seed: int, way: str, output: Path, run: Path | None) -> Row:
    """Make a round, unless it is there; what it says of itself."""
    if not (output / "pseudo.json").exists():
        start = ["--run", run] if run else [*bed.data, *supervision(share, "filled"), "--seed_everything", seed]
        command("propose", *start, *WAYS[way], "--output", output)
    about = json.loads((output / "pseudo.json").read_text())
    return {
        "unboxed": about.get("miou_all_unboxed"),
        "boxed": about.get("miou_all_boxed"),
        "unlabeled": about["unlabeled"],
        "views": len(about["boxed"]),
    }


def network(bed: Bed, seed: int, how: Sequence[Any], run: Path, before: Path | None = None) -> Row:
    """Train and test, unless that is done; with a run before it for a third of the steps, from its weights."""
    steps = bed.steps // 3 if before else bed.steps
    length = ["--trainer.max_steps", steps, "--trainer.val_check_interval", max(1, steps // 4)]
    length += ["--trainer.enable_progress_bar", "false", "--seed_everything", seed, "--run_dir", run]
    if (run / "checkpoints" / "last.ckpt").exists() or not before:
        length += ["--resume", "auto"]
    else:
        length += ["--init_from", before / "checkpoints" / "best.ckpt", *(["--overwrite"] if run.exists() else [])]
    command("fit", *bed.data, *how, *bed.fit, *length)
    for which in ("last", "best"):
        command("test", "--run", run, "--which", which)
    test = json.loads((run / "summary.json").read_text())["test"]
    found = {which: round(test[which]["test/miou"], 4) for which in ("last", "best")}
    return found | {"iou": test["last"].get("test/iou/table")}


def large_room(views: int = 50) -> Row:
    """Core-minutes and MiB of a round over one room of many views, above those of its data, in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure_room, views).result()


def measure_room(views: int) -> Row:
    boxes = Supervision("boxes", real=True, fraction=0.25, inside="filled")
    data = Rooms(1, 1, 1, views, supervision=boxes)
    boxed = data.lists()[0]
    for name in data.names("train"):
        data.image(name)  # rendered
    before, since = resident_gb("VmRSS"), time.process_time()
    reset_peak()
    with tempfile.TemporaryDirectory() as folder:
        about = {"classes": [*data.class_names]}
        Round(check_data(data), boxed, How()).write(Path(folder) / "made", False, about)
    seconds = time.process_time() - since
    return {
        "minutes": round(seconds / 60, 4),
        "mebibytes": round(1024 * (resident_gb("VmHWM") - before)),
        "views": views,
    }


def jobs(bed: Bed) -> Iterator[Job]:
    """In an order in which each finds what it goes on from."""

    def key(what: str, way: str, number: int | str = "", share: float | str = "", seed: int | str = "") -> Row:
        shown = f"{share:.4g}" if isinstance(share, float) else share
        return {"set": bed.name, "what": what, "share": shown, "seed": seed, "way": way, "round": number}

    if bed.name == "rooms":
        yield Job(key("room of 50 views", "votes"), large_room)
    for seed in bed.seeds:
        run = bed.folder / f"all-seed{seed}"
        yield Job(key("network", "all masks", seed=seed), partial(network, bed, seed, ["--config", "all_labels"], run))
        for share in bed.shares:
            place = bed.folder / f"{share:.4g}-seed{seed}"
            where: dict[str, Any] = {"share": share, "seed": seed}
            for inside, way in (("filled", "boxes filled"), ("grabcut", "GrabCut in boxes")):
                yield Job(key("proposals", way, **where), partial(by_itself, bed, share, seed, inside))
                how = supervision(share, inside)
                yield Job(key("network", way, **where), partial(network, bed, seed, how, place / inside))
            how = [*supervision(share, "filled"), "--config", "box"]
            yield Job(key("network", "Box", **where), partial(network, bed, seed, how, place / "box"))
            for way in WAYS:
                yield from rounds(bed, share, seed, way, place / way.replace(", ", "_").replace(" ", "_"), key)


def rounds(bed: Bed, share: float, seed: int, way: str, place: Path, key: Callable[..., Row]) -> Iterator[Job]:
    run: Path | None = None
    for number in range(ROUNDS if way == "votes" else 1):
        made, after = place / f"proposals{number}", place / f"run{number}"
        where: dict[str, Any] = {"share": share, "seed": seed}
        yield Job(key("proposals", way, number, **where), partial(proposals, bed, share, seed, way, made, run))
        if way in TRAINED:
            how = ["--config", "all_labels", "--config", "guided_3d", "--data.pseudo_masks", made]
            yield Job(key("network", way, number, **where), partial(network, bed, seed, how, after, run))
        run = after


# Rows ----------------------------------------------------------------------------------------------------------------


def read_rows(file: Path) -> list[Row]:
    if not file.exists():
        return []
    with file.open(newline="") as opened:
        return [*csv.DictReader(opened)]


def append(file: Path, row: Row) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    new = not file.exists()
    with file.open("a", newline="") as opened:
        writer = csv.DictWriter(opened, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def of(row: Row) -> tuple[str, ...]:
    """What tells a row from others."""
    return tuple(str(row[column]) for column in COLUMNS[:6])


def minutes(left: Sequence[Job], rows: Sequence[Row]) -> float:
    """About how many core-minutes jobs take: the mean of rows of their kind, else `ABOUT`."""

    def kind(key: Row) -> tuple[str, str, bool]:
        return str(key["set"]), str(key["what"]), str(key["round"]) not in ("", "0")

    total = 0.0
    for job in left:
        name, what, later = kind(job.key)
        known = [float(row["minutes"]) for row in rows if kind(row) == (name, what, later)]
        guess = ABOUT.get((name, what), 0.1) / (3 if later and what == "network" else 1)
        total += float(np.mean(known)) if known else guess
    return total


def work(bed: Bed, file: Path, dry: bool, kinds: Sequence[str]) -> None:
    rows = read_rows(file)
    done = {of(row) for row in rows}
    left = [job for job in jobs(bed) if of(job.key) not in done and job.key["what"] in kinds]
    print(f"{bed.name}: {len(left)} results to measure, about {minutes(left, rows):.0f} core-minutes", flush=True)
    for number, job in enumerate(() if dry else left):
        since = time.process_time()
        found = job.run()
        row = {**job.key, "minutes": round((time.process_time() - since) / 60, 4), **found}
        append(file, row)
        rows.append({name: str(value) for name, value in row.items()})
        rest = left[number + 1 :]
        ahead = f"{len(rest)} left, about {minutes(rest, rows):.0f} core-minutes"
        print(f"{', '.join(filter(None, of(row)))}: {found}; {ahead}", flush=True)


# Page ----------------------------------------------------------------------------------------------------------------


def cell(rows: Sequence[Row], column: str, factor: float = 1) -> str:
    return spread([factor * float(row[column]) for row in rows if row[column]])


def page(rows: Sequence[Row]) -> str:
    told = [machine()]
    for name, title in (("rooms", "Synthetic rooms"), ("sun3d", "SUN3D tables")):
        for what, heads in (
            ("proposals", {"unboxed": "views without boxes", "boxed": "views with boxes", "unlabeled": "no label, %"}),
            ("network", {"last": "test mIoU, last", "best": "test mIoU, best", "iou": "IoU of table"}),
        ):
            found: dict[tuple[str, str, str], list[Row]] = {}
            for row in rows:
                if (row["set"], row["what"]) == (name, what):
                    found.setdefault((row["share"], row["way"], row["round"]), []).append(row)
            if found:
                cells = [
                    [f"{float(share):.0%}" if share else "", way, number, str(len(group)),
                     *(cell(group, column, 100 if column == "unlabeled" else 1) for column in heads)]
                    for (share, way, number), group in sorted(found.items())
                ]  # fmt: skip
                head = ["views with boxes", "labels by", "round", "seeds", *heads.values()]
                told += [f"### {title}: {what}", markdown(head, cells)]
    for row in rows:
        if row["what"] == "room of 50 views":
            seconds = f"{60 * float(row['minutes']):.1f} s of one core, {row['mebibytes']} MiB above its data"
            told.append(f"A round over {row['views']} views of a room, a quarter of them with boxes: {seconds}.")
    return "\n\n".join(told) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bed", choices=("rooms", "sun3d", "page"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dry", action="store_true", help="only say what is left")
    parser.add_argument("--what", nargs="+", default=["room of 50 views", "proposals", "network"])
    parser.add_argument("--shares", type=float, nargs="+", help="of the training views with boxes")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--steps", type=int, help="of a network (400)")
    parser.add_argument("--rooms", type=int, default=4, help="for training")
    parser.add_argument("--around", type=int, default=20, help="views of a room")
    parser.add_argument("--root", type=Path, help="folder of the real frames")
    parser.add_argument("--weights", type=Path, help="file of the pretrained encoder of sun3d")
    options = parser.parse_args()
    file = options.output / "boxes.csv"
    if options.bed != "page":
        work({"rooms": rooms, "sun3d": sun3d}[options.bed](options), file, options.dry, options.what)
    if found := read_rows(file):
        write_text(options.output / "boxes.md", page(found))


if __name__ == "__main__":
    main()
