"""`import weakseg`: what Python makes is what the command makes."""

import json

import pytest
import torch
import yaml
from lightning import seed_everything
from lightning.pytorch.plugins.environments import LightningEnvironment

import weakseg
from common.ops.batch import check_batch
from common.training.loggers import CSVLogger
from common.training.run import device_count, house_arguments
from conftest import fit_tiny
from conftest import weakseg as command
from same_run import assert_equal, load, metrics

NETWORK = weakseg.NetworkConfig(
    encoder="tu-test_resnet", decoder={"decoder_channels": [16, 16, 8, 8], "encoder_depth": 4}, dropout=0.2
)


def scenes(**options):
    few = {"train": 12, "val": 3, "test": 3, "side": 40, "size": 32, "batch_size": 4, "num_workers": 0}
    return weakseg.datamodules.Synthetic(
        **{**few, "supervision": weakseg.Supervision("pixels", fraction=0.05), **options}
    )


def train(folder, **options):
    """The run of tests/tiny.yaml with TV, from Python."""
    seed_everything(0, verbose=False)
    data = scenes()
    model = weakseg.methods.TV(data.num_classes, tv_weight=0.3, network=NETWORK)
    told = {"max_steps": 8, "val_check_interval": 3, "log_every_n_steps": 1, "enable_progress_bar": False}
    trainer = weakseg.make_trainer(folder, model, data, **{**told, **options})
    trainer.fit(model, data)
    return trainer


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("python") / "run"
    train(folder)
    return folder


def test_a_run_made_in_python_equals_that_of_the_command_bit_for_bit(run_dir, tmp_path):
    fit_tiny(tmp_path / "command", "--model", "TV", "--model.tv_weight", "0.3")
    assert_equal(load(run_dir)["state_dict"], load(tmp_path / "command")["state_dict"])
    assert metrics(run_dir) == metrics(tmp_path / "command")
    written = {path.relative_to(run_dir) for path in run_dir.rglob("*.*")}
    assert written == {path.relative_to(tmp_path / "command") for path in (tmp_path / "command").rglob("*.*")}


def test_further_loggers_get_the_metrics_too(run_dir, tmp_path):
    short = {"max_steps": 2, "val_check_interval": 2}
    other = CSVLogger(tmp_path / "other")
    train(tmp_path / "run", logger=other, **short)
    train(tmp_path / "plain", logger=True, **short)
    named = ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", tmp_path / "third"]
    told = (word for name, value in short.items() for word in (f"--trainer.{name}", value))
    fit_tiny(tmp_path / "command", *named, *told)
    third = next((tmp_path / "third").rglob("metrics.csv"))
    for file in (other.path, third, *(tmp_path / name / "metrics.csv" for name in ("run", "plain", "command"))):
        assert "val/miou" in file.read_text()


def test_its_config_says_every_option_and_repeats_it(run_dir, tmp_path):
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["model"]["init_args"] | {"tv_weight": 0.3, "ramp": 0.1} == config["model"]["init_args"]
    assert config["model"]["init_args"]["network"]["decoder"]["encoder_depth"] == 4
    assert config["data"]["init_args"]["supervision"]["fraction"] == 0.05
    command("fit", "--config", run_dir / "config.yaml", "--run_dir", tmp_path / "again")
    # The optimizer is a function in Python, so it is not in the config: here it is the default of both.
    assert_equal(load(run_dir)["state_dict"], load(tmp_path / "again")["state_dict"])


def test_the_unlabelled_stream_follows_from_the_method(tmp_path):
    data = scenes()
    other = weakseg.methods.Supervised(data.num_classes, network=NETWORK)
    weakseg.make_trainer(tmp_path / "other", other, data, max_steps=1, enable_progress_bar=False)
    assert data.streams == ("labeled",)  # the next trainer is another method's
    model = weakseg.methods.UniMatch(data.num_classes, network=NETWORK)
    weakseg.make_trainer(tmp_path / "run", model, data, max_steps=1, enable_progress_bar=False).fit(model, data)
    used = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["init_args"]
    assert (used["unlabeled_batch_size"], used["strong_views"], used["unlabeled_pool"]) == (4, 2, "all")


def test_the_command_tests_it_and_load_run_predicts_with_it(run_dir):
    command("test", "--run", run_dir, "--trainer.enable_progress_bar", "false")
    assert json.loads((run_dir / "summary.json").read_text())["test"]["best"]["test/miou"] > 0
    run = weakseg.load_run(run_dir)
    labels, probabilities = run.predict(run.data.image(run.data.names("test")[0]), probabilities=True)
    assert labels.shape == (40, 40)
    assert probabilities.shape == (6, 40, 40)


def test_a_used_directory_is_refused_and_overwritten_when_told(tmp_path):
    train(tmp_path / "run", max_steps=2, val_check_interval=2)
    with pytest.raises(FileExistsError, match="holds a run already"):
        train(tmp_path / "run")
    train(tmp_path / "run", max_steps=3, val_check_interval=3, overwrite=True)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 3


def test_training_without_an_end_is_refused(tmp_path):
    data = scenes()
    model = weakseg.methods.Supervised(data.num_classes, network=NETWORK)
    trainer = weakseg.make_trainer(tmp_path / "run", model, data)
    with pytest.raises(ValueError, match="until the last step: give trainer"):
        trainer.fit(model, data)


@pytest.mark.parametrize(("devices", "count"), [("0,", 1), ("0,2", 2), ([1], 1), ([0, 1], 2), (3, 3), ("2", 2)])
def test_devices_are_counted(devices, count):
    assert device_count({"devices": devices}) == count
    assert house_arguments({"devices": devices, "accelerator": "cpu"}).get("sync_batchnorm") in (None, False)


def test_all_devices_of_a_machine_without_gpus_are_its_processor():
    assert house_arguments({"devices": -1, "accelerator": "cpu"})["devices"] == "auto"


def test_a_plugin_may_be_given_alone():
    one = LightningEnvironment()
    assert one in house_arguments({"plugins": one})["plugins"]


def test_loaders_work_without_a_trainer(tmp_path):
    data = scenes(unlabeled_batch_size=2, unlabeled_pool="all", strong_views=2)
    data.prepare_data()
    batches = [data.ready(batch) for batch, _, _ in data.train_dataloader()]
    assert len(batches) == 6
    for batch in batches:
        for stream in batch.values():
            check_batch(stream, data.num_classes)
    assert batches[0]["unlabeled"]["strong"].shape == (2, 2, 3, 32, 32)
    (first, *_) = data.val_dataloader()
    assert torch.equal(data.ready(first)["image"], data.evaluation_batch(data.image(first["name"][0]))["image"])


def test_names_and_version():
    assert {"TV", "CPS", "CutMixSeg"} <= {*dir(weakseg.methods)}
    assert {"Folder", "Synthetic"} <= {*dir(weakseg.datamodules)}
    assert weakseg.__version__ == "0.1.0"
    with pytest.raises(AttributeError, match="methods has no 'TVV': it has"):
        weakseg.methods.TVV  # noqa: B018
