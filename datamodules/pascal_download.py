"""Getting PASCAL VOC 2012 and the masks of SBD, through torchvision."""

from __future__ import annotations

import shutil
from pathlib import Path

from common.training.files import folder_written_whole
from datamodules.files import find_images

VOC = Path("VOCdevkit", "VOC2012")


def download(root: Path, masks: str = "SegmentationClassAug") -> None:
    """Download what `root` lacks. `SegmentationClassAug` holds VOC's own masks and, of the other images, those of SBD:
    12,031 in all.

    Raises:
        ConnectionError: no network; says what to get by hand.
    """
    from torchvision.datasets import SBDataset, VOCSegmentation

    folder, sbd = root / VOC, root / "SBD"
    try:
        if not (folder / "JPEGImages").is_dir():
            VOCSegmentation(root, year="2012", image_set="trainval", download=True)
        if (folder / masks).is_dir():
            return
        if not (sbd / "cls").is_dir():
            SBDataset(str(sbd), download=True)
    except (OSError, RuntimeError) as error:
        raise ConnectionError(
            f"PASCAL VOC cannot be downloaded ({error}): get VOCtrainval_11-May-2012.tar, and SegmentationClassAug "
            f"or SBD's benchmark.tgz, by hand, so that there are {folder / 'JPEGImages'} and {folder / masks}"
        ) from error
    fine = find_images(folder / "SegmentationClass")
    with folder_written_whole(folder / masks) as part:
        shutil.copytree(folder / "SegmentationClass", part, dirs_exist_ok=True)
        for split in ("train", "val"):
            coarse = SBDataset(str(sbd), image_set=split, mode="segmentation")
            for number, path in enumerate(coarse.masks):
                if (name := Path(path).stem) not in fine:
                    coarse[number][1].save(part / f"{name}.png")
