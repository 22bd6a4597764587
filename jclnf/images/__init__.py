"""Images: reading files, checking grey arrays, cutting crops around faces."""

from jclnf.images._check import check_grey
from jclnf.images._crop import BUCKETS, Crop, check_box, crop, cut, region
from jclnf.images._folder import (
    IMAGE_SUFFIXES,
    Folder,
    Found,
    kind_of,
    names,
    near_image,
    near_input,
)
from jclnf.images._read import (
    MAX_BYTES,
    ImageFile,
    decode_image_file,
    file_bytes,
    read_image,
    read_image_file,
)

__all__ = [
    "BUCKETS",
    "IMAGE_SUFFIXES",
    "MAX_BYTES",
    "Crop",
    "Folder",
    "Found",
    "ImageFile",
    "check_box",
    "check_grey",
    "crop",
    "cut",
    "decode_image_file",
    "file_bytes",
    "kind_of",
    "names",
    "near_image",
    "near_input",
    "read_image",
    "read_image_file",
    "region",
]
