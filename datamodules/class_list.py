"""Lists of classes: ours, and those of other tools."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from common.ops.batch import IGNORE
from datamodules.files import VOID_NAMES, ClassInfo, Color, default_color
from datamodules.text import normal, read_lines

FILES = ("classes.txt", "labels.txt", "labelmap.txt")
LIKE = re.compile(r"[^.]*(?:class|label).*\.(?:txt|csv|names|json|ya?ml)|[^.]*\.names", re.IGNORECASE)
# What columns are called in a header, with the numbers in front of the names and the colours behind them.
NUMBERS = {"id", "index", "value", "number", "class_id", "label_id"}
NAMES = {"name", "names", "class", "classes", "label", "labels", "category", "class_name", "label_name"}
COLORS = [words.split() for words in ("", "r g b", "red green blue", "color", "colour", "rgb", "hex", "color_rgb")]
RGB = r"[(\[]?(?P<r>\d+)[\s,;]+(?P<g>\d+)[\s,;]+(?P<b>\d+)[)\]]?"
CVAT = re.compile(rf"(?P<name>[^:]+):(?:{RGB})?:[^:]*:[^:]*")
LINE = re.compile(rf"(?P<name>.+?)(?:[\s,;:]+(?:#(?P<code>[0-9a-fA-F]{{6}})|{RGB}))?[\s,;]*")
NUMBERED = re.compile(r"(\d+)[\s,;:.)=]+(?=.*[^\W\d])(.+)")
NO_NAME = re.compile(r"\W*|[-*] .*|[\[{<].*")  # lines of JSON, YAML and XML


class ClassList(NamedTuple):
    """A list of classes.

    Attributes:
        classes: in the order of their ids.
        palette: class id of each given colour.
        void_before: a void that stands before a class, which leaves open whether it counts among the ids of masks: what
            is wrong and the way out.
    """

    classes: list[ClassInfo]
    palette: dict[Color, int]
    void_before: str | None


def is_void(name: str) -> bool:
    """Whether a name stands for no label; labelme writes `__ignore__`."""
    return name.strip("_ ").lower() in VOID_NAMES


def background_of(names: Sequence[str]) -> int | None:
    """The id of the class called background, or as in labelme `_background_`."""
    return next((number for number, name in enumerate(names) if name.strip("_ ").lower() == "background"), None)


def class_file(folder: Path) -> Path:
    """The list of classes of a folder: `classes.txt`, or else the file of another tool.

    Raises:
        FileNotFoundError: there is none.
        ValueError: two of other tools.
    """
    found = [folder / name for name in FILES if (folder / name).is_file()]
    if not found:
        return folder / FILES[0]
    if len(found) > 1 and found[0].name != FILES[0]:
        raise ValueError(f"{folder} has {' and '.join(one.name for one in found)}: call the one that holds {FILES[0]}")
    return found[0]


def read_classes(path: Path) -> ClassList:
    """A class file: one class a line, `name`, `name r g b` or `name #rrggbb`; the first line is class 0.

    Lines of CVAT's `labelmap.txt` (`name:r,g,b::`), labelme's names, a header, and numbers in front of all lines are
    understood. A class without a colour gets one. A line named void, ignore, `__ignore__` or unlabelled is no class;
    its colour stands for 255. Blank lines and lines that begin with `#` are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: fewer than two or more than 255 classes, another encoding than UTF-8, a line that cannot be read, a
            number out of order, or a name or colour given twice.
    """
    if not path.is_file():
        near = [one.name for one in sorted(path.parent.glob("*.*")) if LIKE.fullmatch(one.name)]
        raise FileNotFoundError(
            f"{path} does not exist: write one class name a line, the first is class 0"
            + (f"; there is {', '.join(near)}, call it {path.name} if it is this" if near else "")
        )
    lines = [(number, normal(line).strip()) for number, line in enumerate(read_lines(path), 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if lines and _is_header(path, *lines[0]):
        lines = lines[1:]
    numbered = bool(lines) and NUMBERED.fullmatch(lines[0][1]) is not None
    classes: list[ClassInfo] = []
    palette: dict[Color, int] = {}
    voids: list[str] = []
    void_before = None
    for at, (number, line) in enumerate(lines):
        where, match = f"{path}, line {number}", NUMBERED.fullmatch(line) if numbered else None
        if numbered and not match:
            raise ValueError(f"{where}: '{line}' has no number in front, as others have: number all lines or none")
        name, color = _parse(where, match[2] if match else line)
        if color in palette or name in (known.name for known in classes):
            raise ValueError(f"{where}: '{line}' repeats a name or a colour")
        if color:
            palette[color] = IGNORE if is_void(name) else len(classes)
        if is_void(name):
            if (at, name) != (0, "__ignore__"):  # labelme's ids begin with 0 after this first line
                voids.append(
                    f"{where}, '{line}', stands before a class: does it count among the numbers of masks? if not, put "
                    f"it last; if so, give data.mask_values ({{{len(classes)}: ignore, {len(classes) + 1}: NAME}}, ...)"
                )
            continue
        if match and int(match[1]) not in (len(classes), len(classes) + len(voids)):
            raise ValueError(
                f"{where}: '{line}' is class {len(classes)}, not {match[1]}: number the classes 0, 1, 2 and so on in "
                "order; data.mask_values says which value of a mask is which"
            )
        void_before = void_before or (voids[0] if voids else None)
        classes.append(ClassInfo(name, color or default_color(len(classes))))
    if lines and len(palette) == len(lines) - 1 > 0 and re.search(r"[,;\t]|\S\s+\S+\s+\S", lines[0][1]):
        number, line = lines[0]
        if _parse(f"{path}, line {number}", line)[1] is None:
            raise ValueError(
                f"{path}, line {number}: '{line}' has no colour, as all others have: is it a header? remove it"
            )
    if not 2 <= len(classes) <= IGNORE:
        raise ValueError(
            f"{path} names {len(classes)} classes, at least 2 are needed (background is one of them) and at most "
            f"{IGNORE} can be told apart in 8 bits ({IGNORE} is no label)"
        )
    return ClassList(classes, palette, void_before)


def _is_header(path: Path, number: int, line: str) -> bool:
    """Whether a first line names columns. Others than those that are read are refused, a single word too: with it as a
    class all ids would be one too high."""
    words = [word.strip("\"'") for word in re.split(r"[\s,;:]+", line.lower()) if word.strip("\"'")]
    if (
        not words
        or not {*words} <= NUMBERS | NAMES | {word for color in COLORS for word in color}
        or not {*words} & NAMES
    ):
        return False
    rest = words[1:] if words[0] in NUMBERS else words
    if len(words) == 1 or rest[0] not in NAMES or rest[1:] not in COLORS:
        raise ValueError(
            f"{path}, line {number}: '{line}' looks like a header; the columns that are read are `name`, `name r g b` "
            "and `number name r g b`: put them in this order, or remove the line"
        )
    return True


def _parse(where: str, text: str) -> tuple[str, Color | None]:
    """The name and the colour of a line."""
    form = f"{where}: '{text}' is not `name`, `name r g b` or `name #rrggbb`"
    match = CVAT.fullmatch(text) or LINE.fullmatch(text)
    assert match is not None  # the name takes anything
    groups = match.groupdict()
    name, code, rgb = groups["name"].strip(" \t\"'"), groups.get("code"), [groups[band] for band in "rgb"]
    behind = re.findall(r"(?<=[\s,;:])-?[\d.]+(?=[\s,;]|$)", f"{name} ")
    if (
        "#" in name
        or NO_NAME.fullmatch(name)
        or len(behind) > (0 if code or rgb[0] else 1)
        or re.search(r"[,;:=\t]\s*-?[\d.]+$", name)
    ):
        raise ValueError(form)
    if not code and not rgb[0]:
        return name, None
    r, g, b = (int(code[i : i + 2], 16) for i in (0, 2, 4)) if code else map(int, rgb)
    if max(r, g, b) > 255:
        raise ValueError(f"{where}: colour values go from 0 to 255, got {(r, g, b)}")
    return name, (r, g, b)
