"""Creation of the stack's database, with a program in the place of PostgreSQL's initdb."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from infra import stack


def test_a_database_whose_creation_was_interrupted_is_created_again(tmp_path, monkeypatch):
    """As initdb does, the program writes PG_VERSION first and the control file last."""
    interrupted = iter([True, False])

    def initdb(command, environment, user):
        folder = Path(command[command.index("-D") + 1])
        assert list(folder.iterdir()) == []
        (folder / "PG_VERSION").write_text("15")
        if next(interrupted):
            raise KeyboardInterrupt
        (folder / "pg_control").write_text("")

    monkeypatch.setattr(stack, "run_once", initdb)
    monkeypatch.setattr(stack, "postgres_program", lambda name: name)
    monkeypatch.setattr(stack, "unprivileged_user", lambda: None)
    platform = SimpleNamespace(data=tmp_path, secrets={"database": "secret"}, services=list)
    with pytest.raises(KeyboardInterrupt):
        stack.start(platform, None)
    for _ in range(2):  # a complete database is left as it is
        stack.start(platform, None)
    assert {path.name for path in tmp_path.iterdir()} == {"postgres"}
    assert {path.name for path in (tmp_path / "postgres").iterdir()} == {"PG_VERSION", "pg_control"}
