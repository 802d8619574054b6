"""Tabletop: a small rendered world and the latent diffusion model trained on it.

Stable Diffusion's weights are large and not ours to ship, so ldmprobe carries a world of its own:
single objects on a floor, rendered with exact masks, depth and shading, and a real latent
diffusion model trained on those pictures.  A study of it takes minutes on a laptop, and because
the renderer knows the truth, the error of every labeler is known too.
"""

from __future__ import annotations

IMAGE_SIZE = 64
"""Height and width of every tabletop picture, in pixels."""
