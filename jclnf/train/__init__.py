"""Training: the shape model from 2D annotations, the patch experts from images, the whole fit.

`shape_model` and `augment` are NumPy and OpenCV on the host; `learn` holds the JAX part.
"""
