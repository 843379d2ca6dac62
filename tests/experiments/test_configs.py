"""Shipped configs: found by name, composed, and each of them runs."""

import re
from dataclasses import fields

import pytest
import yaml

from conftest import ROOT, TINY, slow_but_for, weakseg
from datamodules.supervision import Supervision
from experiments.cli.configs import SHIPPED, compose, expand_configs, find_config, shipped_configs
from experiments.cli.fit import Fit

HORSES = ROOT.parent / "shared" / "data" / "weizmann_horse_db"
LAID_OVER = ("all_labels", "tags", "boxes")
REGIMES = sorted(path.stem for path in (SHIPPED / "regimes").glob("*.yaml") if path.stem not in LAID_OVER)
METHODS = sorted(path.stem for path in (SHIPPED / "methods").glob("*.yaml"))


def parsed(arguments):
    """The command that `weakseg fit` would run; no class is built."""

    class ParseOnly(Fit):
        def instantiate_classes(self):
            pass

        def _run_subcommand(self, subcommand):
            pass

    words = [str(argument) for argument in arguments]
    return ParseOnly(expand_configs(words), words)


def parse(arguments):
    """The settings that `weakseg fit` would run with."""
    return parsed(arguments).settings


def command_in(path):
    """The command in a file's first line, `# weakseg fit ...`, with a value for its placeholders."""
    words = path.read_text().splitlines()[0].removeprefix("# ").split()
    assert words[:2] == ["weakseg", "fit"], f"{path}: the first line must be the command"
    return ["." if word.isupper() else word for word in words[2:]]


# Names -------------------------------------------------------------------------------------------------------------


def test_names_are_unique_and_few():
    files = list(SHIPPED.rglob("*.yaml"))
    assert len(shipped_configs()) == len(files)
    assert len([path for path in files if path.parent.name in ("methods", "regimes")]) <= 56
    assert {path.parent.name for path in files} == {"configs", "data", "regimes", "methods", "trainer"}


def test_a_word_with_a_slash_or_a_suffix_is_a_path_and_any_other_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tv", "tv.yaml"):
        (tmp_path / name).write_text("model: {class_path: TV, init_args: {tv_weight: 7}}\n")
    assert find_config("tv") == SHIPPED / "methods" / "tv.yaml"
    for path in ("tv.yaml", "./tv", str(tmp_path / "tv")):
        assert compose(find_config(path)) == ["model:\n  class_path: TV\n  init_args:\n    tv_weight: 7\n"]


@pytest.mark.parametrize(("name", "nearest"), [("gated_crv", "gated_crf"), ("weizman_few", "weizmann_few")])
def test_a_wrong_name_lists_the_nearest(name, nearest):
    with pytest.raises(FileNotFoundError, match=rf"no config '{name}', nearest: {nearest}.*methods: .*tv"):
        find_config(name)


def test_flags_stand_alone_and_take_true_or_false():
    assert expand_configs(["--overwrite", "--name", "a"]) == ["--overwrite=true", "--name", "a"]
    assert expand_configs(["--overwrite", "false", "--tensorboard"]) == ["--overwrite=false", "--tensorboard=true"]
    assert expand_configs(["--overwrite=true"]) == ["--overwrite=true"]
    for words, value in ((["--overwrite"], True), (["--overwrite", "True"], True), (["--overwrite", "false"], False)):
        assert parse(["--config", TINY, *words]).overwrite is value


# The default run directory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "folder"), [
    (["--config", TINY], "Synthetic/Supervised/pixels-0.05-seed0"),
    (["--config", TINY, "--model", "TV", "--seed_everything", "3"], "Synthetic/TV/pixels-0.05-seed3"),
    (["--config", "quickstart", "--config", "tv"], "quickstart/tv/pixels-0.002-seed0"),
    (["--config=quickstart", "--config=dfr_shallow"], "quickstart/dfr_shallow/pixels-0.002-seed0"),
    (["--config", "quickstart", "--config", "all_labels"], "quickstart/Supervised/dense-seed0"),
    (["--config", "quickstart", "--config", "tv", "--model.tv_weight", "0.3", "--model.init_args.start=0"],
     "quickstart/tv/pixels-0.002-seed0,tv_weight=0.3,start=0"),
    (["--config", "quickstart", "--model", "TV", "--model.network.weights", "a/b.pth", "--name", "mine"],
     "quickstart/TV/mine"),
    (["--config", TINY, "--data.supervision", "{kind: image_subset, fraction: 0.25, by_sequence: true}"],
     "Synthetic/Supervised/image_subset_by_sequence-0.25-seed0"),
])  # fmt: skip
def test_the_default_directory_tells_variants_apart(words, folder):
    assert str(parsed(words).run_dir) == f"runs/{folder}"


# Contents ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*REGIMES, *LAID_OVER])
def test_a_regime_opens_with_its_command_which_parses(name):
    words = command_in(find_config(name))
    assert name in words
    settings = parse(words)
    assert settings.trainer.max_steps > 0 or settings.trainer.max_epochs > 0
    named = [word for word in words if word in METHODS]
    wanted = yaml.safe_load(find_config(named[0]).read_text())["model"]["class_path"]
    assert settings.model.class_path == f"methods.{wanted}"


@pytest.mark.parametrize(
    "name",
    slow_but_for([name for name in [*REGIMES, *LAID_OVER] if "." in command_in(find_config(name))], "voc_clicks"),
)
def test_the_command_of_a_regime_lacks_nothing_but_the_data(name, tmp_path):
    words = [str(tmp_path / "data") if word == "." else word for word in command_in(find_config(name))]
    words += ["--model.network.weights", "null", "--run_dir", str(tmp_path / "run")]
    last = weakseg("fit", *words, expect=1).splitlines()[-1]
    assert re.match(rf"weakseg: error: (folder|list) {tmp_path / 'data'}\S* does not exist", last), last
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(SHIPPED.glob("[dmt]*/*.yaml")), ids=lambda p: p.stem)
def test_part_of_a_config_parses(path):
    settings = parse(["--config", "quickstart", "--config", path.stem])
    for section, content in yaml.safe_load(path.read_text()).items():
        if isinstance(content, dict) and "class_path" in content:
            assert settings[section].class_path.rsplit(".", 1)[-1] == content["class_path"]
            for option, value in content.get("init_args", {}).items():
                if not isinstance(value, dict):
                    assert settings[section].init_args[option] == value


def test_a_methods_config_keeps_the_regimes_network():
    """Configs of methods say the method alone, so that rows of one table share network and length."""
    for name in METHODS:
        content = yaml.safe_load(find_config(name).read_text())
        assert {*content} <= {"model", "data"}
        assert {*content.get("data", {}).get("init_args", {})} <= {"unlabeled_batch_size", "strong_views"}
        assert not {"network", "optimizer", "schedule"} & {*content["model"].get("init_args", {})}


@pytest.mark.parametrize("words", [["--model.init_args.network.weights", "null"], ["--model.network.weights=null"]])
def test_null_on_the_command_line_undoes_what_a_file_sets(words):
    settings = parse(["--config", "weizmann_pixels", "--config", "tv", "--data.root", ".", *words])
    assert settings.model.init_args.network.weights is None
    assert settings.model.init_args.network.encoder == "mobilenet_v2"
    assert settings.model.class_path == "methods.TV"


@pytest.mark.parametrize("name", LAID_OVER)
def test_a_config_that_is_laid_over_regimes_says_every_option_of_supervision(name):
    said = yaml.safe_load(find_config(name).read_text())["data"]["init_args"]["supervision"]
    assert said.keys() == {field.name for field in fields(Supervision)} - {"seed"}


@pytest.mark.parametrize("name", ["weizmann_few", "camvid_few", "voc_clicks", "weizmann_sparse"])
def test_all_labels_undoes_every_kind_of_supervision(name):
    words = ["--config", name, "--config", "all_labels", "--data.root", "."]
    supervision = parse(words).data.init_args.supervision
    assert supervision.kind == "dense"
    assert not any(value for key, value in vars(supervision).items() if key != "kind")


STEPS = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.enable_progress_bar", "false"]
FEW = ["--data.train", "16", "--data.val", "2", "--data.num_workers", "0", *STEPS]


@pytest.mark.parametrize("name", ["synthetic_few", "textures_points"])
def test_a_regime_without_files_runs_two_steps(name, tmp_path):
    weakseg("fit", "--config", name, "--run_dir", tmp_path / "run", *FEW)


@pytest.mark.parametrize("name", slow_but_for(METHODS, "supervised_ema", "tv", "unimatch", "cam"))
def test_every_methods_config_runs_two_steps(name, tmp_path):
    small = ["--data.batch_size", "4"]
    small += ["--model.region_conv", "2"] if name.startswith("rrn") else []
    small += ["--config", "tags"] if name in ("cam", "cpn", "group_wsss", "aalr") else []
    small += ["--config", "boxes"] if name == "box" else []
    weakseg("fit", "--config", "quickstart", "--config", name, "--run_dir", tmp_path / "run", *FEW, *small)


@pytest.mark.skipif(not HORSES.is_dir(), reason="needs the Weizmann horses in ../shared/data")
@pytest.mark.parametrize(
    "name", slow_but_for([name for name in REGIMES if name.startswith("weizmann")], "weizmann_scribbles")
)
def test_a_regime_of_horses_runs_two_steps(name, tmp_path):
    data = ["--data.root", HORSES, "--data.batch_size", "4", "--data.num_workers", "0"]
    network = ["--model.network.weights", "null", "--trainer.limit_val_batches", "2"]
    weakseg("fit", "--config", name, "--run_dir", tmp_path / "run", *data, *network, *STEPS)
    summary = yaml.safe_load((tmp_path / "run" / "summary.json").read_text())
    supervision = parse(["--config", name, *data]).data.init_args.supervision
    share = supervision.fraction if supervision.kind == "image_subset" else 1
    assert (summary["steps"], summary["annotation"]["images"]) == (2, 160 * share)
