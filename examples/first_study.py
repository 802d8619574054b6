"""A first look at a study, small: of the embedded model, or of yours.

Run it with ``python -m examples.first_study [STUDY] [STORE]``, where STUDY is a YAML file; a later
call resumes or shows the same run.
"""

import sys

import ldmprobe as lp

SMALL = {"prompts.samples": 48, "sampling.steps": 8}


def main(study: str = "tabletop", store: str = "runs", overrides: dict = SMALL) -> lp.Run:
    """Plan, run and print the best cell of each property."""
    small = lp.load_study(study, overrides)
    print(lp.plan(small))
    run = lp.run_study(small, store)
    for name, found in run.summary.properties.items():
        best, position = found.best, found.controls.position.same_cell
        print(f"{name}: {best.score} at step {best.step}; position alone {position}")
    print(lp.write_report(run))
    return run


if __name__ == "__main__":
    main(*sys.argv[1:])
