"""The face of skimage's astronaut, for tests of detectors."""

import numpy as np

# Outer eye corners, tip of the nose, corners of the mouth.
ASTRONAUT = np.array([(192, 100.5), (258, 103.5), (224, 126), (203, 140), (244, 140.5)])


def holds(box, points, slack=0.0):
    """Whether the points are in the box, enlarged on each side by `slack` of its size."""
    low, high = box[:2] - slack * box[2:], box[:2] + (1 + slack) * box[2:]
    return bool(np.all((points >= low) & (points <= high)))
