"""BibTeX entries for citing a run of ldmprobe."""

from __future__ import annotations

from ldmprobe_core.analysis.records import Summary


def bibtex(summary: Summary) -> str:
    """Return BibTeX entries of ldmprobe, with the run's hashes, and of Chen et al. (2023)."""
    version = summary.versions.get("ldmprobe", "")
    return f"""@software{{ldmprobe,
  title = {{ldmprobe: linear probes on every step and layer of a latent diffusion model}},
  author = {{{{The ldmprobe maintainers}}}},
  version = {{{version}}},
  note = {{study {summary.study_hash}, model {summary.model_fingerprint}}},
}}

@misc{{chen2023beyond,
  title = {{Beyond Surface Statistics: Scene Representations in a Latent Diffusion Model}},
  author = {{Chen, Yida and Vi{{\\'e}}gas, Fernanda and Wattenberg, Martin}},
  year = {{2023}},
  eprint = {{2306.05720}},
  archivePrefix = {{arXiv}},
}}
"""
