"""Annotations as dlib's tools write them: an XML file of images, boxes and parts.

    <dataset><images><image file='a.jpg'><box top='9' left='8' width='70' height='80'>
    <part name='00' x='12' y='30'/> ... </box></image></images></dataset>

Coordinates count from 0.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np

from jclnf.annotations._face import AnnotatedFace
from jclnf.annotations._text import Entries, contents, number
from jclnf.errors import AnnotationError


@dataclass
class _Box:
    """A box of dlib's XML while it is read."""

    place: str
    image: str
    box: list[float]
    ignored: bool
    parts: dict[int, tuple[float, float]] = field(default_factory=dict)


class _Handler:
    """Takes the elements of dlib's XML as they come, so that depth and size cost no memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parser = expat.ParserCreate()
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end
        # What declares entities can make a small file grow without bound, or name other files.
        self.parser.StartDoctypeDeclHandler = self.refuse
        self.image: str | None = None
        self.box: _Box | None = None
        self.boxes: list[_Box] = []

    @property
    def place(self) -> str:
        return f"{self.path}, line {self.parser.CurrentLineNumber}"

    def refuse(self, *_: Any) -> None:
        raise AnnotationError(f"{self.place}: a DOCTYPE, which is not read: remove it")

    def value(self, attributes: dict[str, str], name: str) -> str:
        if name not in attributes:
            raise AnnotationError(f"{self.place}: the attribute {name!r} is missing")
        return attributes[name]

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "image":
            self.image = self.value(attributes, "file")
        elif name == "box":
            if self.image is None:
                raise AnnotationError(f"{self.place}: a box outside any image")
            sides = [self.value(attributes, k) for k in ("left", "top", "width", "height")]
            numbers = [number(self.place, side) for side in sides]
            ignored = attributes.get("ignore", "0") not in ("0", "false")
            self.box = _Box(self.place, self.image, numbers, ignored)
        elif name == "part":
            if self.box is None:
                raise AnnotationError(f"{self.place}: a part outside any box")
            label = self.value(attributes, "name")
            if not re.fullmatch(r"[0-9]{1,4}", label):
                raise AnnotationError(f"{self.place}: the part {label[:40]!r} is not a number")
            if int(label) in self.box.parts:
                raise AnnotationError(f"{self.place}: the part {label!r} is there twice")
            x, y = (number(self.place, self.value(attributes, axis)) for axis in "xy")
            self.box.parts[int(label)] = (x, y)

    def end(self, name: str) -> None:
        if name == "image":
            self.image = None
        elif name == "box" and self.box is not None:
            if not self.box.ignored:
                self.boxes.append(self.box)
            self.box = None


def read_xml(path: Path) -> Entries:
    """The faces of an XML file, without those marked as ignored."""
    data, handler = contents(path), _Handler(path)
    try:
        handler.parser.Parse(data, True)
    except AnnotationError:
        raise
    except (expat.ExpatError, LookupError, ValueError) as e:  # all but the first: its encoding
        raise AnnotationError(f"{path}: not whole or not XML: {e}") from e
    for box in handler.boxes:
        n = len(box.parts)
        if n == 0:
            raise AnnotationError(
                f"{box.place}: a box without parts: annotate it, or mark it as ignore='1'"
            )
        missing = [i for i in range(n) if i not in box.parts]
        if missing:
            raise AnnotationError(f"{box.place}: {n} parts, but none of the name {missing[0]}")
        points = np.array([box.parts[i] for i in range(n)])
        yield box.place, AnnotatedFace(path.parent / box.image, points, np.array(box.box))
