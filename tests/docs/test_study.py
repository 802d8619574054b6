"""docs/study.md is what its script writes, and has every key that a study may have."""

import importlib.util
import json
from pathlib import Path

from ldmprobe_core.study.loading import parse_study

ROOT = Path(__file__).parents[2]


def test_page_of_keys_is_up_to_date_and_complete():
    spec = importlib.util.spec_from_file_location("write_study", ROOT / "docs/write_study.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.PAGE.read_text("utf-8") == script.page()
    content = json.loads(parse_study({}).to_json())
    keys = {
        f"{section}.{key}"
        for section, values in content.items()
        if isinstance(values, dict)
        for key in values
    }
    assert len(keys) > 40
    missing = {key for key in keys if f"| `{key}` | " not in script.page()}
    assert missing == {"prompts.content_hash"}  # written by the program
    assert "| `sampling.steps` | `15` | whole number from 1 to 10,000 | " in script.page()
