"""`weakseg test`: test metrics of a trained model, kept in its run directory."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only

from common.training.summary import RunSummary, git_commit
from common.training.test_images import TestImages
from common.training.test_metrics import METRICS, TestMetrics
from common.training.tracking import Tracking, check_trackers, make_trackers
from experiments.cli.lightning import run
from experiments.cli.trained import TrainedCLI, from_run, trained_parser


class Test(TrainedCLI):
    verb = "test"

    def parts(self) -> dict[str, Any]:
        folder, settings = self.options.run, self.settings
        limit = settings.trainer.limit_test_batches
        whole = isinstance(limit, float) and limit == 1  # the number 1 is one batch
        limit = settings.trainer.fast_dev_run or (None if whole else limit)
        if not folder or limit:
            if folder:
                rank_zero_only(print)(f"a test of {limit} batches or so: {folder} keeps scores of all images only")
            more = TestMetrics(self.options.metrics)
            return super().parts() | ({"callbacks": [more]} if self.options.metrics else {})
        check_trackers(settings.wandb, settings.tensorboard)
        kind = self.model.postprocess.kind
        name = self.options.ckpt.stem + ("" if kind == "none" else f"+{kind}")
        return super().parts() | {
            "callbacks": [
                RunSummary(folder, int(settings.seed_everything), name),
                TestImages(folder, name),
                *([TestMetrics(self.options.metrics, folder, name)] if self.options.metrics else []),
                Tracking(
                    folder, False, lambda: make_trackers(folder, settings.wandb, settings.tensorboard, git_commit())
                ),
            ]
        }

    def test(self, **kwargs: Any) -> None:
        self.trainer.test(**{**kwargs, "weights_only": True, "verbose": False})
        self.print_metrics("test")


def main(arguments: Sequence[str]) -> None:
    parser = trained_parser("test")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(
        [str(parser.epilog), "", "metrics:", *(f"  {name:14}{words}" for name, words in METRICS.items())]
    )
    parser.add_argument(
        "--metrics", nargs="+", choices=[*METRICS], default=[], metavar="NAME", help="further metrics, see below"
    )
    run(Test, *from_run(parser, arguments))
