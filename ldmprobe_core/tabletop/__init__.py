"""Tabletop: a renderer of simple scenes, and the training of the embedded latent diffusion model.

Stable Diffusion's weights are too large to ship and may not be redistributed here, so ldmprobe
ships a small latent diffusion model of its own.  It is trained on renderings of single objects on a
floor, for which masks, depth, shading and normals are exact.  A study of it takes minutes on a
laptop, and the ground-truth maps also give the error of every labeler.
"""

from __future__ import annotations

IMAGE_SIZE = 64
"""Height and width of tabletop images, in pixels."""
