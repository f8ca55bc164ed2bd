"""The server: models, an address and processes, until it is asked to stop."""

import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from multigate.errors import RunError
from multigate.serve.models import load_models, name_models
from multigate.serve.process import Job, run, run_several
from multigate.serve.shared_metrics import check_shared_metrics
from multigate.training.interrupts import interruptible


def serve(
    models: Sequence[str | Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    engine: str = "auto",
    workers: int = 1,
) -> None:
    """Answer requests until Ctrl-C or SIGTERM; requests in flight are finished then.

    ``models``: runs or bundles, each under its folder's name, or as ``NAME=PATH``. Each of the ``workers`` processes
    computes on one thread; ``engine`` auto takes for all of them what is faster on one row. Port 0 is any that is
    free; standard error tells the address.

    Raises ``RunError`` where packages are missing, the address cannot be had or a process dies while it starts,
    ``BundleError`` as ``load`` does, and ``Interrupted`` once asked to stop.
    """
    _check_packages()
    check_shared_metrics()
    paths = name_models(models)
    with interruptible(lambda: "requests in flight were answered"), _bound(host, port) as listening:
        bundles = load_models(paths, engine)
        engines = {name: bundle.engines.row.name for name, bundle in bundles.items()}
        job = Job(paths, engines, {name: bundle.loaded_as for name, bundle in bundles.items()})

        def ready() -> None:
            try:
                listening.listen()
            except OSError as error:  # another has bound it as well, and was quicker
                raise _refused(host, port, error) from error
            _tell(list(paths), listening)

        if workers == 1:
            run(bundles, listening, ready)
        else:
            del bundles
            run_several(job, listening, workers, ready)


def _check_packages() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise RunError(f"serving needs the package {error.name}; pip install 'multigate[serve]'") from None


def _bound(host: str, port: int) -> socket.socket:
    """A socket that has the address, but does not listen yet."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            if sys.platform != "win32":  # there it would share the port with whoever has it
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except BaseException:
            listening.close()
            raise
    except (OSError, UnicodeError) as error:
        raise _refused(host, port, error) from error
    return listening


def _refused(host: str, port: int, error: Exception) -> RunError:
    why = (error.strerror if isinstance(error, OSError) else None) or "it is no name of a host"
    return RunError(f"cannot listen at port {port} of {host!r} ({why}); choose another --port or --host")


def _tell(names: Sequence[str], listening: socket.socket) -> None:
    host, port = listening.getsockname()[:2]
    where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(f"serving {', '.join(names)} at {where}    what there is: {where}/docs", file=sys.stderr, flush=True)
