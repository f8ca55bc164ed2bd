"""The database that keeps a search: where it is, how it is opened and shared, and what is kept of a trial.

Names of ``optuna``, the extra ``tune``, are imported late.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from multigate.errors import MultigateError, RunError

BEAT, SILENCE = 30, 120
"""Seconds between signs of life of a trial in a database that several machines share, and without one until it counts
as dead."""
SECONDS, METRICS, STOPPED = "seconds", "metrics", "stopped"
"""Attributes of a trial: how long it took, what else it came to, and that it was stopped."""
FAILURES, KILLED, HOPELESS = "failures", "killed", "hopeless"
"""How often its point failed before, how often its process was killed, and why it has the value of hopeless points."""


def require_extra() -> None:
    """Raise ``MultigateError`` where what tunes is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise MultigateError("tuning needs optuna, which is not installed: pip install 'multigate[tune]'") from None


def in_file(path: Path) -> str:
    """The ``storage`` that a file is; signs that URLs have a use for, such as ``?`` and ``%``, are part of its name.

    Raises ``RunError`` where the installed SQLAlchemy or Optuna cannot name it.
    """
    require_extra()
    from sqlalchemy.engine import URL, make_url

    storage = URL.create("sqlite", database=str(path)).render_as_string()
    if make_url(storage).database != str(path) or "{" in storage:  # before SQLAlchemy 2.1 nothing is quoted
        raise RunError(
            f"no trials can be kept in {path}: its name holds a sign that is none here; choose another folder"
        )
    return storage


def in_state(study: Any, *names: str) -> list[Any]:
    """The trials of a study that are in one of some states."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=tuple(TrialState[name] for name in names))


@contextmanager
def opened(url: str, shared: bool, lose: Callable[[Any, Any], None]) -> Iterator[Any]:
    """The database as Optuna's storage, closed behind. ``lose`` is told of trials of machines that give no sign of life
    any more, where it is ``shared``.

    Raises ``RunError`` where the database refuses what is asked of it.
    """
    require_extra()
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats
        storage = _storage(url, shared, lose)
        try:
            yield storage
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:  # damaged, locked, a full disk
            raise _refused(url, error) from error
        finally:
            storage.remove_session()
            storage.engine.dispose()


def _storage(url: str, shared: bool, lose: Callable[[Any, Any], None], tries: int = 5) -> Any:
    import optuna
    from sqlalchemy.exc import IntegrityError, SQLAlchemyError
    from sqlalchemy.pool import NullPool

    sqlite = url.startswith("sqlite")
    try:
        storage = optuna.storages.RDBStorage(
            url,
            # no pool: where the database is refused nobody could close what waits in one
            engine_kwargs={"connect_args": {"timeout": SILENCE}, "poolclass": NullPool} if sqlite else None,
            heartbeat_interval=BEAT if shared else None,
            grace_period=SILENCE if shared else None,
            heartbeat_stale_trial_callback=lose,
        )
        if sqlite:
            _take_turns(storage.engine)
        return storage
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError) as error:  # no URL, driver, database
        made_elsewhere = isinstance(error, IntegrityError) or "already exists" in str(error)
        if not made_elsewhere or tries == 1:
            raise _refused(url, error) from None
    time.sleep(0.2)  # another process is making the tables of a new database
    return _storage(url, shared, lose, tries - 1)


def _take_turns(engine: Any) -> None:
    """Have a transaction of SQLite lock its file from its beginning on.

    By default it does so once it writes, so that two processes may read that a trial waits, and both begin it.
    """
    from sqlalchemy import event

    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # or the driver begins transactions of its own

    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()
    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin)


def _refused(url: str, error: Exception) -> RunError:
    """What a database says that keeps no trials."""
    reason = str(error.__cause__ or error).partition("\n")[0]
    place = unquote(url.rpartition("@")[2])  # behind user and password
    return RunError(f"no trials can be kept in {place!r}: {reason}; mend that or choose another place")
