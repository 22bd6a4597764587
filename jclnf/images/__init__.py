"""Images: reading files, checking grey arrays, cutting crops around faces."""

from jclnf.images._check import check_grey
from jclnf.images._crop import BUCKETS, Crop, check_box, crop, cut, region
from jclnf.images._folder import Folder, Found, kind_of, names
from jclnf.images._read import ImageFile, file_bytes, read_image, read_image_file

__all__ = [
    "BUCKETS",
    "Crop",
    "Folder",
    "Found",
    "ImageFile",
    "check_box",
    "check_grey",
    "crop",
    "cut",
    "file_bytes",
    "kind_of",
    "names",
    "read_image",
    "read_image_file",
    "region",
]
