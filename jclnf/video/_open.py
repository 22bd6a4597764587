"""From a path to the frames that it stands for."""

import os
from pathlib import Path

from jclnf.video._source import FOLDER_RATE, ImageFolder, Source
from jclnf.video._video_file import VideoFile


def open_source(path: str | os.PathLike[str], *, rate: float | None = None) -> Source:
    """Open a video file, or a folder of images in the order of the numbers in their names.

    Args:
        path: the file or folder.
        rate: frames per second of a folder; a video file has its own.

    Raises:
        VideoError: there is no video to be read.
    """
    where = Path(path)
    if where.is_dir():
        return ImageFolder(where, FOLDER_RATE if rate is None else rate)
    return VideoFile(where)
