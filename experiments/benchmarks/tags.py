"""From image tags to segmentation on VOC: maps, labels made of them, networks that learn from these, and the bound.

    python -m experiments.benchmarks.tags --root data/VOC2012_val --weights FILE --output runs/tags --jobs 2
    python -m experiments.benchmarks.tags --output runs/tags --page

Maps are compared with the masks of val and of as many training images (with the tags of each image, at their best
threshold); labels, made at the threshold that was best on val, with those of all training images; networks with those
of val and test, `last`. One encoder; maps are trained for 250 steps unless a name says otherwise, networks for 1000.
What is behind `--` goes to every training.
All is written below `--output`; a step that is done is not done again, and one that was stopped goes on. `tags.csv` and
`tags.md` are made of what is there and of what `--recorded` has, which is not measured again.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from common.training.files import write_csv, write_text
from experiments.benchmarks.cam_quality import EVALUATED, NAMES
from experiments.benchmarks.chain import Step, Words, work
from experiments.benchmarks.measure import spread
from experiments.compare.columns import markdown
from experiments.studies.spec import folder_name

GROUPS = ["--data.batch_size", "5", "--model.optimizer.lr", "0.003"]  # of three: 15 images where others take 16
MAPS: dict[str, list[str]] = {
    "CAM": ["--config", "cam"],
    "CAM, 500 steps": ["--config", "cam", "--trainer.max_steps", "500", "--trainer.val_check_interval", "500"],
    "CPN": ["--config", "cpn"],
    "CPN without TCP": ["--config", "cpn", "--model.tcp_weight", "0"],
    "CPN without CPCR": ["--config", "cpn", "--model.cpcr_weight", "0"],
    "CPN, PCM alone": ["--config", "cpn", "--model.prcm", "false"],
    "Group-WSSS": ["--config", "group_wsss", *GROUPS],
    "Group-WSSS, groups of one": ["--config", "group_wsss", "--model.group", "1"],
    "Group-WSSS without dropout": ["--config", "group_wsss", *GROUPS, "--model.drop_rate", "null"],
}
LABELS = ("none", "pamr", "walk")  # --refine
OF_MAPS = {"none": EVALUATED, "pamr": "PAMR", "walk": "walk"}  # their rows of cam_quality
AFFINITY = "CAM, learned affinity"
MEASURED: dict[str, Sequence[str]] = {"CAM": NAMES, "CPN": (EVALUATED, "PAMR"), "Group-WSSS": (EVALUATED, "PAMR")}
LEARNED: dict[str, tuple[str, ...]] = {  # by networks
    "CAM": LABELS,
    AFFINITY: ("walk",),
    "CPN": ("pamr",),
    "Group-WSSS": ("pamr",),
}
NETWORK = [
    *("--data.size", "256", "--data.crop", "[192, 192]", "--data.batch_size", "8"),
    *("--trainer.max_steps", "1000", "--trainer.val_check_interval", "1000"),
    *("--model.network.arch", "DeepLabV3Plus", "--model.network.encoder", "tu-tf_efficientnet_lite0"),
    *("--model.encoder_lr_scale", "0.3"),
    *("--model.optimizer", "{class_path: torch.optim.AdamW, init_args: {lr: 0.0007, weight_decay: 0.0001}}"),
]
PLAIN = ["--model.affinity_weight", "0", "--model.reassign_weight", "0"]
# AFA's labels; the classifier learns alone for 250 steps, as many as CAM's (of AFA's run a tenth). Two of the four
# scales, which halves the cost [ours].
LONGER = [
    *("--trainer.max_steps", "2000", "--trainer.val_check_interval", "1000", "--model.labels", "two_pass"),
    *("--model.scales", "[1.0, 0.5]", "--model.start", "0.125", "--model.reassign_start", "0.25"),
]
AALR = {
    "AA&LR, cross entropy alone": PLAIN,
    "AA&LR, affinity": ["--model.reassign_weight", "0"],
    "AA&LR, reassigning": ["--model.affinity_weight", "0"],
    "AA&LR": [],
    "AA&LR, no adapting": ["--model.adapt", "none"],
    "AA&LR for longer, cross entropy alone": [*LONGER, *PLAIN],
    "AA&LR for longer": LONGER,
}
BOUND = "all masks"
COLUMNS = ("what", "labels", "seed", "score", "percent", "threshold", "own", "seconds", "devices", "commit")
Row = dict[str, Any]
Key = tuple[str, str, int, str]  # what, labels, seed, score


class Bed:
    """What the steps of one seed need to know."""

    def __init__(self, options: argparse.Namespace, seed: int, recorded: Collection[Key] = ()) -> None:
        self.options, self.seed, self.place = options, seed, options.output / f"seed{seed}"
        self.recorded = recorded

    def missing(self, what: str, labels: str, score: str) -> bool:
        return (what, labels, self.seed, score) not in self.recorded

    def run(self, name: str) -> Path:
        return Path(self.place / folder_name(name))

    def fit(self, name: str, *how: str | Path, after: Path | None = None) -> Words:
        """Go on with a run, or start it, perhaps from a checkpoint of another one."""
        options, run = self.options, self.run(name)
        begun = (run / "checkpoints" / "last.ckpt").exists()
        anew = ["--overwrite"] if run.exists() else []
        start = ["--init_from", after, *anew] if after and not begun else ["--resume", "auto"]
        data = ["--data.root", options.root, "--model.network.weights", options.weights]
        words = [*how, *data, "--seed_everything", str(self.seed), "--run_dir", run, *start]
        return weakseg("fit", *words, "--trainer.enable_progress_bar", "false", *options.more)

    def best(self, name: str, refine: str) -> Row:
        """The row of the maps on val."""
        rows: list[Row] = json.loads((self.run(name) / "quality_val.json").read_text())
        return {row["map"]: row for row in rows}[OF_MAPS[refine]]

    # Steps -----------------------------------------------------------------------------------------------------------

    def maps(self, name: str, how: Sequence[str | Path], after: Path | None = None, needs: Sequence[str] = ()) -> Step:
        run, fit = self.run(name), ("--config", "voc_tags", *how)
        return Step(f"{self.seed}: {name}", lambda: [self.fit(name, *fit, after=after)], run / "summary.json", needs,
                    self.missing(name, scored(name), "maps on val"))  # fmt: skip

    def quality(self, name: str, split: str) -> Step:
        run, key, (*_, last) = self.run(name), f"{self.seed}: {name}", MEASURED[name]
        made = run / f"quality_{split}.json"
        words: Words = ["-m", "experiments.benchmarks.cam_quality", run, "--split", split, "--json", made]
        words += ["--images", str(self.options.images), "--maps", *MEASURED[name]]
        return Step(f"{key}, {split}", lambda: [words], made, [key], self.missing(name, last, f"maps on {split}"))

    def labels(self, name: str, refine: str) -> Step:
        output, key = self.labels_of(name, refine), f"{self.seed}: {name}"
        missing = self.missing(name, OF_MAPS[refine], "labels of train")
        need = key if OF_MAPS[refine] == scored(name) else f"{key}, val"
        return Step(f"{key}, {refine}", lambda: [self.pseudo(name, refine, output)], output / "pseudo.json",
                    [need], missing)  # fmt: skip

    def labels_of(self, name: str, refine: str) -> Path:
        return self.run(f"{name}, labels by {refine}")

    def pseudo(self, name: str, refine: str, output: Path, *more: str) -> Words:
        how: Words = ["--refine", refine, "--output", output, *more]
        if OF_MAPS[refine] != scored(name):  # of the maps that validation scores the run knows the best one
            how += ["--threshold", str(min(max(self.best(name, refine)["threshold"], 0.01), 0.99))]
        return weakseg("pseudo", "--run", self.run(name), *how)

    def network(self, what: str, refine: str, *how: str | Path, needs: Sequence[str] = ()) -> Step:
        name = f"{what}, learned by {refine}" if refine else what
        run, regime = self.run(name), ("--config", "base", "--config", "voc_local", "--config", "supervised")

        def commands() -> list[Words]:
            fit = [] if read(run / "summary.json") else [self.fit(name, *regime, *NETWORK, *how)]
            return [*fit, weakseg("test", "--run", run, "--which", "last")]

        missing = self.missing(what, OF_MAPS.get(refine, ""), "network on test")
        return Step(f"{self.seed}: {name}", commands, run / "test_last_images.npz", needs, missing)

    def learned(self, name: str, refine: str) -> Step:
        labels = self.labels_of(name, refine)
        return self.network(name, refine, "--data.pseudo_masks", labels, needs=[f"{self.seed}: {name}, {refine}"])

    def steps(self) -> Iterator[Step]:
        """The longest chains first."""
        for name in ("CAM", "CPN", "Group-WSSS"):
            yield self.maps(name, MAPS[name])
        seeds, cam = self.run("seeds"), self.run("CAM") / "checkpoints" / "best.ckpt"
        key = f"{self.seed}: seeds"
        yield Step(key, lambda: [self.pseudo("CAM", "none", seeds, "--seeds")], seeds / "pseudo.json",
                   [f"{self.seed}: CAM"], wanted=False)  # fmt: skip
        affinity = ("--config", "all_labels", "--config", "cam", "--model.affinity", "true")
        yield self.maps(AFFINITY, (*affinity, "--data.pseudo_masks", seeds), cam, [key])
        for name in MEASURED:
            yield self.quality(name, "val")
        for name, ways in LEARNED.items():
            yield from (self.labels(name, refine) for refine in ways)
        for name, ways in LEARNED.items():
            yield from (self.learned(name, refine) for refine in ways)
        for name, how in AALR.items():
            yield self.network(name, "", "--config", "tags", "--config", "aalr", *how)
        yield self.network(BOUND, "")
        for name in (name for name in MAPS if name not in LEARNED):
            yield self.maps(name, MAPS[name])
        for name in MEASURED:
            yield self.quality(name, "train")
        for name in ("CPN", "Group-WSSS"):
            yield self.labels(name, "none")

    # Results ---------------------------------------------------------------------------------------------------------

    def rows(self) -> Iterator[Row]:
        for name in [*MAPS, AFFINITY]:
            if not (about := read(self.run(name) / "summary.json")):
                continue
            told = {"seed": self.seed, "devices": about["devices"], "commit": about["commit"]}
            trained = {"what": name, **told, "seconds": about["seconds"]}
            tags = {"score": "tags on val, mAP", "percent": about["last"]["val/map"]}
            yield {**trained, "labels": scored(name), **tags}
            maps = {"percent": about["last"]["val/cam_miou"], "threshold": about["last"]["val/cam_threshold"]}
            yield {**trained, "labels": scored(name), "score": "maps on val", **maps}
            for split in ("val", "train"):
                for row in read(self.run(name) / f"quality_{split}.json") or ():
                    found = {"score": f"maps on {split}", "percent": row["miou"]}
                    found |= {key: row[key] for key in ("threshold", "own", "seconds")}
                    if (row["map"], split) != (scored(name), "val"):
                        yield {"what": name, "labels": row["map"], **told, **found}
            for refine in LABELS:
                if made := read(self.labels_of(name, refine) / "pseudo.json"):
                    found = {"score": "labels of train", "percent": made["miou_train"], "threshold": made["threshold"]}
                    yield {"what": name, "labels": OF_MAPS[refine], **told, **found}
                yield from self.scores(f"{name}, learned by {refine}", name, OF_MAPS[refine])
        for name in (BOUND, *AALR):
            yield from self.scores(name, name, "")

    def scores(self, run: str, what: str, labels: str) -> Iterator[Row]:
        if not (about := read(self.run(run) / "summary.json")):
            return
        told = {"what": what, "labels": labels, "seed": self.seed, "devices": about["devices"]}
        told |= {"seconds": about["seconds"], "commit": about["commit"]}
        yield {**told, "score": "network on val", "percent": about["last"]["val/miou"]}
        if tested := about.get("test", {}).get("last"):
            yield {**told, "score": "network on test", "percent": tested["test/miou"]}


def scored(name: str) -> str:
    """The maps that validation scores."""
    return "walk" if name == AFFINITY else EVALUATED


def cell(row: Row) -> Key:
    return row["what"], row["labels"], row["seed"], row["score"]


def read_recorded(file: Path) -> list[Row]:
    with file.open(newline="") as opened:
        return [{**row, "seed": int(row["seed"]), "percent": float(row["percent"])} for row in csv.DictReader(opened)]


def together(rows: Sequence[Row], recorded: Sequence[Row]) -> list[Row]:
    """What was measured, and what was recorded of the rest; by seed, in the order of this file."""
    measured, names = {cell(row) for row in rows}, [*MAPS, AFFINITY, BOUND, *AALR]
    both = [*rows, *(row for row in recorded if cell(row) not in measured)]
    return sorted(both, key=lambda row: (row["seed"], names.index(row["what"])))


def weakseg(*words: str | Path) -> Words:
    return ["-m", "experiments.cli", *words]


def read(file: Path) -> Any:
    return json.loads(file.read_text()) if file.exists() else {}


def page(rows: Sequence[Row]) -> str:
    scores = [*dict.fromkeys(row["score"] for row in rows)]
    table = []
    for key in dict.fromkeys((row["what"], row["labels"]) for row in rows):
        mine = [row for row in rows if (row["what"], row["labels"]) == key]
        found = [[row["percent"] for row in mine if row["score"] == score] for score in scores]
        seeds = len({row["seed"] for row in mine})
        table.append([*key, str(seeds), *map(spread, found)])
    return markdown(["what", "labels", "seeds", *scores], table) + "\n"


def main() -> None:
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder with VOCdevkit and local_splits")
    parser.add_argument("--weights", type=Path, help="file of tf_efficientnet_lite0")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--images", type=int, default=200, help="of each split, for the maps")
    parser.add_argument("--jobs", type=int, default=1, help="steps at a time")
    parser.add_argument("--recorded", type=Path, help="a table of before, such as experiments/results/tags.csv")
    parser.add_argument("--only", nargs="+", default=[], help="steps whose name holds one of these, and what they need")
    parser.add_argument("--page", action="store_true", help="only write what is there")
    parser.add_argument("--dry", action="store_true", help="only say what is left")
    options = parser.parse_args(given[:cut])
    options.more = given[cut + 1 :]
    recorded = read_recorded(options.recorded) if options.recorded else []
    beds = [Bed(options, seed, {*map(cell, recorded)}) for seed in options.seeds]
    failed = []
    if not options.page:
        if not options.root or not options.weights:
            parser.error("give --root and --weights")
        steps = [step for group in zip(*(bed.steps() for bed in beds), strict=True) for step in group]
        failed = work(steps, options.output / "logs", options.jobs, options.dry, options.only)
    if rows := together([row for bed in beds for row in bed.rows()], recorded):
        write_csv(options.output / "tags.csv", rows, COLUMNS)
        write_text(options.output / "tags.md", page(rows))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
