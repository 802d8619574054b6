"""Probe a pipeline that is already loaded: capture activations, label the images, fit a probe."""

from pathlib import Path

from diffusers import StableDiffusionPipeline

import ldmprobe as lp
from ldmprobe_core.assets import MODEL_FOLDER

PROMPTS = [f"a {color} cube on a gray floor" for color in ("red", "green", "blue", "yellow")]


def main(folder: Path = MODEL_FOLDER, steps: int = 8) -> dict[str, float]:
    """Return rank correlations of depth probes with training labels at step 3, by layer."""
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    captured = lp.capture(pipe, PROMPTS, layers="self-attention", steps=steps, guidance=3.0)
    depth = lp.load_labeler("depth", "tabletop")(captured.images)
    scores = {}
    for layer, activations in captured.items():
        tokens = activations.sel(step=3).values
        probe = lp.fit_probe(tokens, depth, kind="ridge", penalties=[1e-2])
        block = depth.shape[1] // tokens.shape[1]
        predicted = probe.predict(tokens).repeat(block, 1).repeat(block, 2)
        scores[layer] = float(lp.metrics.spearman(predicted, depth).mean())
        print(f"{layer}: rank correlation {scores[layer]:.2f} (training images)")
    return scores


if __name__ == "__main__":
    main()
