"""OpenFace's text file of when a start needs no others: weights, biases, cutoffs, one a view."""

from pathlib import Path

from jclnf.openface._ccnf import MAX_VIEWS
from jclnf.openface._early_termination import EarlyTermination
from jclnf.openface._text import read_text
from jclnf.openface._views import NumberReader
from jclnf.params import to_device

MAX_BYTES = 2**16


def read_early_termination(path: Path, *, missing: str = "no such file") -> EarlyTermination:
    """Read the rule of a text file, such as OpenFace's `early_term_cen_of.txt`.

    Args:
        path: the file.
        missing: what to say if it is not there.

    Raises:
        ModelFileError: not a file of finite numbers, or not three for each of some views.
    """
    data = read_text(path, MAX_BYTES, missing=missing)
    reader = NumberReader(path, data)
    numbers = reader.rest("early termination", 3 * MAX_VIEWS)
    if len(numbers) % 3 or len(numbers) == 0:
        problem = f"{len(numbers)} numbers, not a weight, a bias and a cutoff for each view"
        raise reader.error(problem)
    weight, bias, cutoff = map(to_device, numbers.reshape(3, -1))
    return EarlyTermination(weight, bias, cutoff)
