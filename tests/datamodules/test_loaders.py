"""Data modules in plain Python, without a trainer: loaders, and batches as methods get them."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import datamodules
from common.model.module import SegmentationModule
from common.ops.batch import IGNORE, check_batch
from conftest import draw_folder
from datamodules.augmentation import stream_seed
from datamodules.photos import Photos
from datamodules.sets.folder import Folder
from datamodules.sets.synthetic import Synthetic
from datamodules.supervision import Supervision
from datamodules.transforms import draw_uniform, random_crop
from methods import Supervised


def synthetic(tmp_path, **options):
    sizes = {"train": 7, "val": 2, "test": 3, "side": 40, "size": 32, "crop": [24, 28], "batch_size": 2}
    data = Synthetic(**sizes, num_workers=0, cache_dir=str(tmp_path), **options)
    data.prepare_data()
    return data


def epoch(data, loader):
    return [data.ready(batch) for batch, _, _ in loader]


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]) if isinstance(value, torch.Tensor) else value == two[name]


def test_training_batches_keep_the_contract(tmp_path):
    data = synthetic(tmp_path, unlabeled_batch_size=3, unlabeled_pool="all", strong_views=2)
    batches = epoch(data, data.train_dataloader())
    assert len(batches) == 3
    for batch in batches:
        assert tuple(batch) == ("labeled", "unlabeled")
        for stream, count in (("labeled", 2), ("unlabeled", 3)):
            check_batch(batch[stream], data.num_classes)
            assert batch[stream]["image"].shape == (count, 3, 24, 28)
            assert batch[stream]["key"].shape == batch[stream]["size"].shape == (count, 2)
            assert not {"draws", "strong_draws", "extent"} & batch[stream].keys()
        assert (batch["unlabeled"]["mask"] == IGNORE).all()
        assert batch["unlabeled"]["strong"].shape == (3, 2, 3, 24, 28)
        assert "strong" not in batch["labeled"]


@pytest.mark.parametrize("train", [3, 7, 21])
def test_accumulated_parts_are_those_of_whole_steps(train, tmp_path):
    """Also with fewer images than a step has, and where they do not divide."""
    steps = {}
    for parts in (1, 2, 4):
        data = Synthetic(train=train, val=2, test=2, side=40, size=32, crop=[24, 28], batch_size=8,
                         num_workers=0, cache_dir=str(tmp_path))  # fmt: skip
        data.prepare_data()
        data.accumulation = parts
        names = [name for batch in epoch(data, data.train_dataloader()) for name in batch["labeled"]["name"]]
        assert len(names) == 8 * max(1, train // 8)
        steps[parts] = names
    assert steps[1] == steps[2] == steps[4]


def test_a_batch_is_made_ready_by_the_hooks_of_a_trainer_and_stays_as_it_was(tmp_path):
    data = synthetic(tmp_path)
    batch = next(iter(data.train_dataloader()))[0]
    before = {name: value.clone() for name, value in batch["labeled"].items() if isinstance(value, torch.Tensor)}
    ready = data.ready(batch)
    assert_same(ready["labeled"], data.ready(batch, "cpu")["labeled"])
    hooked = data.on_after_batch_transfer(data.on_before_batch_transfer(batch, 0), 0)
    assert_same(ready["labeled"], hooked["labeled"])
    assert {*batch["labeled"]} == {*before, "name"}
    assert all(torch.equal(batch["labeled"][name], value) for name, value in before.items())


@pytest.mark.parametrize("workers", [0, 1])
def test_epochs_differ_and_come_again_with_a_new_loader(tmp_path, workers):
    data = synthetic(tmp_path, unlabeled_batch_size=2, unlabeled_pool="all")
    data.num_workers = workers
    loader = data.train_dataloader()
    first, second = epoch(data, loader), epoch(data, loader)
    for number, batches in enumerate((first, second)):
        assert len(batches) == 3
        assert all((batch[stream]["key"][:, 0] == number).all() for batch in batches for stream in data.streams)
    assert not torch.equal(first[0]["labeled"]["image"], second[0]["labeled"]["image"])
    for one, two in zip(first, epoch(data, data.train_dataloader()), strict=True):
        for stream in data.streams:
            assert_same(one[stream], two[stream])


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_batches_hold_whole_images(tmp_path, workers):
    data = synthetic(tmp_path)
    data.num_workers = workers
    for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        names = data.names(split)
        assert len(loader) == len(names)
        for name, batch in zip(names, loader, strict=True):
            ready = data.ready(batch)
            check_batch({**ready, "mask": ready["mask"][:, :32, :32], "valid": ready["valid"][:, :32, :32]}, 6)
            assert ready["name"] == [name]
            assert (ready["mask"][0].numpy() == data.mask(name)).all()
            assert ready["valid"].all()
            assert_same(ready, data.evaluation_batch(data.image(name), data.mask(name), name))


def test_an_image_of_ones_own_is_predicted(tmp_path):
    data = synthetic(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    batch = data.evaluation_batch(image)
    assert batch["image"].shape == (1, 3, 19, 32)  # fits inside `size`
    assert batch["mask"].shape == batch["valid"].shape == (1, 30, 50)
    assert (batch["mask"] == IGNORE).all()
    assert batch["size"].tolist() == [[30, 50]]
    model: SegmentationModule = Supervised(num_classes=6).eval()
    with torch.inference_mode():
        assert model.predict_step(batch, 0)["labels"].shape == (1, 30, 50)
    with pytest.raises(ValueError, match=r"image 'a' is 30 x 50 pixels but its mask 50 x 30"):
        data.evaluation_batch(image, np.zeros((50, 30), np.uint8), "a")


def test_a_folder_to_predict(tmp_path):
    root = draw_folder(tmp_path / "own")
    (root / "images" / "day 2").mkdir()
    shutil.copy(root / "images" / "1.png", root / "images" / "day 2" / "1.png")
    (root / "images" / "broken.png").write_bytes(b"no picture")
    data = Photos(["a", "b"], [[0, 0, 0], [9, 9, 9]], size=[32, 40], num_workers=0)
    data.show(root / "images")
    batches = [data.ready(batch) for batch in data.predict_dataloader()]
    assert [batch["name"][0] for batch in batches] == [*map(str, range(10)), "broken", "day 2/1"]
    assert all((batch["mask"] == IGNORE).all() for batch in batches)
    assert ["error" in batch for batch in batches] == [False] * 10 + [True, False]
    assert "broken.png" in batches[10]["error"][0]
    assert torch.equal(batches[1]["image"], batches[11]["image"])
    assert [*data.show(root / "images" / "3.png")] == ["3"]


@pytest.mark.parametrize("sides", [{"size": 0}, {"size": [48]}, {"size": -5}, {"crop": [0, 0]}, {"crop": [8, 8, 8]}])
def test_sides_that_are_none_are_refused(sides):
    with pytest.raises(ValueError, match=rf"data.{min(sides)} is \[height, width\] in pixels, at least 1"):
        Synthetic(**sides)


def test_bad_streams_are_told_without_setup(tmp_path):
    with pytest.raises(ValueError, match=r"every training image is labelled.*data.unlabeled_pool=all"):
        synthetic(tmp_path, unlabeled_batch_size=2).train_dataloader()
    with pytest.raises(ValueError, match="kind none labels no image"):
        synthetic(tmp_path, supervision=Supervision(kind="none")).train_dataloader()
    data = synthetic(tmp_path)
    data.accumulation = 3
    with pytest.raises(ValueError, match="a batch of 2 cannot be split into 3"):
        data.train_dataloader()


def test_tags_are_in_the_batch_where_they_are_the_label(tmp_path):
    data = synthetic(tmp_path, supervision=Supervision(kind="tags"))
    for batch in epoch(data, data.train_dataloader()):
        labeled = batch["labeled"]
        assert (labeled["mask"] == IGNORE).all()
        assert labeled["tags"].shape == (2, 6)
        assert labeled["tags"].dtype == torch.bool
    written = json.loads((data.annotation_dir() / "tags.json").read_text())
    assert labeled["tags"].tolist() == [written[name] for name in labeled["name"]]


def test_every_data_set_is_found():
    assert {"Synthetic", "Textures", "Folder", "PascalVOC", "WeizmannHorse"} <= {*datamodules.CLASSES}


# Images at their own size ------------------------------------------------------------------------------------------


NATIVE = {"size": "native", "crop": [24, 28], "batch_size": 3, "num_workers": 0, "seed": 5, "unlabeled_batch_size": 3}


@pytest.mark.parametrize("cache", ["none", "disk"])
@pytest.mark.parametrize("scale", [[1.0, 1.0], [0.4, 2.5]])
def test_crops_of_images_at_their_own_size_are_those_of_the_whole_image(scale, cache, tmp_path):
    how = {**NATIVE, "unlabeled_pool": "all", "scale": scale, "cache_dir": str(tmp_path / "cache"), "cache": cache}
    data = Folder(str(draw_folder(tmp_path / "data")), **how)
    data.prepare_data()
    batches = [batch for batch, _, _ in data.train_dataloader()]
    assert len(batches) == 2
    for batch in batches:
        most = max(-(-24 // scale[0]), -(-28 // scale[0])) + 6  # what is sent does not grow with the image
        assert max(batch["labeled"]["image"].shape[-2:]) <= most
        for stream, ready in data.ready(batch).items():
            check_batch(ready, data.num_classes)
            for number, name in enumerate(ready["name"]):
                image, mask = data.image(name), data.mask(name)
                if stream == "unlabeled":
                    mask = np.full_like(mask, IGNORE)
                draws = draw_uniform(stream_seed(5, stream), ready["key"][number : number + 1])
                extent = torch.tensor([mask.shape])
                assert ready["size"][number].tolist() == [*mask.shape]
                whole = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
                found = random_crop(whole, torch.from_numpy(mask)[None], extent, draws, (24, 28), tuple(scale), True)
                torch.testing.assert_close(ready["image"][number], found[0][0], atol=1e-4, rtol=0)
                assert (ready["mask"][number] == found[1][0]).float().mean() > 0.995  # a tie of the nearest pixel
                assert torch.equal(ready["valid"][number], found[2][0])


def test_annotations_and_evaluation_images_of_native_size_are_not_resized(tmp_path):
    data = Folder(str(draw_folder(tmp_path / "data")), **NATIVE, unlabeled_pool="all", cache_dir=str(tmp_path / "c"))
    data.prepare_data()
    for name in data.lists()[0]:
        drawn = np.asarray(Image.open(data.annotation_dir() / f"{name}.png"))
        assert (drawn == data.mask(name)).all()
    for batch in data.val_dataloader():
        ready = data.ready(batch)
        assert ready["image"].shape[-2:] == ready["mask"].shape[-2:]
        image = torch.from_numpy(data.image(ready["name"][0])).permute(2, 0, 1)
        assert torch.equal(ready["image"][0], image / 255)


@pytest.mark.parametrize(("options", "message"), [({"crop": None}, "needs data.crop"), ({"cache": "ram"}, "use disk")])
def test_what_native_size_cannot_be_without_or_with_is_told(options, message):
    with pytest.raises(ValueError, match=message):
        Synthetic(**NATIVE | options)


# Superpixels and groups --------------------------------------------------------------------------------------------


def test_superpixels_are_cut_as_the_image_is_and_computed_once(tmp_path, monkeypatch):
    data = synthetic(tmp_path, superpixels=20, scale=[0.5, 1.5])
    first = epoch(data, data.train_dataloader())
    (folder,) = tmp_path.glob("*/superpixels-20")
    assert len([*folder.rglob("*.png")]) == 6  # of seven images: three batches of two
    kept = {path.stem: np.asarray(Image.open(path)) for path in folder.rglob("*.png")}
    for labeled in (batch["labeled"] for batch in first):
        segments = labeled["superpixels"]
        assert segments.shape == (2, 24, 28)
        assert segments.dtype == torch.int64
        assert torch.equal(segments == 0, ~labeled["valid"])
        for name, found, valid in zip(labeled["name"], segments, labeled["valid"], strict=True):
            assert {*found[valid].tolist()} <= {*np.unique(kept[name]).tolist()}
    monkeypatch.setattr("datamodules.superpixels.segments", None)  # nothing is computed again
    again = epoch(data, data.train_dataloader())
    assert all(
        torch.equal(a["labeled"]["superpixels"], b["labeled"]["superpixels"]) for a, b in zip(first, again, strict=True)
    )
    # The same geometry as the image's: a picture of the segments themselves is cut to them.
    batch = next(iter(data.train_dataloader()))[0]
    picture = batch["labeled"]["superpixels"].to(torch.uint8)
    batch["labeled"]["image"] = picture[:, None].expand(-1, 3, -1, -1)
    batch["labeled"]["mask"] = picture
    labeled = data.ready(batch)["labeled"]
    assert torch.equal(labeled["mask"][labeled["valid"]], labeled["superpixels"][labeled["valid"]])


def test_superpixels_of_images_at_their_own_size_are_those_of_the_part(tmp_path):
    data = Synthetic(train=4, val=2, test=2, side=40, size="native", crop=[24, 28], batch_size=2, num_workers=0,
                     cache_dir=str(tmp_path), superpixels=20)  # fmt: skip
    data.prepare_data()
    for batch in epoch(data, data.train_dataloader()):
        segments, valid = batch["labeled"]["superpixels"], batch["labeled"]["valid"]
        assert torch.equal(segments == 0, ~valid)
        assert len(segments.unique()) > 5
    assert not [*tmp_path.glob("*/superpixels-20")]


def test_groups_come_whole_by_their_tags(tmp_path):
    data = synthetic(tmp_path, group=3, supervision=Supervision(kind="tags"))
    tags = json.loads((data.annotation_dir() / "tags.json").read_text())
    for batch in epoch(data, data.train_dataloader()):
        names = batch["labeled"]["name"]
        assert len(names) == 6
        for start in (0, 3):
            anchor = np.array(tags[names[start]])
            for partner in names[start + 1 : start + 3]:
                assert partner == names[start] or (anchor & np.array(tags[partner])).any()
    groups = data.annotation_report()["groups"]
    assert groups["anchors"] + groups["without_tags"] == 7


@pytest.mark.parametrize(("options", "words"), [
    ({"group": 2}, "data.group goes by tags of images, and supervision kind dense has none"),
    ({"group": 2, "class_sampling": 0.1, "supervision": Supervision(kind="boxes")}, "leave one of them out"),
    ({"batch_size": 10**11}, "batch sizes are from 1 to 65536"),
    ({"unlabeled_batch_size": 10**11}, "batch sizes are from 1 to 65536"),
    ({"strong_views": 10**11}, "at most 64"),
    ({"superpixels": 70000}, "data.superpixels is from 0 to 65535"),
])  # fmt: skip
def test_options_out_of_range_or_without_effect_are_refused(options, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        Synthetic(cache_dir=str(tmp_path), **options)
