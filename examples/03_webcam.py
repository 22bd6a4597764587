"""Landmarks on the picture of a camera, live. Ends with the key q.

python examples/03_webcam.py [CAMERA]

Showing a window needs `opencv-python` in place of `opencv-python-headless`.
"""

import sys

import cv2

import jclnf

camera = cv2.VideoCapture(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
read, frame = camera.read()
if not read:
    sys.exit("the camera gives no image")

jclnf.enable_compilation_cache()  # so that the next start need not wait
tracker = jclnf.Tracker(jclnf.load_model(), detector=jclnf.detect.default(), max_faces=2)
jclnf.warm_up(tracker, frame.shape[0] / 3)  # compile before the first face is there
while read:
    for face in tracker.step(frame):
        if face.success:
            frame = jclnf.draw.landmarks(frame, face.result.landmarks, label=str(face.id))
    cv2.imshow("jclnf", frame)
    if cv2.waitKey(1) == ord("q"):
        break
    read, frame = camera.read()
camera.release()
cv2.destroyAllWindows()
