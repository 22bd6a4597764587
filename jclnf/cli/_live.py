"""A window that shows a camera's images with the faces drawn in."""

from typing import Any

import cv2
import numpy as np

from jclnf import draw


class Window:
    """A window of OpenCV's, where it has any."""

    def __init__(self, title: str) -> None:
        """Open the window; `problem` says why there is none."""
        self._title = title
        self.problem = ""
        try:
            cv2.namedWindow(title, cv2.WINDOW_NORMAL)
        except cv2.error:
            self.problem = (
                "this OpenCV cannot open windows (opencv-python in place of opencv-python-headless "
                "can): the camera is recorded without being shown; end with Ctrl-C"
            )

    def show(self, frame: Any, faces: Any) -> bool:
        """Show a frame; False once the user has pressed q or Escape."""
        if self.problem or frame.image is None:
            return True
        canvas = frame.image
        for face in faces:
            if face.success:
                points = np.asarray(face.result.landmarks)
                canvas = draw.landmarks(canvas, points, label=str(face.id))
        cv2.imshow(self._title, canvas)
        return (cv2.waitKey(1) & 0xFF) not in (ord("q"), 27)
