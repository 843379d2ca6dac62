"""Tiny copies of the published data sets, in their official layouts."""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from datamodules.sets.sift_flow import SCENES

SIZE = (36, 48)


def save(path: Path, array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


def photo(path: Path, seed: int = 0) -> None:
    save(path, np.random.default_rng(seed).integers(0, 256, (*SIZE, 3)))


def labels(low: int, high: int, *more: int):
    """A picture that holds low..high and some values more, in stripes."""
    values = np.array([*range(low, high + 1), *more])
    return np.broadcast_to(values[np.arange(SIZE[1]) * len(values) // SIZE[1]], SIZE)


def draw_voc(root: Path) -> Path:
    """25 images: 10 in train, 5 in val, 10 with an SBD mask alone."""
    voc = root / "VOCdevkit" / "VOC2012"
    names = [f"2007_{number:06d}" for number in range(25)]
    for number, name in enumerate(names):
        photo(voc / "JPEGImages" / f"{name}.jpg", number)
        save(voc / "SegmentationClassAug" / f"{name}.png", labels(0, 20, 255))
        if number < 15:
            picture = Image.fromarray(labels(0, 20, 255).astype(np.uint8))
            picture.putpalette(list(range(256)) * 3)  # indexed, as VOC's are
            (voc / "SegmentationClass").mkdir(exist_ok=True)
            picture.save(voc / "SegmentationClass" / f"{name}.png")
    lists = voc / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(names[:10]))
    (lists / "val.txt").write_text("\n".join(names[10:15]) + "\n")
    return root


def draw_cityscapes(root: Path, kind: str = "labelIds") -> Path:
    for part, city, count in (("train", "aachen", 5), ("train", "jena", 5), ("val", "ulm", 3), ("test", "bonn", 1)):
        for number in range(count):
            stem = f"{city}_{number:06d}_000019"
            photo(root / "leftImg8bit" / part / city / f"{stem}_leftImg8bit.png", number)
            folder = root / "gtFine" / part / city
            save(folder / f"{stem}_gtFine_color.png", np.zeros((*SIZE, 3)))
            mask = labels(0, 33, 255) if kind == "labelIds" else labels(0, 18, 255)
            save(folder / f"{stem}_gtFine_{kind}.png", mask)
    return root


def draw_camvid(root: Path) -> Path:
    for split, count in (("train", 5), ("val", 2), ("test", 3)):
        names = [f"{split}TP_{number:06d}" for number in range(count)]
        for number, name in enumerate(names):
            photo(root / split / f"{name}.png", number)
            save(root / f"{split}annot" / f"{name}.png", labels(0, 11))
        there = "/SegNet/CamVid/"  # the authors' machine
        lines = [f"{there}{split}/{name}.png {there}{split}annot/{name}.png\n" for name in names]
        (root / f"{split}.txt").write_text("".join(lines))
    return root


def draw_stanford(root: Path) -> Path:
    (root / "labels").mkdir(parents=True)
    for number in range(15):
        photo(root / "images" / f"{number:07d}.jpg", number)
        rows = "\n".join(" ".join(map(str, row)) for row in labels(-1, 7).tolist())
        (root / "labels" / f"{number:07d}.regions.txt").write_text(rows + "\n")
    return root


def draw_sift_flow(root: Path) -> Path:
    (root / "SemanticLabels" / SCENES).mkdir(parents=True)
    names = [f"coast_arnat{number}" for number in range(12)]
    for number, name in enumerate(names):
        photo(root / "Images" / SCENES / f"{name}.jpg", number)
        savemat(root / "SemanticLabels" / SCENES / f"{name}.mat", {"S": labels(0, 33).astype(np.uint8)})
    (root / "TestSet1.txt").write_text("".join(f"{SCENES}\\{name}.jpg\r\n" for name in names[::5]))
    return root


def draw_bsds(root: Path) -> Path:
    for split, name in (("train", "12003"), ("val", "3096"), ("test", "2018")):
        photo(root / "data" / "images" / split / f"{name}.jpg")
        folder = root / "data" / "groundTruth" / split
        folder.mkdir(parents=True)
        people = np.empty((1, 3), object)
        for person in range(3):
            people[0, person] = {"Segmentation": labels(1, 2 + person).astype(np.uint16), "Boundaries": labels(0, 1)}
        savemat(folder / f"{name}.mat", {"groundTruth": people})
    return root


def draw_ade20k(root: Path) -> Path:
    for part, kind, count in (("training", "train", 7), ("validation", "val", 3)):
        for number in range(1, count + 1):
            photo(root / "images" / part / f"ADE_{kind}_{number:08d}.jpg", number)
            mask = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % 151  # 0: other
            save(root / "annotations" / part / f"ADE_{kind}_{number:08d}.png", mask)
    rows = [f"{one}\t0.1\t5\t2\t{'screen' if one in (131, 142) else f'thing {one}'}, synonym" for one in range(1, 151)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]) + "\n")
    return root


def draw_coco(root: Path) -> Path:
    for part, count in (("train2017", 7), ("val2017", 3)):
        for number in range(count):
            name = f"{number + 100 * (part == 'val2017'):012d}"
            photo(root / part / f"{name}.jpg", number)
            mask = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % 183
            mask[mask == 182] = 255
            save(root / "stuffthingmaps" / part / f"{name}.png", mask)
    return root


def draw_acdc(root: Path) -> Path:
    """Two slices of each of two frames of four patients; scribbles on those for training."""
    names = {
        split: [f"patient{p:03}_frame{f:02}_slice_{n}" for p in patients for f in (1, 12) for n in range(2)]
        for split, patients in {"train": (1, 5), "val": (3,), "test": (4,)}.items()
    }
    for split, members in names.items():
        (root / f"{split}.txt").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{split}.txt").write_text("\n".join(members) + "\n")
        for number, name in enumerate(members):
            save(root / "images" / f"{name}.png", np.random.default_rng(number).integers(0, 256, SIZE))
            save(root / "masks" / f"{name}.png", labels(0, 3))
            if split == "train":
                strokes = np.full(SIZE, 255)
                strokes[10:12] = labels(0, 3)[10:12]
                save(root / "scribbles" / f"{name}.png", strokes)
    return root


def scribble(*lines, size=SIZE):
    polygons = "".join(
        f"<polygon><tag>{tag}</tag>" + "".join(f"<point><X>{x}</X><Y>{y}</Y></point>" for x, y in points) + "</polygon>"
        for tag, points in lines
    )
    head = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    return f"<annotation><filename>a.jpg</filename>{head}<segmented>1</segmented>{polygons}</annotation>"
