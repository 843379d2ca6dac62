"""`make demo`: every quick-start recipe on drawn scenes, then a table and a picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.training.pictures import colorize, mark_pixels, save_grid
from datamodules.transforms import fit_size, resize_image
from experiments.cli import main
from experiments.runs.load import Run, load_run

RECIPES = Path(__file__).parents[1] / "configs" / "recipes"
METHODS = {path.stem.removeprefix("quickstart_"): path.name for path in sorted(RECIPES.glob("quickstart_*.yaml"))}


def table(summaries: dict[str, dict[str, float | None]], stage: str = "test") -> str:
    """Rows of metrics, a column per run."""
    rows = [f"{'per cent':22}" + "".join(f"{name:>12}" for name in summaries)]
    metrics = dict.fromkeys(key for values in summaries.values() for key in values)
    order = sorted(metrics, key=lambda key: (key != f"{stage}/miou", key != f"{stage}/accuracy", key))
    for key in order:
        cells = [values.get(key) for values in summaries.values()]
        rows.append(
            f"{key.removeprefix(f'{stage}/'):22}" + "".join(f"{'' if c is None else f'{c:.1f}':>12}" for c in cells)
        )
    return "\n".join(rows)


def picture(path: Path, runs: dict[str, Run], names: list[str]) -> None:
    """Training images in rows: image, labelled pixels, truth, and the prediction of each run."""
    data = next(iter(runs.values())).data
    rows = []
    for name in names:
        image, mask = data.image(name), data.mask(name)
        assert mask is not None
        small = resize_image(image, fit_size(image.shape[:2], data.size))
        tensor = torch.from_numpy(small.copy()).permute(2, 0, 1).float() / 255
        drawn = np.asarray(Image.open(data.annotation_dir() / f"{name}.png"))
        row = [image, mark_pixels(tensor, drawn, data.colors), colorize(mask, data.colors)]
        batch = {"image": tensor[None], "size": torch.tensor([image.shape[:2]])}
        for run in runs.values():
            labels, _ = run.model.predict_labels(run.network, batch, refine=False)
            row.append(colorize(labels[0].numpy(), data.colors))
        rows.append(row)
    save_grid(path, rows, ["image", "labelled pixels", "truth", *runs])


def demo(folder: Path) -> int:
    """Train the quick-start recipes into `folder`, then compare them on the test scenes."""
    summaries, runs = {}, {}
    for number, (name, recipe) in enumerate(METHODS.items(), 1):
        print(f"\n[{number}/{len(METHODS)}] {name}: weakseg fit --config experiments/configs/recipes/{recipe}\n")
        run_dir = folder / name.lower()
        status = main(["fit", "--config", str(RECIPES / recipe), "--run_dir", str(run_dir), "--overwrite", "true"])
        status = status or main(["test", "--run", str(run_dir), "--trainer.enable_progress_bar", "false"])
        if status:
            return status
        summaries[name] = json.loads((run_dir / "summary.json").read_text())["test"]["best"]
        runs[name] = load_run(run_dir)
    path = folder / "comparison.png"
    picture(path, runs, next(iter(runs.values())).data.lists()[0][:5])
    print(f"\n100 test scenes\n\n{table(summaries)}\n\npicture: {path.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(demo(Path("demo")))
