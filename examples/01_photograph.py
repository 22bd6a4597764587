"""A photograph to landmarks, head pose, and an image of them.

python examples/01_photograph.py [PHOTO] [OUT.png]
"""

import sys

import cv2
import numpy as np
import samples

import jclnf

path = sys.argv[1] if len(sys.argv) > 1 else samples.photograph()
out = sys.argv[2] if len(sys.argv) > 2 else "landmarks.png"

model = jclnf.load_model()
photo = jclnf.images.read_image_file(path)
boxes = jclnf.detect.find_faces(jclnf.detect.default(), photo)
if len(boxes) == 0:
    sys.exit(f"{path}: no face found")

image = photo.colour
for number, box in enumerate(boxes):
    result = jclnf.fit(model, photo.grey, box)
    print(f"face {number}: {result.message}")
    if not result.success:
        continue
    pitch, yaw, roll = np.degrees(result.pose.rotation)
    print(f"  pitch {pitch:.1f}, yaw {yaw:.1f}, roll {roll:.1f} degrees")
    print(f"  confidence {float(result.confidence):.2f}")
    print(f"  tip of the nose at {np.round(result.landmarks[30], 1)}")
    image = jclnf.draw.landmarks(image, result.landmarks, visible=result.visible)
cv2.imwrite(str(out), image)
print(f"drawn in {out}")
