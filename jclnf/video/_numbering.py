"""The numbers of frames that are images of a folder."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise


def natural(name: str) -> list[tuple[int, int | str]]:
    """A key that sorts `frame10` behind `frame9`."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part)) if part.isdecimal() else (1, part.lower()) for part in parts]


def frame_numbers(names: Sequence[str]) -> list[int]:
    """The frames' numbers, from 1, of images in the order of the numbers in their names.

    A number that is left out in the names is left out here. Where the names do not differ by one
    number alone, or its steps are no multiples of the commonest one (as of time stamps), images are
    counted.
    """
    counted = list(range(1, len(names) + 1))
    parts = [re.split(r"(\d+)", name) for name in names]
    if len({tuple(p[::2]) for p in parts}) != 1:
        return counted
    fields = list(zip(*(p[1::2] for p in parts), strict=True))
    varying = [list(map(int, column)) for column in fields if len(set(column)) > 1]
    if len(varying) != 1:
        return counted
    numbers = varying[0]
    steps = [after - before for before, after in pairwise(numbers)]
    commonest = min(Counter(steps).most_common(), key=lambda item: (-item[1], item[0]))[0]
    if min(steps) < 1 or math.gcd(*steps) != commonest:
        return counted
    return [(number - numbers[0]) // commonest + 1 for number in numbers]
