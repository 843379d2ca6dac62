"""Image tags: from masks, from files of people who have no mask, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from common.ops.batch import IGNORE, check_tags
from conftest import draw_folder
from datamodules.sets.folder import Folder
from datamodules.sets.synthetic import Synthetic
from datamodules.sets.textures import Textures
from datamodules.supervision import Supervision

TAGS = Supervision(kind="tags")


def synthetic(cache, **options):
    data = Synthetic(
        train=7, val=2, test=2, side=40, size=32, batch_size=2, num_workers=0, cache_dir=str(cache), **options
    )
    data.prepare_data()
    return data


def objects(mask, count):
    """Which classes but background occur in a mask."""
    return [number > 0 and bool((mask == number).any()) for number in range(count)]


# From masks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dense_images", [0, 3])
def test_tags_are_the_objects_of_the_masks_and_background_is_nobodys(dense_images, tmp_path):
    data = synthetic(tmp_path, supervision=Supervision(kind="tags", dense_images=dense_images))
    dense = set()
    for batch, _, _ in data.train_dataloader():
        labeled = data.ready(batch)["labeled"]
        for name, tags, mask in zip(labeled["name"], labeled["tags"], labeled["mask"], strict=True):
            assert tags.tolist() == objects(data.mask(name), 6)
            dense |= {name} if (mask != IGNORE).any() else set()
    assert len(dense) <= dense_images
    assert bool(dense) == bool(dense_images)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            ready = data.ready(batch)
            assert ready["tags"].tolist() == [objects(ready["mask"].numpy(), 6)]
    report = data.annotation_report()
    counts = np.sum([objects(data.mask(name), 6) for name in data.names("train")], 0)
    assert report["images_per_tag"] == {c: n for c, n in zip(data.class_names, counts, strict=True) if n}


def test_an_object_that_is_lost_when_a_mask_shrinks_is_tagged(tmp_path):
    root = draw_folder(tmp_path / "data")
    mask = np.zeros((31, 44), np.uint8)
    mask[30, 43] = 2
    Image.fromarray(mask).save(root / "masks" / "0.png")
    (root / "classes.txt").write_text("background\nred thing\nblue thing\n")
    data = Folder(str(root), size=4, num_workers=0, cache_dir=str(tmp_path / "cache"), supervision=TAGS)
    data.keep_strokes = False
    data.prepare_data()
    assert json.loads((data.annotation_dir() / "tags.json").read_text())["0"] == [False, False, True]
    assert not (np.asarray(Image.open(data.annotation_dir() / "0.png")) == 2).any()


def test_without_background_first_tags_are_refused_with_the_reason(tmp_path):
    check_tags(synthetic(tmp_path, supervision=TAGS))
    with pytest.raises(ValueError, match=r"Textures has none \(its classes are rows, columns\)"):
        check_tags(Textures(supervision=TAGS))
    root = draw_folder(tmp_path / "data")
    with pytest.raises(ValueError, match="Folder has none"):
        check_tags(Folder(str(root), supervision=TAGS))
    (root / "classes.txt").write_text("red thing\nbackground\nblue thing\n")
    with pytest.raises(ValueError, match="Folder has it in another place"):
        check_tags(Folder(str(root), supervision=TAGS))
