from ._photographs import FACES as FACES
from ._photographs import PhotographSettings as PhotographSettings
from ._photographs import Shard as Shard
from ._photographs import fit_photographs as fit_photographs
from ._videos import REPORT as REPORT
from ._videos import process_videos as process_videos

__all__ = [
    "FACES",
    "REPORT",
    "PhotographSettings",
    "Shard",
    "fit_photographs",
    "process_videos",
]
