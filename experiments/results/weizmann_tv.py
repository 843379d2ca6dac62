"""Writes weizmann_tv.md from the runs' artefacts.

    python -m experiments.results.weizmann_tv runs weizmann_tv.md

Made by, with FILES = --data.init_args.root DIR --model.init_args.network.weights FILE:

    python -m experiments.studies.runner experiments/sweeps/weizmann_lr.yaml -- FILES            # learning rate, on val
    python -m experiments.studies.runner experiments/sweeps/weizmann_supervised.yaml -- FILES    # baseline
    python -m experiments.studies.runner experiments/sweeps/weizmann_tv_weight.yaml -- FILES     # weight of the penalty, on val
    python -m experiments.studies.runner experiments/sweeps/weizmann_tv_contrast.yaml -- FILES   # with contrast weights
    python -m experiments.results.weizmann_tv runs --missing                            # the other runs of the table
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean

from experiments.results.tables import SEEDS, about, cell, fill, read, scores

FRACTIONS = (0.0002, 0.001, 0.01, 1.0)
WEIGHTS = (0.1, 0.3, 1.0, 3.0)
CONTRAST_WEIGHTS = (1.0, 3.0)


def supervised_dir(runs: Path, fraction: float, seed: int) -> Path:
    return runs / "weizmann_supervised" / f"fraction={fraction},seed_everything={seed}"


def tv_dir(runs: Path, fraction: float, weight: float, seed: int) -> Path:
    return runs / "weizmann_tv_weight" / f"fraction={fraction},tv_weight={weight},seed_everything={seed}"


def best_weight(runs: Path, fraction: float) -> float | None:
    """The weight with the highest best val mIoU of seed 0; None while one of the runs is missing."""
    scores = {w: read(tv_dir(runs, fraction, w, 0)).get("best", {}).get("val/miou") for w in WEIGHTS}
    return None if None in scores.values() else max(scores, key=lambda w: scores[w] or 0)


def best_mrf(runs: Path, fraction: float) -> tuple[str, float] | None:
    """Weighting and mu with the highest val mIoU, averaged over the seeds; None while one of the files is missing."""
    found = [read(supervised_dir(runs, fraction, seed), "mrf_val.json") for seed in SEEDS]
    if not all(found):
        return None
    scores = {
        (kind, float(mu)): mean(one[kind][mu] for one in found) for kind, values in found[0].items() for mu in values
    }
    return max(scores, key=lambda setting: scores[setting])


def missing(runs: Path) -> list[str]:
    """Command lines that complete the table, as far as the artefacts so far determine them; FILES as above."""
    lines = []
    for fraction in FRACTIONS:
        weight = best_weight(runs, fraction)
        folders = [supervised_dir(runs, fraction, seed) for seed in SEEDS]
        for seed in SEEDS if weight is not None else ():
            folder = tv_dir(runs, fraction, weight or 0, seed)
            folders.append(folder)
            if not read(folder):
                lines.append(
                    f"weakseg fit --config experiments/configs/recipes/weizmann_tv.yaml --run_dir '{folder}' "
                    f"--resume auto --data.init_args.supervision.fraction {fraction} "
                    f"--model.init_args.tv_weight {weight} --seed_everything {seed} FILES"
                )
        for folder in folders:
            done = read(folder).get("test", {})
            lines += [
                f"weakseg test --run '{folder}' --which {w}" for w in ("best", "last") if read(folder) and w not in done
            ]
        setting = best_mrf(runs, fraction)
        for seed in SEEDS:
            folder = supervised_dir(runs, fraction, seed)
            if read(folder) and not (folder / "mrf_val.json").exists():
                lines.append(f"python -m experiments.studies.tune_postprocess mrf '{folder}'")
            if setting and "best+mrf" not in read(folder).get("test", {}):
                lines.append(
                    f"weakseg test --run '{folder}' --model.init_args.postprocess.kind mrf "
                    f"--model.init_args.postprocess.weights {setting[0]} --model.init_args.postprocess.mu {setting[1]}"
                )
    return lines


def table(runs: Path) -> str:
    """The results as Markdown."""
    rows = [
        "| labelled pixels | method | setting, chosen on val | mIoU best | mIoU last | horse IoU best | accuracy best |"
    ]
    rows.append("|---|---|---|---|---|---|---|")
    for fraction in FRACTIONS:
        base = [supervised_dir(runs, fraction, seed) for seed in SEEDS]
        weight, setting = best_weight(runs, fraction), best_mrf(runs, fraction)
        tv = [tv_dir(runs, fraction, weight, seed) for seed in SEEDS] if weight is not None else []
        described = {
            ("supervised", ""): (base, ""),
            ("supervised + MRF", f"{setting[0]}, mu {setting[1]:g}" if setting else ""): (base, "+mrf"),
            ("TV", f"lambda {weight:g}" if weight is not None else ""): (tv, ""),
        }
        for (name, chosen), (paths, suffix) in described.items():
            cells = [cell(scores(paths, w + suffix, m)) for w, m in
                     (("best", "miou"), ("last", "miou"), ("best", "iou/horse"), ("best", "accuracy"))]  # fmt: skip
            rows.append(f"| {share(fraction)} | {name} | {chosen} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def weights_table(runs: Path) -> str:
    """How the settings were chosen: best val mIoU of seed 0, and for the MRF the mean over the seeds."""
    columns = (
        [f"lambda {w:g}" for w in WEIGHTS] + [f"contrast, lambda {w:g}" for w in CONTRAST_WEIGHTS] + ["supervised"]
    )
    rows = [f"| labelled pixels | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for fraction in FRACTIONS:
        folders = [tv_dir(runs, fraction, w, 0) for w in WEIGHTS]
        folders += [runs / "weizmann_tv_contrast" / tv_dir(runs, fraction, w, 0).name for w in CONTRAST_WEIGHTS]
        folders.append(supervised_dir(runs, fraction, 0))
        scores = [read(folder).get("best", {}).get("val/miou") for folder in folders]
        cells = ["" if score is None else f"{score:.1f}" for score in scores]
        rows.append(f"| {share(fraction)} | " + " | ".join(cells) + " |")
    rates = {path.name.split("lr=")[1].split(",")[0]: read(path) for path in sorted((runs / "weizmann_lr").glob("*0"))}
    chosen = ", ".join(f"{rate}: {summary['best']['val/miou']:.1f}" for rate, summary in rates.items() if summary)
    rows.append(f"\nLearning rate of the decoder, supervised, 0.1 %, seed 0, best val mIoU: {chosen}.\n")
    rows.append("MRF on the supervised networks, val mIoU, mean over the seeds:\n")
    settings = [(kind, mu) for kind in ("potts", "contrast") for mu in ("0.3", "1", "3", "10")]
    rows.append(f"| labelled pixels | none | {' | '.join(f'{kind}, mu {mu}' for kind, mu in settings)} |")
    rows.append("|---" * (len(settings) + 2) + "|")
    for fraction in FRACTIONS:
        found = [read(supervised_dir(runs, fraction, seed), "mrf_val.json") for seed in SEEDS]
        cells = [
            f"{mean(one[kind][mu] for one in found):.1f}" for kind, mu in [("potts", "0"), *settings] if all(found)
        ]
        rows.append(f"| {share(fraction)} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def share(fraction: float) -> str:
    return f"{fraction:.2%}".replace(".00%", "%")


def runs_and_labels(runs: Path) -> str:
    """What the artefacts say of the runs themselves, and how many pixels the shares are."""
    every = [path for name in ("weizmann_supervised", "weizmann_tv_weight") for path in (runs / name).glob("*/")]
    labels = {f: read(supervised_dir(runs, f, 0)).get("annotation", {}) for f in FRACTIONS}
    counts = ", ".join(f"{f:.2%}: {a['labeled_pixels']} pixels in {a['images']} images" for f, a in labels.items() if a)
    return f"{about(every)} Labelled (seed 0): {counts}."


def main(runs: Path, page: Path) -> None:
    fill(page, {"results": table(runs), "weights": weights_table(runs), "runs": runs_and_labels(runs)})


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if "--missing" in sys.argv:
        print("\n".join(missing(folder)))
    else:
        main(folder, Path(sys.argv[2]))
