"""The table of a video in pandas: what was seen, when, and by whom.

python examples/09_table_pandas.py [TABLE.csv]

Without a table, a short video is made and followed first, as `jclnf video clip.mp4` does.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import samples

if len(sys.argv) > 1:
    path = Path(sys.argv[1])
else:
    from jclnf.video import Settings, process_videos

    video = samples.clip(Path("clip.mp4"))
    for done in process_videos(Settings(plot=False), [str(video)], Path("videos")):
        print(done.summary)
    path = Path("videos/clip.csv")

table = pd.read_csv(path)
seen = table[table["success"] == 1].copy()  # numbers are missing (NaN) in all other rows
print(f"{table['frame'].nunique()} frames, faces in {seen['frame'].nunique()} of them")

yaw = np.degrees(seen["pose_Ry"])  # radians in the table
print(f"yaw from {yaw.min():.1f} to {yaw.max():.1f} degrees")

# Landmarks as an array (rows, 68, 2), in pixels.
x = seen[[f"x_{i}" for i in range(68)]].to_numpy()
y = seen[[f"y_{i}" for i in range(68)]].to_numpy()
points = np.stack([x, y], axis=-1)
eyes = np.linalg.norm(points[:, 45] - points[:, 36], axis=1)
mouth = np.linalg.norm(points[:, 66] - points[:, 62], axis=1) / eyes

# A row for each face and frame: by face, in seconds from the first frame.
by_face = seen.assign(mouth=mouth).groupby("face_id")
print(by_face.agg(begins=("timestamp", "min"), ends=("timestamp", "max"), mouth=("mouth", "mean")))
