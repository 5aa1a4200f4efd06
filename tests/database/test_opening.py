from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError, OperationalError

from webui.core.errors import ResourceError, UserError
from webui.database.opening import MIGRATIONS, open_database, reading, writing
from webui.database.tables import images, jobs, metadata, request_pictures


def add_job(connection, job_id="a" * 32):
    values = {"task": "txt2img", "session": "", "state": "queued", "request": "{}", "created_at": 1.5, "crashes": 0}
    connection.execute(insert(jobs).values(id=job_id, **values))


@pytest.fixture(params=["path", "url", "memory"])
def database(request, tmp_path):
    where = {
        "path": tmp_path / "data%20 é" / "atelier.sqlite",
        "url": f"sqlite:///{tmp_path / 'atelier.sqlite'}",
        "memory": "sqlite://",
    }
    engine = open_database(where[request.param])
    yield engine
    engine.dispose()


def test_models_and_migrations_agree(database):
    with reading(database) as connection:
        differences = compare_metadata(MigrationContext.configure(connection, {"compare_type": True}), metadata)
        index = connection.exec_driver_sql("PRAGMA index_list('jobs')").all()
    assert differences == []
    assert "ix_jobs_state" in {row.name for row in index}


def test_all_threads_see_the_same_database(database):
    def write():
        with writing(database) as connection:
            add_job(connection)

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    with reading(database) as connection:
        assert connection.execute(select(jobs.c.created_at)).scalars().all() == [1.5]


def test_a_failed_transaction_leaves_nothing(database):
    def fail():
        with writing(database) as connection:
            add_job(connection)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with reading(database) as connection:
        assert connection.execute(select(jobs.c.id)).all() == []


def test_foreign_keys_hold(database):
    orphan = {"job_id": "nobody", "place": 0, "seed": 1, "infotext": "", "created_at": 0.0}
    with pytest.raises(IntegrityError), writing(database) as connection:
        connection.execute(insert(images).values(**orphan))


def test_deleting_a_job_deletes_what_belongs_to_it(database):
    with writing(database) as connection:
        add_job(connection)
        connection.execute(insert(request_pictures).values(job_id="a" * 32, field="mask", data=b"1"))
        connection.execute(jobs.delete())
        assert connection.execute(select(request_pictures)).all() == []


def test_opening_again_keeps_everything_and_uses_wal(tmp_path):
    path = tmp_path / "a" / "b.sqlite"
    first = open_database(path)
    with writing(first) as connection:
        add_job(connection)
    first.dispose()
    second = open_database(path)
    with reading(second) as connection:
        assert connection.execute(select(jobs.c.id)).scalars().all() == ["a" * 32]
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    second.dispose()


def test_a_reader_does_not_wait_for_a_writer_and_a_second_writer_does(tmp_path):
    engine = open_database(tmp_path / "b.sqlite", busy_timeout_s=0.05)
    with writing(engine) as connection:
        add_job(connection)
        with reading(engine) as other:
            assert other.execute(select(jobs.c.id)).all() == []
        with pytest.raises(OperationalError, match="locked"), writing(engine):
            pytest.fail("two writers at once")
    engine.dispose()


def test_a_file_that_is_no_database_gets_a_sentence(tmp_path):
    path = tmp_path / "atelier.sqlite"
    path.write_bytes(b"not a database, but long enough to be looked at" * 40)
    with pytest.raises(ResourceError, match=r"atelier\.sqlite cannot be opened.*not a database.*another data folder"):
        open_database(path)
    assert path.read_bytes().startswith(b"not a database")


def test_a_folder_that_cannot_be_made_gets_a_sentence(tmp_path):
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(ResourceError, match="cannot be opened"):
        open_database(tmp_path / "data" / "atelier.sqlite")


def test_a_database_of_a_newer_version_is_left_alone(tmp_path):
    path = tmp_path / "atelier.sqlite"
    open_database(path).dispose()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(UserError, match="another version of Atelier"):
        open_database(path)


def test_a_database_that_is_not_behind_is_opened_without_alembic(tmp_path):
    path = tmp_path / "atelier.sqlite"
    open_database(path).dispose()
    code = (
        "import sys; from pathlib import Path; from webui.database.opening import open_database\n"
        f"open_database(Path({str(path)!r})).dispose(); assert 'alembic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_names_of_migrations_begin_with_their_numbers():
    scripts = list(ScriptDirectory(str(MIGRATIONS)).walk_revisions())
    assert all(Path(script.path).name.startswith(f"{script.revision}_") for script in scripts)
    assert scripts[0].revision == max(script.revision for script in scripts)
