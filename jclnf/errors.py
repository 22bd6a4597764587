"""The errors that jclnf raises on bad input: each names the input and the remedy."""


class JclnfError(ValueError):
    """Base of all errors that jclnf raises about its input."""


class ModelFileError(JclnfError):
    """A model file is missing, truncated, of another kind, or inconsistent.

    The message names the file and, where the trouble has a place, the byte offset or line.
    """

    def __init__(self, path: object, problem: str, *, offset: int | None = None) -> None:
        where = f"{path}" if offset is None else f"{path}, byte {offset}"
        super().__init__(f"{where}: {problem}")


class ImageError(JclnfError):
    """An image cannot be read, or is not one that a face can be fitted in."""


class AnnotationError(JclnfError):
    """Annotated landmarks cannot be read, contradict each other, or name a missing image.

    The message names the file and, where the trouble has a place, the line.
    """


class VideoError(JclnfError):
    """A video cannot be read, or its results cannot be resumed."""


class BoxError(JclnfError):
    """A face box is empty, not finite, too large, or outside its image."""


class DetectorError(JclnfError):
    """There is no such face detector, or what one returned are no boxes."""


class ParamsError(JclnfError):
    """Fit settings that contradict each other or the model."""


class OutputError(JclnfError):
    """An output cannot be written: no place, no right to, or another process is writing it."""


class InstallError(JclnfError):
    """Model files cannot be installed: no room, no network, or not what they should be."""


class TrainingError(JclnfError):
    """Training cannot begin, or go on: too few faces, a checkpoint of another training."""
