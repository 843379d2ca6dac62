"""The help of `weakseg fit`: short, and every option on it is one."""

import re

import pytest
from test_configs import parse

from conftest import TINY, weakseg
from experiments.cli.options import RUN, help_page

# A value for each option of the page, other than its default.
VALUES = {
    "data.root": ".", "data.size": 48, "data.crop": [24, 24], "data.batch_size": 6, "data.unlabeled_batch_size": 4,
    "data.supervision.kind": "scribbles", "data.supervision.fraction": 0.5, "data.num_workers": 1, "data.cache": "ram",
    "data.cache_dir": "c", "model.network.arch": "FPN", "model.network.encoder": "resnet18",
    "model.network.weights": "imagenet", "model.network.freeze_bn": True, "model.network.freeze": 3,
    "model.optimizer": "torch.optim.SGD",
    "model.optimizer.lr": 0.5, "model.encoder_lr_scale": 0.5, "model.schedule": "cosine", "model.inference.flip": True,
    "trainer.max_steps": 3, "trainer.val_check_interval": 2, "trainer.accelerator": "cpu", "trainer.devices": "2",
    "trainer.num_nodes": 2, "trainer.precision": "bf16-mixed", "trainer.accumulate_grad_batches": 2,
    "trainer.gradient_clip_val": 2.0, "trainer.enable_progress_bar": False,
}  # fmt: skip


def test_the_page_is_two_screens_of_80_columns_with_a_line_an_option():
    lines = weakseg("fit", "--help").splitlines()
    assert lines == weakseg("fit", "--config", TINY, "-h").splitlines() == help_page().splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 80
    listed = [line.split()[0].lstrip("-") for line in lines if line.startswith("  --")]
    assert all(re.match(r"  --[\w.]+( \S+)?  +\S", line) for line in lines if line.startswith(" "))
    assert {*listed} == {*RUN, *VALUES, "config", "model", "data", "seed_everything", "print_config"}
    assert len(listed) == len({*listed})


@pytest.mark.parametrize("option", VALUES)
def test_an_option_of_the_page_sets_what_it_says(option):
    words = ["--config", TINY, *(["--data", "Folder"] if option == "data.root" else [])]
    section, *keys = option.split(".")
    found = parse([*words, f"--{option}", str(VALUES[option])])[section]
    found = found if section == "trainer" else found.init_args
    for key in keys:
        found = found[key] if key in found else found["init_args"][key]
    assert getattr(found, "class_path", found) == VALUES[option]


def test_no_page_opens_with_a_block_of_usage():
    for words in (["--help-all"], ["--model.help", "TV"], ["--data.help", "Folder"]):
        first, second, *_ = weakseg("fit", *words).splitlines()
        assert first.endswith("[options]")
        assert second == ""
