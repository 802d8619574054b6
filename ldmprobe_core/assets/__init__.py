"""Data that ships with the package: the embedded model, model configs, schemas, ready studies."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent

MODEL_FOLDER = _FOLDER / "tabletop"
"""The embedded model: an ordinary diffusers folder, plus ``labelers/`` beside the usual parts."""

CONFIGS = _FOLDER / "configs"
"""JSON configs of published models, so that a study of them is sized without their weights."""

SUMMARY_SCHEMA = _FOLDER / "summary.schema.json"
"""JSON schema of ``summary.json``."""

STUDIES = _FOLDER / "studies"
"""Folder of the ready studies' YAML files; in a checkout, a link to ``studies/`` at its top."""
