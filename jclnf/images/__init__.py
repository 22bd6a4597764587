"""Photographs: reading them, checking grey images, cutting crops around faces."""

from jclnf.images._crop import BUCKETS, Crop, check_box, crop, cut, region
from jclnf.images._read import IMAGE_SUFFIXES, Photo, check_grey, file_bytes, read_image, read_photo

__all__ = [
    "BUCKETS",
    "IMAGE_SUFFIXES",
    "Crop",
    "Photo",
    "check_box",
    "check_grey",
    "crop",
    "cut",
    "file_bytes",
    "read_image",
    "read_photo",
    "region",
]
