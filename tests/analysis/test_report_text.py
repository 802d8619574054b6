"""What a report says in words: which controls a score clears is told, and which it does not."""

from ldmprobe_core.analysis.report.text import best_rows, headline, number, step


def interval(mean, half=0.05):
    return {"mean": mean, "low": mean - half, "high": mean + half, "residual": None}


def summary(position, shuffled, permuted):
    at = {"step": 3, "low": 2, "high": 4}
    nowhere = {"step": None, "low": None, "high": None}
    best = {"step": 9, "layer": "a.transformer_blocks.0.attn1", "kind": "ridge"}
    best |= {"metric": "spearman"} | interval(0.6)
    return {
        "properties": {
            "depth": {
                "best": best,
                "last": best,
                "emergence": {
                    "probe": {"onset": at, "settled": at},
                    "decoded": {"onset": nowhere, "settled": nowhere},
                    "lead": {
                        name: {"onset": {"steps": None, "low": None, "high": None}}
                        for name in ("decoded", "clean")
                    },
                },
                "controls": {
                    "position": interval(position),
                    "shuffled_labels": interval(shuffled),
                    "permuted_weights": permuted and interval(permuted),
                },
            }
        }
    }


def test_all_controls_cleared():
    (line,) = headline(summary(0.3, 0.2, 0.1))
    assert "is above position alone (0.30 [0.25, 0.35]), shuffled labels" in line
    assert "not clearly" not in line
    assert "step 3 [2, 4]" in line


def test_a_control_that_is_not_cleared_is_named():
    (line,) = headline(summary(0.3, 0.55, 0.1))
    assert "but not clearly above shuffled labels (0.55" in line
    (line,) = headline(summary(0.7, 0.55, 0.6))
    assert "is not clearly above position alone" in line


def test_absent_and_undefined():
    (row,) = best_rows(summary(0.3, 0.2, None))
    assert row["permuted"] == "–"
    assert row["image onset"] == "–"
    assert row["at"] == "step 9, a.attn1, ridge"
    assert number({"mean": None, "low": None, "high": None}) == "–"
    assert step({"step": 3, "low": 1, "high": 4}) == "3 [1, 4]"
