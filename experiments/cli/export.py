"""`weakseg export`: a trained network as a file that runs without this project, by torch.export or as ONNX.

The file holds the network alone: RGB in [0, 1], (B, 3, H, W), to logits (B, K, H, W), with its normalisation. Resizing,
windows and post-processing stay with the caller, who finds in the file's metadata (JSON under `weakseg`) the classes,
their colours, the size at which the network was trained, and how the run predicts (docs/export.md). Low-rank updates
(LoRA) are merged into the weights.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from common.model.adapt import merged
from common.training.files import written_whole

if TYPE_CHECKING:
    from experiments.runs.load import Run

TOLERANCE = 1e-4  # of a logit, absolute, plus as much relative: float32 in another order of summation
KEY = "weakseg"  # of the metadata
LARGEST = 4096  # of a dynamic dimension, in units of it


class ShapeError(ValueError):
    """A network whose graph does not hold at other heights and widths."""


def export_network(network: nn.Module, size: tuple[int, int] | None = None) -> ExportedProgram:
    """The graph of a network in eval mode, on the CPU.

    Args:
        network: (B, C, H, W) -> (B, K, H, W).
        size: (height, width), to which the graph is then bound. None: any height and width that are multiples of the
            network's stride, up to 4096 of them. The batch is always dynamic.

    Raises:
        ShapeError: torch.export finds that the graph changes with the size; give one.
    """
    network = network.cpu().eval()
    stride, channels = getattr(network, "stride", 1), getattr(network, "channels", 3)
    dynamic = {0: Dim("batch", max=LARGEST)}
    if size is None:
        dynamic |= {2: stride * Dim("rows", max=LARGEST), 3: stride * Dim("columns", max=LARGEST)}
    height, width = size or (2 * stride, 3 * stride)
    try:
        program = export(network, (torch.rand(2, channels, height, width),), dynamic_shapes=(dynamic,))
        check(program.module(), network, (height, width) if size else (5 * stride, 3 * stride))
    except (torch._dynamo.exc.UserError, AssertionError, RuntimeError) as error:
        if size is not None:
            raise
        raise ShapeError("this network cannot be exported for all sizes: give one, --size HEIGHT WIDTH") from error
    return program


@torch.no_grad()
def check(exported: Callable[[Tensor], Tensor], network: nn.Module, size: tuple[int, int]) -> None:
    """Compare with the network on one random image, which is neither the batch nor, if it is free, the size traced.

    Raises:
        ValueError: they differ.
    """
    image = torch.rand(1, getattr(network, "channels", 3), *size, generator=torch.Generator().manual_seed(0))
    ours, theirs = network(image), exported(image)
    if not torch.allclose(ours, theirs, TOLERANCE, TOLERANCE):
        raise ValueError(f"the exported network differs from the trained one by {(ours - theirs).abs().max():.2g}")


def metadata(run: Run, size: tuple[int, int] | None = None) -> str:
    """What a user of the file needs to know of the run, as JSON; `size`: that the file is bound to."""
    model, network, photos = run.model, run.network, run.photos
    about = {"classes": [*run.class_names], "colors": [[*color] for color in run.colors], "size": photos.told_size}
    # Of the normalisation in the file; padding is of the mean colour.
    statistics = {name: getattr(network, name).flatten().tolist() for name in ("mean", "std")}
    sides = {"multiple_of": network.stride} if size is None else {"bound_to": [*size]}
    # Band numbers count from 1; a file has the three of `rgb` first, then the others.
    bands = {"channels": photos.channels, "rgb": [*photos.rgb], "value_range": photos.value_range}
    how = {"inference": asdict(model.inference), "postprocess": asdict(model.postprocess)}
    told = {**about, **statistics, **sides, **how, "method": type(model).__name__, "input": "RGB in [0, 1]", **bands}
    return json.dumps(told)


def write_onnx(program: ExportedProgram, path: Path, network: nn.Module, size: tuple[int, int], about: str) -> None:
    """Write a graph as ONNX with the input `image` and the output `logits`, and check it in onnxruntime."""
    import onnx
    import onnxruntime

    torch.onnx.export(
        program, f=str(path), input_names=["image"], output_names=["logits"], external_data=False, verbose=False
    )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {KEY: about})
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    check(lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0]), network, size)


def main(arguments: Sequence[str]) -> None:
    """`weakseg export`.

    Raises:
        FileNotFoundError, ValueError, ModuleNotFoundError: no run, a wrong suffix, a missing package, or a network that
            comes out otherwise.
    """
    parser = argparse.ArgumentParser(prog="weakseg export", allow_abbrev=False, description=__doc__.split("\n\n")[0])
    parser.add_argument("--run", required=True, help="run directory, checkpoint or W&B artifact")
    parser.add_argument("--which", choices=["best", "last"], default="best")
    parser.add_argument("--output", type=Path, required=True, help="FILE.pt2 (torch.export) or FILE.onnx")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="bind the file to this size")
    options = parser.parse_args(arguments)
    if options.output.suffix not in (".pt2", ".onnx"):
        raise ValueError(f"--output {options.output}: the suffix says the format, .pt2 (torch.export) or .onnx")
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if options.output.suffix == ".onnx" and missing:
        raise ModuleNotFoundError(f"ONNX needs {', '.join(missing)}: pip install -e '.[export]', or write a .pt2")
    from experiments.runs.load import load_run

    loaded = load_run(options.run, options.which)
    size = tuple(options.size) if options.size else None
    network, about = loaded.network.cpu().eval(), metadata(loaded, size)
    program = export_network(merged(network), size)
    stride = getattr(network, "stride", 1)
    tried = size or (5 * stride, 3 * stride)
    with written_whole(options.output) as scratch:  # and checked before it has its name
        if options.output.suffix == ".onnx":
            write_onnx(program, scratch, network, tried, about)
        else:
            with scratch.open("wb") as file:  # by a path without a suffix it warns
                torch.export.save(program, file, extra_files={KEY: about})
            with scratch.open("rb") as file:
                check(torch.export.load(file).module(), network, tried)
    sides = f"{size[0]} x {size[1]} pixels" if size else f"multiples of {stride} pixels"
    print(f"{options.output}: any batch, {sides}, equal to the trained network on another image")
