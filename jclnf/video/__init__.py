"""From a video to tables and pictures: reading, tracking, writing, and going on after a stop."""

from jclnf.video._derived import one_euro
from jclnf.video._job import Done, do_video, load
from jclnf.video._settings import Settings
from jclnf.video._source import VIDEO_SUFFIXES, Camera, Source

__all__ = [
    "VIDEO_SUFFIXES",
    "Camera",
    "Done",
    "Settings",
    "Source",
    "do_video",
    "load",
    "one_euro",
]
