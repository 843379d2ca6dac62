import csv

import pytest

from common.training.checkpoints import AtomicCheckpointIO
from common.training.loggers import CSVLogger


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_rows_are_appended_and_a_new_column_keeps_the_old_rows(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"train/loss": 0.5, "epoch": 0}, step=0)
    logger.log_metrics({"val/miou": 10.0, "epoch": 0}, step=1)
    logger.log_metrics({"train/loss": 0.25, "epoch": 1}, step=2)
    content = rows(tmp_path)
    assert list(content[0]) == ["step", "epoch", "train/loss", "val/miou"]
    assert [row["train/loss"] for row in content] == ["0.5", "", "0.25"]
    assert [row["val/miou"] for row in content] == ["", "10.0", ""]


def test_resume_drops_rows_beyond_the_checkpoint_and_half_a_row(tmp_path):
    logger = CSVLogger(tmp_path)
    for step in range(12):
        logger.log_metrics({"epoch": 0, "train/loss": step / 4, "train/z": 1.5}, step)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1,0")  # the kill came while row 12 was written
    resumed = CSVLogger(tmp_path)
    resumed.drop_from(10)
    resumed.log_metrics({"epoch": 0, "train/loss": 2.5, "train/z": 1.5}, 10)
    unbroken = CSVLogger(tmp_path / "other")
    (tmp_path / "other").mkdir()
    for step in range(11):
        unbroken.log_metrics({"epoch": 0, "train/loss": step / 4, "train/z": 1.5}, step)
    assert (tmp_path / "metrics.csv").read_bytes() == (tmp_path / "other" / "metrics.csv").read_bytes()


def test_a_failed_write_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    store, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    store.save_checkpoint({"step": 1}, path)
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("common.training.files.os.fsync", full)
    with pytest.raises(OSError, match=r"last\.ckpt.*previous checkpoint is kept"):
        store.save_checkpoint({"step": 2}, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
