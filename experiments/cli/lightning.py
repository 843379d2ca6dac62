"""What fit, validate, test and predict share: LightningCLI on composed configs, and errors of one line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import yaml
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning_utilities.core.rank_zero import rank_zero_only

import datamodules
import methods
from common.model.module import SegmentationModule
from common.training.discovery import import_all
from common.training.memory import keep_freed
from common.training.progress import progress
from common.training.run import as_list, house_arguments, quiet
from datamodules.base import SegmentationDataModule
from experiments.cli.configs import stated
from experiments.cli.messages import Parser, check_given
from experiments.cli.options import RUN

# Python takes Lightning's `int | float` for the `float | int` of another package, if that came first: 1, one batch,
# would be read as 1.0, all of them.
for _name in ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"):
    inspect.unwrap(Trainer.__init__).__annotations__[_name] = int | float | None

# About one start, not part of the saved config.
RUN_OPTIONS = ("run_dir", "name", "resume", "changed_data", "init_from", "overwrite")


class WeaksegCLI(LightningCLI):
    """LightningCLI without its own loggers and checkpoints: a verb's `parts` builds them for its run directory, because
    config links cannot reach into lists.

    Args:
        arguments: the command line after the verb, expanded (`experiments.cli.configs.expand_configs`).
    """

    verb: str

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments
        import_all(methods, datamodules)  # so that short class names are known
        super().__init__(
            SegmentationModule,
            SegmentationDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_class=Parser,
            parser_kwargs={"prog": "weakseg", self.verb: {"usage": f"weakseg {self.verb} [options]"}},
            args=[self.verb, *arguments],
        )

    def parts(self) -> dict[str, Any]:
        """What the verb gives the trainer: `callbacks` and, if it logs, `logger`."""
        raise NotImplementedError

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        skipped = LightningCLI.subcommands()
        return {**skipped, "fit": skipped["fit"] | {"ckpt_path", "weights_only"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name, option in RUN.items():
            parser.add_argument(f"--{name}", type=option.type, default=option.default, help=option.help)
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # As the base class, without its warning about sys.argv, which is ours too.
        self.config = parser.parse_args(args)

    @property
    def settings(self) -> Any:
        """The parsed config of this verb."""
        return self.config[self.verb]

    @property
    def method(self) -> str:
        return str(self.settings.model.class_path).rsplit(".", 1)[-1]

    def before_instantiate_classes(self) -> None:
        """A batch size that overrides the config's changes the learning rate with it, linearly for SGD, by the square
        root for others, unless that is given too. Nothing else does: devices and accumulation share the batch."""
        if self.verb != "fit":
            return
        for part in ("model", "data"):
            check_given(part, self.settings[part])
        if channels := self.settings.data.init_args.get("channels"):
            self.settings.model.init_args.network.channels = channels
        batch, optimizer = self.settings.data.init_args.batch_size, self.settings.model.init_args.optimizer
        before = stated(self.arguments, "data", "init_args", "batch_size") or batch
        rate, ratio = optimizer.init_args.lr, batch / before
        if ratio != 1 and not gives_rate(self.arguments):
            optimizer.init_args.lr = rate * (ratio if optimizer.class_path.endswith(".SGD") else ratio**0.5)
            rank_zero_only(print)(f"batch {before} -> {batch}: learning rate {rate:g} -> {optimizer.init_args.lr:g}")

    def config_text(self) -> str:
        """The resolved config, enough to repeat the run, without the options about this start."""
        text = self._parser(self.verb).dump(self.settings, skip_unset=False)
        content = {k: v for k, v in yaml.safe_load(text).items() if k not in (*RUN_OPTIONS, "config")}
        return str(yaml.safe_dump(content, sort_keys=False))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        told = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        parts = self.parts()
        first, rest = parts["callbacks"][:1], parts["callbacks"][1:]  # the run is claimed before a bar is shown
        callbacks = [*first, *progress(told), *rest, *as_list(told["callbacks"])]
        loggers = [*as_list(parts["logger"]), *as_list(told["logger"])]
        more = {"callbacks": callbacks, "logger": loggers}
        return Trainer(**{**house_arguments(told, self.settings.rank_timeout), **parts, **more})


def run(cli: type[WeaksegCLI], arguments: list[str], *more: Any) -> None:
    """Run a verb on expanded arguments.

    Raises:
        ValueError, OSError: a wrong input, with the way out.
        SystemExit: a wrong command line (jsonargparse has printed why).
        Stopped: by a signal, after the run was saved.
    """
    quiet()
    keep_freed()
    try:
        cli(arguments, *more)
    except MisconfigurationException as error:  # trainer options that contradict each other or this machine
        raise ValueError(str(error)) from error
    except TypeError as error:
        if "`devices` selected with" in str(error):  # a list of GPUs where there are none
            raise ValueError(f"trainer.devices: {error} (with GPUs it may be a list of their numbers)") from error
        raise
    except RuntimeError as error:
        if words := in_our_words(str(error)):
            raise ValueError(words) from error
        raise
    except ValueError as error:
        if "Expected more than 1 value per channel" in str(error):
            raise ValueError(
                "BatchNorm cannot learn from one value a channel: give more images per device (data.batch_size) or "
                "larger ones (data.crop), or fix its statistics with model.network.freeze_bn=true"
            ) from error
        raise
    except MemoryError as error:
        raise ValueError(NO_MEMORY) from error


NO_MEMORY = "there is not enough memory: lower data.batch_size, data.size or data.num_workers"


# What torch and Lightning say of things that happen, and what to do about them.
def gives_rate(words: Sequence[str]) -> bool:
    """Whether a command line gives the learning rate, by itself or among the options of an optimizer."""
    optimizer = re.compile(r"--model\.(init_args\.)?optimizer(\.init_args)?(\.lr)?")
    for word, after in pairwise([*words, ""]):
        option, equals, value = word.partition("=")
        found = optimizer.fullmatch(option)
        if found and (found[3] or re.search(r"\blr\b", value if equals else after)):
            return True
    return False


KNOWN = {
    r"could not be downloaded": None,
    r"EADDRINUSE|[Aa]ddress already in use": (
        "the port at which the processes would meet is taken: set MASTER_PORT to a free one, or leave it unset"
    ),
    r"shared memory|No space left on device|[Bb]us error": (
        "there is not enough shared memory (/dev/shm) for the loader processes: give the container more (docker run "
        "--shm-size 2g), or set data.num_workers to 0"
    ),
    r"DataLoader worker .*(killed|exited unexpectedly)": (
        "a loader process was killed, mostly for want of memory: set data.num_workers lower, or give more memory"
    ),
    r"out of memory|can't allocate memory|not enough memory": NO_MEMORY,
}


def in_our_words(message: str) -> str | None:
    """A RuntimeError that can be expected, told in a line with the way out; None if it is none of these."""
    if "Error(s) in loading state_dict" in message:
        detail = message.splitlines()[1].strip()
        return f"the checkpoint does not fit the network ({detail[:200]}): give the network that it was trained with"
    for pattern, words in KNOWN.items():
        if re.search(pattern, message):
            return words or message
    return None
