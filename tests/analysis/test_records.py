"""Record of a summary, against the JSON schema that ships."""

import json

import jsonschema
import pytest

from ldmprobe_core.analysis.records import Summary
from ldmprobe_core.assets import SUMMARY_SCHEMA


def test_summary_fits_the_json_schema_that_ships(finished_run):
    shipped = json.loads(SUMMARY_SCHEMA.read_text())
    assert shipped == Summary.model_json_schema(by_alias=True, mode="serialization")
    record = json.loads(finished_run.location.read_text("summary.json"))
    jsonschema.validate(record, shipped)
    for key in ("seconds", "bytes", "samples", "versions", "study_hash"):
        assert record[key]
    for found in record["properties"].values():
        assert set(found) == {
            "best", "last", "layer", "steps", "emergence", "leads", "clusters", "controls",
            "undefined", "missing", "not_beyond", "ceilings", "constant", "analyses", "exact",
        }  # fmt: skip
        rivals = {"decoded", "clean", "decoded_recalibrated", "clean_recalibrated"}
        assert set(found["leads"]) == {"samples", *rivals}
        assert set(found["emergence"]) == {"probe", "paired", *rivals}
        assert set(found["controls"]) == {
            "position", "shuffled_labels", "permuted_weights", "latents", "clean_pixels", "prompt",
            "same_prompt", "mlp",
        }  # fmt: skip
    del record["properties"]["depth"]["best"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(record, shipped)
