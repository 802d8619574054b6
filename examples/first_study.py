"""A first study: when does the embedded model know where the object is?

Run it with ``python examples/first_study.py [STORE]``; a later call resumes or shows the same run.
"""

import sys

import ldmprobe as lp

SMALL = {"prompts.samples": 48, "sampling.steps": 8}


def main(store: str = "runs", overrides: dict = SMALL) -> lp.Run:
    """Plan, run and print the best cell of each property."""
    study = lp.load_study("tabletop", overrides)
    print(lp.plan(study))
    run = lp.run_study(study, store)
    for name, found in run.summary.properties.items():
        best, position = found.best, found.controls.position.same_cell
        print(f"{name}: {best.score} at step {best.step}; position alone {position}")
    print(lp.write_report(run))
    return run


if __name__ == "__main__":
    main(*sys.argv[1:])
