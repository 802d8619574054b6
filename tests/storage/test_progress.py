"""Marks of finished units."""


def test_mark_done_and_completed(run):
    assert run.progress.completed("generated").tolist() == [False, False, False]
    run.progress.mark_done("generated", 1)
    run.progress.mark_done("probed", 2, 1)
    assert run.progress.completed("generated").tolist() == [False, True, False]
    assert run.progress.completed("probed").sum() == 1
    assert run.progress.completed("probed")[2, 1]
