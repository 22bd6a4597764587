"""The faces of a video, followed frame by frame, with frames read by OpenCV.

python examples/02_video.py [VIDEO]

`jclnf video` writes tables by itself and reads each frame's time stamp; this is for programs that
want the faces as they come.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import samples

import jclnf

path = sys.argv[1] if len(sys.argv) > 1 else samples.clip(Path("clip.mp4"))

tracker = jclnf.Tracker(jclnf.load_model(), detector=jclnf.detect.default())
video = cv2.VideoCapture(str(path))
number = 0
while True:
    read, frame = video.read()
    if not read:
        break
    number += 1
    for face in tracker.step(frame):
        if not face.success:
            print(f"frame {number}, face {face.id}: not seen")
            continue
        yaw = np.degrees(face.result.pose.rotation[1])
        x, y = face.result.landmarks[30]
        print(f"frame {number}, face {face.id}: nose at {x:.1f}, {y:.1f}, yaw {yaw:.1f} degrees")
video.release()
