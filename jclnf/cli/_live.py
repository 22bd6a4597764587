"""A window that shows a camera's pictures with the faces drawn in."""

from typing import Any

import numpy as np


class Window:
    """A window of OpenCV's, where it has any."""

    def __init__(self, title: str) -> None:
        """Open the window; `problem` says why there is none."""
        import cv2

        self._title, self._cv2 = title, cv2
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
        if self.problem or frame.picture is None:
            return True
        from jclnf.draw import draw_overlay

        canvas = frame.picture
        for face in faces:
            if face.success:
                points = np.asarray(face.result.landmarks)
                canvas = draw_overlay(canvas, points, label=str(face.id))
        self._cv2.imshow(self._title, canvas)
        return (self._cv2.waitKey(1) & 0xFF) not in (ord("q"), 27)
