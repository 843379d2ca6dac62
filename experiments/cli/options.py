"""The options of `weakseg fit`: its own, and the page that names those in daily use. No torch is imported for it."""

from __future__ import annotations

import os
from typing import Any, Literal, NamedTuple


class Option(NamedTuple):
    """An option of a run: its type and default for the parser, a placeholder and a few words for the page."""

    type: Any
    default: Any
    value: str
    help: str


RUN = {
    "run_dir": Option(str | None, None, "DIR", "where its files go; default: runs/REGIME/METHOD/NAME"),
    "name": Option(str | None, None, "NAME", "NAME in it; default: what is labelled, and the seed"),
    "resume": Option(str | None, None, "auto|FILE", "continue what is in run_dir, if anything; or a file"),
    "changed_data": Option(Literal["refuse", "accept"], "refuse", "accept", "continue although the data have changed"),
    "init_from": Option(str | None, None, "FILE", "start from the network of this checkpoint, at step 0"),
    "overwrite": Option(bool, False, "", "replace the run that is in run_dir"),
    "checkpoint_every": Option(int, 50, "N", "optimizer steps between last.ckpt files (50)"),
    "skip_nonfinite": Option(int, 0, "N", "steps without a finite gradient to leave out (0)"),
    "rank_timeout": Option(float, 10.0, "MINUTES", "after which processes give up one that is silent (10)"),
    "patience": Option(int | None, None, "N", "stop after N validations without a higher score"),
    "tensorboard": Option(bool, False, "", "log to TensorBoard too"),
    # An agent of a W&B sweep expects its run there.
    "wandb": Option(Literal["off", "online", "offline"], "online" if os.environ.get("WANDB_SWEEP_ID") else "off",
                    "online|offline", "log to W&B too"),
    "wandb_checkpoints": Option(bool, False, "", "send the checkpoints to W&B too"),
}  # fmt: skip
# Of some hundred options the ones that people set.
MAIN = {
    "data, any set; all options of one: --data.help NAME": {
        "data.root DIR": "the folder, of a set that comes from files",
        "data.size N|[H,W]|native": "images are resized to fit inside, or not",
        "data.crop [H,W]": "of a training sample; default: size",
        "data.batch_size N": "labelled images a step, over all devices (16)",
        "data.unlabeled_batch_size N": "default: as many, if the method wants them",
        "data.supervision.kind KIND": "dense, image_subset, pixels, points, ...",
        "data.supervision.fraction F": "share of the images or pixels that is labelled",
        "data.num_workers N": "loader processes of each device (2)",
        "data.cache ram|disk": "read and resize each image only once",
        "data.cache_dir DIR": "default: $WEAKSEG_CACHE or ~/.cache/weakseg",
    },
    "method, any; all options of one: --model.help NAME": {
        "model.network.arch NAME": "FPN, DeepLabV3Plus, Segformer, ... (Unet)",
        "model.network.encoder NAME": "of smp, or tu-NAME of timm (mobilenet_v2)",
        "model.network.weights NAME": "imagenet, a file, or null: from scratch (null)",
        "model.network.freeze PART": "encoder, or its first N layers (none)",
        "model.network.freeze_bn true": "BatchNorm keeps its statistics: small batches",
        "model.optimizer CLASS": "such as torch.optim.SGD (torch.optim.AdamW)",
        "model.optimizer.lr RATE": "of the decoder (0.001)",
        "model.encoder_lr_scale S": "the encoder learns S times as fast (0.1)",
        "model.schedule NAME": "learning rate: constant, cosine or poly (poly)",
        "model.inference.flip true": "average the predictions of both orientations",
    },
    "trainer, Lightning's; all its options: --help-all": {
        "trainer.max_steps N": "length of the run in optimizer steps",
        "trainer.val_check_interval N": "batches between validations",
        "trainer.accelerator NAME": "auto, cpu, gpu",
        "trainer.devices N": "processes, or auto: all GPUs",
        "trainer.num_nodes N": "machines",
        "trainer.precision NAME": "32-true, bf16-mixed or 16-mixed",
        "trainer.accumulate_grad_batches N": "parts of a step's batch, one by one",
        "trainer.gradient_clip_val NORM": "highest norm of the gradient",
        "trainer.enable_progress_bar false": "show no progress",
    },
}


def help_page() -> str:
    """`weakseg fit --help`, in lines of at most 80 columns."""
    what = {
        "config NAME|FILE": "shipped, or a file (a word with / or .yaml)",
        "model NAME": "the method; `weakseg methods` lists them",
        "data NAME|FOLDER": "the set; of your own folder the rest is chosen, and told",
        "seed_everything N": "seed of labels, order, augmentation and network (0)",
        "print_config": "print the config that results, and train nothing",
    }
    run = {f"{name} {option.value}".strip(): option.help for name, option in RUN.items()}
    text = (
        "usage: weakseg fit --config REGIME --config METHOD [options]\n\n"
        "Each config overrides those before it, and options override them all.\n"
    )
    for title, options in {"what is trained": what, "the run": run, **MAIN}.items():
        width = max(map(len, options)) + 4
        lines = "".join(f"  {'--' + option:{width}}{words}\n" for option, words in options.items())
        text += f"\n{title}\n{lines}"
    return text
