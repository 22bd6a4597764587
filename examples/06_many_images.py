"""Many images of any sizes, on all devices: each GPU, or each core of the processor.

python examples/06_many_images.py [PHOTO ...]
"""

import sys

import cv2
import numpy as np
import samples

import jclnf
from jclnf.runtime import use_all_cores

use_all_cores(8)  # a device for each core; only before JAX computes anything

if len(sys.argv) > 1:
    images = [jclnf.images.read_image(path) for path in sys.argv[1:]]
else:
    greys = [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in samples.portraits()]
    images = [cv2.resize(grey, None, fx=s, fy=s) for grey in greys for s in (0.9, 0.95, 1.0)]

model = jclnf.load_model()
detector = jclnf.detect.default()
found = [(image, jclnf.detect.find_faces(detector, image)) for image in images]
with_face = [(image, boxes[0]) for image, boxes in found if len(boxes)]
print(f"a face in {len(with_face)} of {len(images)} images")

results = jclnf.fit_images(model, [image for image, _ in with_face], [box for _, box in with_face])
print(f"landmarks {results.landmarks.shape}, {int(np.sum(results.success))} fitted with success")
print("yaw in degrees:", np.degrees(results.pose.rotation[:, 1]).round(1))
