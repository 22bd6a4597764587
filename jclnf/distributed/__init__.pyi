from ._videos import process_videos as process_videos
