"""Caches change nothing but the time."""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from conftest import fit_tiny
from datamodules.cache import HEADER, DiskCache, RamCache, Small, pack, shrink, unpack, writing
from datamodules.photos import Photos
from datamodules.scenes import CLASSES, draw_scene
from datamodules.sets.folder import Folder
from datamodules.sets.synthetic import Synthetic

KINDS = ("ram", "disk")


def picture(seed, size=(20, 30)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Twelve scenes as a user would have them, half of them JPEG, of two sizes, two without a mask."""
    root = tmp_path / "own"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    for number in range(12):
        image, mask = draw_scene(0, number, 40)
        rows = 40 if number % 3 else 28
        Image.fromarray(image[:rows]).save(root / "images" / f"{number}.{'jpg' if number % 2 else 'png'}", quality=95)
        if number < 10:
            Image.fromarray(mask[:rows]).save(root / "masks" / f"{number}.png")
    return root


def samples(data, epochs=1):
    """All that the loaders deliver."""
    data.trainer = None
    data.prepare_data()
    batches = []
    for _ in range(epochs):
        loaders = data.train_dataloader()
        batches += [batch for batch, _, _ in iter(loaders)]
        batches += list(data.val_dataloader())
    return batches


def assert_same(one, two):
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        one, two = list(one.values()), list(two.values())
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, list):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    else:
        assert one == two


def own(root, tmp_path, **options):
    return Folder(
        str(root), size=24, batch_size=2, unlabeled_batch_size=2, cache_dir=str(tmp_path / "cache"), **options
    )


# Records --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(20, 30), (1, 9), (64, 48)])
def test_a_record_holds_an_image_and_its_original_size(size):
    small = shrink(picture(0, size), (32, 32))
    record = pack(small)
    assert len(record) == HEADER + small.image.size
    found = unpack(np.concatenate([record, np.zeros(50, np.uint8)]))  # a slot is longer than its image
    assert found.size == size
    assert np.array_equal(found.image, small.image)
    assert found.image.dtype == np.uint8


def test_an_empty_or_short_record_is_none():
    record = pack(shrink(picture(0), (32, 32)))
    assert unpack(np.zeros(500, np.uint8)) is None
    for length in (0, 5, HEADER, len(record) - 1):
        assert unpack(record[:length]) is None


# Caches ---------------------------------------------------------------------------------------------------------------


def test_ram_reads_each_image_once_and_others_each_time():
    reads = []

    def read(name):
        reads.append(name)
        return shrink(picture(int(name)), (16, 16))

    cache = RamCache(["0", "1"], (16, 16), read)
    for _ in range(3):
        for name in ("1", "0", "2"):
            found, expected = cache.get(name), shrink(picture(int(name)), (16, 16))
            assert np.array_equal(found.image, expected.image)
            assert found.size == expected.size
    assert reads == ["1", "0", "2", "2", "2"]


def test_too_little_shared_memory_is_told(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(ValueError, match=r"up to 0.2 GiB of shared memory for 300 images, .* data.cache=disk"):
        RamCache([str(number) for number in range(300)], (512, 512), lambda name: Small(np.zeros(0), (0, 0)))


def test_disk_reads_once_for_all_runs_until_the_file_or_the_size_changes(tmp_path):
    file, reads = tmp_path / "a.png", []

    def draw(seed):
        Image.fromarray(picture(seed)).save(file)

    def read(name):
        reads.append(name)
        return shrink(np.asarray(Image.open(file)), (16, 16))

    def get(box=(16, 16)):
        return DiskCache(tmp_path / "kept", box, read, lambda name: file).get("a").image

    draw(0)
    assert np.array_equal(get(), get())
    assert len(reads) == 1
    draw(1)
    assert np.array_equal(get(), shrink(picture(1), (16, 16)).image)
    assert len(reads) == 2
    stat = file.stat()  # the same size, another time
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    get()
    assert len(reads) == 3
    get((8, 8))
    assert len(reads) == 4
    for kept in (tmp_path / "kept").iterdir():  # as a full disk leaves it
        kept.write_bytes(kept.read_bytes()[:-1])
    assert np.array_equal(get(), shrink(picture(1), (16, 16)).image)
    assert len(reads) == 5
    get()
    assert len(reads) == 5
    assert all(kept.suffix == ".bin" for kept in (tmp_path / "kept").iterdir())  # no scratch file stays


def test_disk_is_for_files(tmp_path):
    data = Synthetic(train=4, val=1, test=1, cache="disk", cache_dir=str(tmp_path))
    data.prepare_data()
    with pytest.raises(ValueError, match=r"images that come from files: use data.cache=ram"):
        data.train_dataloader()


# In a data module -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_loaders_deliver_the_same_with_and_without(kind, workers, folder, tmp_path, monkeypatch):
    expected = samples(own(folder, tmp_path, num_workers=workers), epochs=2)
    data = own(folder, tmp_path, num_workers=workers, cache=kind)
    assert_same(samples(data), expected[: len(expected) // 2])
    if kind == "disk":
        data = own(folder, tmp_path, num_workers=workers, cache=kind)

    def broken(name):
        raise AssertionError(f"{name} was read again")

    # workers of the next epoch find what those of the first one read
    monkeypatch.setattr(data, "image", broken)
    assert_same(samples(data), expected[len(expected) // 2 :])


def test_spawned_workers_share_the_memory(folder, tmp_path, monkeypatch):
    data = own(folder, tmp_path, cache="ram", num_workers=0)
    expected = samples(own(folder, tmp_path, num_workers=0))[-1]
    data.prepare_data()
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, unsendable=lambda: None)
    images = data.val_dataloader().dataset
    (found,) = list(DataLoader(images, sampler=[len(images) - 1], num_workers=1, multiprocessing_context="spawn"))
    assert_same(found, expected)
    monkeypatch.setattr(data, "image", None)
    assert np.array_equal(data.kept.get(images.names[-1]).image, expected["image"][0])


def test_predicted_images_are_not_kept(folder, tmp_path):
    data = Photos(["a", "b"], [[0, 0, 0], [9, 9, 9]], cache="ram", num_workers=0, cache_dir=str(tmp_path))
    data.show(folder / "images")
    assert len(list(data.predict_dataloader())) == 12
    assert data.kept is None


def test_training_through_the_command_is_bit_identical(folder, tmp_path):
    config = tmp_path / "folder.yaml"
    options = f"root: {folder}, batch_size: 4, size: 32, cache_dir: {tmp_path / 'cache'}"
    config.write_text(f"data: {{class_path: Folder, init_args: {{{options}}}}}\ntrainer: {{max_steps: 4}}\n")
    weights = {}
    for kind in ("none", *KINDS):
        fit_tiny(tmp_path / kind, "--config", config, f"--data.init_args.cache={kind}")
        checkpoint = torch.load(tmp_path / kind / "checkpoints" / "last.ckpt", weights_only=True)
        weights[kind] = checkpoint["state_dict"]
    assert len(list((tmp_path / "cache" / "images").glob("*.bin"))) > 4
    for kind in KINDS:
        assert_same(weights[kind], weights["none"])


@pytest.mark.parametrize("fault", ["short", "long", "empty", "absurd size"])
def test_a_broken_record_is_named_and_read_again(fault, folder, tmp_path):
    data = own(folder, tmp_path, cache="disk")
    name = data.names("train")[0]
    cache = DiskCache(tmp_path / "images", data.size, data.small_image, data.image_file)
    expected = cache.get(name)
    path = cache.path(name)
    whole = path.read_bytes()
    absurd = b"\xff\xff\xff\x7f" * 4 + whole[16:]
    path.write_bytes({"short": whole[:-1], "long": whole + b"x", "empty": b"", "absurd size": absurd}[fault])
    with pytest.warns(UserWarning, match=f"{path.name} is broken"):
        assert np.array_equal(cache.get(name).image, expected.image)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(("error", "told"), [
    (OSError(errno.ENOSPC, "No space left on device"), True),
    (OSError(errno.EROFS, "Read-only file system", "elsewhere"), True),
    (PermissionError(errno.EACCES, "Permission denied", "cache/images"), True),
    (PermissionError(errno.EACCES, "Permission denied", "photos/1.jpg"), False),
    (OSError("broken picture"), False),
])  # fmt: skip
def test_only_errors_of_writing_the_cache_name_it(error, told):
    with pytest.raises(OSError, match=r"\w") as found, writing(Path("cache")):
        raise error
    assert ("set WEAKSEG_CACHE" in str(found.value)) == told
    assert (found.value is error) != told
