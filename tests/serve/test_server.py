"""The server as people run it: addresses, models, signals, processes, and what it tells of itself."""

import asyncio
import copy
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from serving import Rows, Serving, read, serving

from multigate.bundle import Bundle, load
from multigate.errors import RunError
from multigate.serve import body
from multigate.serve import process as process_module
from multigate.serve import server as server_module
from multigate.serve.app import application
from multigate.serve.models import name_models
from multigate.serve.server import serve
from processes import TOLD, run, run_program


def samples(page: str) -> dict[str, float]:
    """What a page of metrics counts, by name and labels."""
    return {
        "/".join([one.name, *(value for _, value in sorted(one.labels.items()))]): one.value
        for family in text_string_to_metric_families(page)
        for one in family.samples
    }


def test_it_tells_what_there_is(server: Serving, rows: Rows) -> None:
    assert read(server.client.get("/models")) == {"models": ["shop"]}
    about = read(server.client.get("/schema"))
    assert about == read(server.client.get("/models/shop/schema"))
    features = {one["name"]: one for one in about["features"]}
    assert list(features) == list(rows[0]), "what serving does not want is not named"
    assert features["user"] == {"name": "user", "column": "user", "kind": "category", "type": "int64", "vocabulary": 39}
    assert (features["word"]["buckets"], features["face"]["size"], features["tags"]["vocabulary"]) == (50, 2, 9)
    assert about["tasks"][1] == {"name": "buy", "kind": "binary", "given": "click"}
    assert about["predictions"][:3] == ["click", "buy", "buy|click"]
    interface = read(server.client.get("/openapi.json"))
    assert {"/predict", "/schema", "/metrics", "/v2/models/{name}/infer"} <= interface["paths"].keys()
    asked = interface["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert asked["anyOf"][0]["anyOf"][1]["required"] == list(rows[0])
    assert server.client.get("/docs").status_code == 200


def test_an_address_where_nothing_is_answers_in_one_sentence(server: Serving) -> None:
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", "/predict", 405),
        ("POST", "/models/x/predict", 404),
    ):
        answer = server.client.request(method, path)
        assert answer.status_code == status
        assert read(answer).keys() == {"error"}
    assert server.client.get("/predict").headers["allow"] == "POST"


def test_requests_rows_and_errors_are_counted(server: Serving, rows: Rows) -> None:
    before = samples(server.client.get("/metrics").text)
    server.client.post("/predict", json={"rows": rows[:7]})
    server.client.post("/predict", json=rows[0])
    server.client.post("/predict", content=b"nothing")
    server.client.post("/v2/models/shop/infer", json={})
    after = samples(server.client.get("/metrics").text)
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown["multigate_requests_total/predict/shop/200"] == 2
    assert grown["multigate_requests_total/predict/shop/400"] == 1
    assert grown["multigate_requests_total/infer/shop/400"] == 1
    assert grown["multigate_rows_total/shop"] == 8
    assert grown["multigate_seconds_count/shop"] == grown["multigate_seconds_bucket/+Inf/shop"] == 4
    assert 0 < grown["multigate_seconds_sum/shop"] < 60


def test_a_fault_of_the_server_shows_no_traceback(folder: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer says whose fault it is, and it is counted; the server gets the error itself."""
    broken = load(folder / "shop")
    monkeypatch.setattr(broken, "predict_row", lambda row, gates: 1 / 0)
    app = application({"shop": broken})

    async def ask() -> tuple[httpx.Response, httpx.Response]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.post("/predict", json=rows[0]), await client.get("/metrics")

    answer, page = asyncio.run(ask())
    assert answer.status_code == 500
    assert read(answer).keys() == {"error"}
    assert "ZeroDivision" not in answer.text
    assert answer.headers["connection"] == "close", "or the client's next request fails, on a connection that is gone"
    assert samples(page.text)["multigate_requests_total/predict/shop/500"] == 1


def test_head_is_answered_as_get_is_without_the_body(server: Serving) -> None:
    for path in ("/v2/health/ready", "/models", "/metrics", "/docs", "/nothing", "/predict"):
        head, got = server.client.head(path), server.client.get(path)
        assert head.status_code == got.status_code
        assert head.content == b""
        assert head.headers["content-type"] == got.headers["content-type"]
    assert server.client.get("/models").status_code == 200, "the connection is in order"


def test_a_request_that_does_not_arrive_is_not_waited_for(
    folder: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that sends half a row and then nothing, or a byte now and then; others are answered meanwhile."""
    monkeypatch.setattr(body, "ARRIVES", 0.5)
    whole = json.dumps(rows[0]).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Length: {len(whole)}\r\n\r\n".encode()
    bundle = load(folder / "shop")
    bundle.predict(rows[0])  # the first answer of a process may take longer than the half second

    async def ask() -> tuple[bytes, bytes]:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            server = process_module._server({"shop": bundle})
            serving = asyncio.create_task(server.serve([listening]))
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            writer.write(head + whole[:10])
            quick, other = await asyncio.open_connection(*listening.getsockname())
            other.write(head + whole)
            first = await quick.readuntil(b"}")
            other.close()
            for at in range(10, 16):
                writer.write(whole[at : at + 1])
                await asyncio.sleep(0.05)
            slow = await asyncio.wait_for(reader.read(), 30)  # to its end: the server hangs up
            writer.close()
            server.should_exit = True
            await serving
        return first, slow

    first, slow = asyncio.run(ask())
    assert first.startswith(b"HTTP/1.1 200 ")
    assert slow.startswith(b"HTTP/1.1 408 ")
    assert slow.endswith(b'{"error":"the request did not arrive within 0.5 seconds; send it again"}')


def test_a_request_that_a_stopping_server_waits_no_longer_for_is_told_so(folder: Path) -> None:
    """Half of a body never comes: whoever runs the application cancels the request, as uvicorn does in the end."""
    app = application({"shop": load(folder / "shop")})
    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": []}
    sent: list[Any] = []

    async def ask() -> None:
        waiting = asyncio.Event()

        async def receive() -> Any:
            waiting.set()
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        task = asyncio.create_task(app(scope, receive, send))
        await waiting.wait()
        task.cancel()
        await task

    asyncio.run(ask())
    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"])["error"].startswith("the server stops, and waits no longer")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_request_in_flight_is_finished(folder: Path, tmp_path: Path, bundle: Bundle, rows: Rows, number: int) -> None:
    """Half of a request is there when the signal comes: new ones are refused, this one is answered."""
    body = json.dumps({"rows": rows}).encode()
    with serving(tmp_path, folder / "shop", "--engine", "torch") as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            head = f"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body[:100])
            server.client.get("/v2/health/live")  # the other has been read by then
            server.client.close()
            server.signal(number)
            refused = False
            while not refused:
                try:
                    socket.create_connection((host, int(port)), timeout=1).close()
                except OSError:
                    refused = True
            connection.sendall(body[100:])
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        found = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert [one["click"] for one in found["predictions"]] == bundle.predict(rows)["click"].tolist()
        end = server.end()
    assert end.code == 130
    assert end.told.splitlines()[1:] == ["stopped; requests in flight were answered"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_several_models_and_processes(folder: Path, tmp_path: Path, rows: Rows) -> None:
    """Two models, one compiled, in two processes: all answer alike, their counts add up, one that dies is replaced."""
    load(folder / "shop").export(tmp_path / "compiled")
    bundles = {"a": load(tmp_path / "compiled", engine="onnx"), "compiled": load(tmp_path / "compiled", engine="onnx")}
    words = ("a=compiled", "compiled", "--engine", "onnx", "--workers", 2)
    with serving(tmp_path, *words) as server:

        def ask(at: int) -> int:
            name = ("a", "compiled")[at % 2]
            answer = httpx.post(f"{server.url}/models/{name}/predict", json=rows[at], timeout=60)
            assert read(answer) == {"predictions": [bundles[name].predict(rows[at])]}
            return at

        with ThreadPoolExecutor(8) as pool:
            assert len(list(pool.map(ask, range(40)))) == 40
        pages = [samples(httpx.get(f"{server.url}/metrics").text) for _ in range(4)]
        assert {page["multigate_rows_total/a"] for page in pages} == {20}
        assert read(server.client.get("/models/a/schema"))["engine"] == "onnx"
        for path in ("/predict", "/schema"):
            answer = server.client.request("POST" if path == "/predict" else "GET", path)
            assert answer.status_code == 404
            assert read(answer) == {"error": "there are several models; ask one of /models/a, /models/compiled"}
        server.client.close()
        one, other = children(server)
        os.kill(one, signal.SIGKILL)
        while children(server) in ([one, other], [other]):
            time.sleep(0.05)
        assert [ask(at) for at in range(4)] == [0, 1, 2, 3]
        last = children(server)
        server.signal(signal.SIGTERM)
        end = server.end()
    assert end.code == 130, end.told
    assert end.told.splitlines()[1:] == [
        "a process ended with exit code -9; another takes its place",
        "stopped; requests in flight were answered",
    ]
    for child in last:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_go_on_without_those_whose_bundle_is_gone(folder: Path, tmp_path: Path, rows: Rows) -> None:
    """The one that is left holds it in memory; where that dies, too, the server ends and says why."""
    shutil.copytree(folder / "shop", tmp_path / "shop")
    with serving(tmp_path, "shop", "--workers", 2, "--engine", "torch") as server:
        expected = read(server.client.post("/predict", json=rows[0]))
        server.client.close()
        one, other = children(server)
        (tmp_path / "shop").rename(tmp_path / "moved")
        os.kill(one, signal.SIGKILL)
        while "go on without it" not in (tmp_path / TOLD).read_text(encoding="utf-8"):
            time.sleep(0.05)
        assert read(httpx.post(f"{server.url}/predict", json=rows[0], timeout=60)) == expected
        os.kill(other, signal.SIGKILL)
        end = server.end()
    gone = "there is no folder shop; name that of a run or a bundle"
    assert end.told.splitlines()[1:] == [
        "a process ended with exit code -9; another takes its place",
        f"{gone}; the others go on without it",
        "a process ended with exit code -9; another takes its place",
        f"error: {gone}",
    ]
    assert end.code == 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_process_answers_by_a_bundle_that_took_the_place_of_the_one_served(
    folder: Path, tmp_path: Path, bundle: Bundle, rows: Rows
) -> None:
    """A process that takes another's place reads its bundle then: two models would answer at one port, in turns."""
    bundle.save(tmp_path / "shop")
    with serving(tmp_path, "shop", "--workers", 2, "--engine", "torch") as server:
        expected = read(server.client.post("/predict", json=rows[0]))
        server.client.close()
        other = copy.deepcopy(bundle)
        with torch.no_grad():
            next(other.model.parameters()).add_(1)
        other.save(tmp_path / "shop")
        first = children(server)
        os.kill(first[0], signal.SIGKILL)
        end_of_patience = time.monotonic() + 120
        while "go on without it" not in (tmp_path / TOLD).read_text(encoding="utf-8") or children(server) != first[1:]:
            assert time.monotonic() < end_of_patience, "another bundle is served"
            time.sleep(0.05)
        assert read(httpx.post(f"{server.url}/predict", json=rows[0], timeout=60)) == expected
        server.signal(signal.SIGTERM)
        end = server.end()
    assert end.told.splitlines()[2] == (
        "shop holds another bundle than is served; restart the server to serve it; the others go on without it"
    )


def children(server: Serving) -> list[int]:
    """The processes that serve."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == server.process.pid and "spawn_main" in (process / "cmdline").read_text():
                found.append(int(process.name))
    return sorted(found)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("again", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_several_processes_asked_to_stop_twice(folder: Path, tmp_path: Path, rows: Rows, again: int) -> None:
    """A second Ctrl-C ends the wait for half of a request; other signals leave it the time that it has."""
    with serving(tmp_path, folder / "shop", "--workers", 2, "--engine", "torch") as server:
        host, port = server.url.removeprefix("http://").split(":")
        body = json.dumps(rows[0]).encode()
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n{" % len(body))
            time.sleep(0.5)
            server.signal(signal.SIGINT)
            with suppress(ConnectionError):
                while True:  # until none of them takes any
                    socket.create_connection((host, int(port)), timeout=60).close()
                    time.sleep(0.05)
            server.signal(again)
            time.sleep(0.5)
            if again != signal.SIGINT:
                connection.sendall(body[1:])
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()
        end = server.end()
    assert answer.startswith("HTTP/1.1 503 " if again == signal.SIGINT else "HTTP/1.1 200 ")
    assert end.code == 130
    assert "Traceback" not in end.told
    assert end.told.splitlines()[-1] == "stopped; requests in flight were answered"


def test_one_of_several_processes_tells_what_it_waits_no_longer_for(folder: Path, tmp_path: Path) -> None:
    """Half of a request never comes: it is told so before the process ends."""
    end = run_program(
        f"""
import os, signal, socket
from multiprocessing import Pipe
from pathlib import Path
from threading import Thread
from urllib.request import urlopen
from multigate.bundle import load
from multigate.serve import process
from multigate.serve.shared_metrics import shared_metrics

process.PATIENCE = 1
here, there = Pipe()
listening = socket.create_server(("127.0.0.1", 0))
host, port = listening.getsockname()

def ask():
    here.recv()
    with socket.create_connection((host, port), timeout=60) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\\r\\nHost: here\\r\\nContent-Length: 99\\r\\n\\r\\n{{")
        urlopen(f"http://{{host}}:{{port}}/v2/health/live").read()  # the other has been read by then
        os.kill(os.getpid(), signal.SIGTERM)
        print(b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode(), flush=True)

asking = Thread(target=ask)
asking.start()
shop = Path({str(folder / "shop")!r})
job = process.Job({{"shop": shop}}, {{"shop": "torch"}}, {{"shop": load(shop).loaded_as}})
with shared_metrics():
    process._work(job, listening, there)
asking.join()
""",
        tmp_path,
    )
    assert end.said.startswith("HTTP/1.1 503 "), end.told
    assert '{"error":"the server stops, and waits no longer for this request; ask again"}' in end.said
    assert end.code == 0


def test_what_cannot_be_served_ends_in_one_sentence(folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        busy, host = f"cannot listen at port {port} of '127.0.0.1' (", "192.0.2.1"
        for words, told in (
            ((folder / "shop", "--port", port), f"{busy}Address already in use); "),
            ((folder / "shop", "--host", host), f"cannot listen at port 0 of {host!r} ("),
            ((folder / "shop", "--host", "a" * 70), "cannot listen at port 0 of 'aaaa"),
            ((folder / "nothing",), f"there is no folder {folder / 'nothing'}; name that of a run or a bundle"),
            ((folder / "shop", "--engine", "onx"), "there is no engine 'onx'; did you mean 'onnx'?"),
            ((folder / "shop", "--engine", "onnx"), f"bundle {folder / 'shop'} has no graph for engine 'onnx'; "),
            ((folder / "shop", folder / "shop"), "two models would be named 'shop'; give one of them another: NAME="),
        ):
            end = run(("serve", "--port", 0, *words), tmp_path)
            assert end.code == 2
            assert end.told.startswith(f"error: {told}")
            assert len(end.told.splitlines()) == 1


@pytest.mark.parametrize("named", ["", "nowhere"])
def test_a_folder_of_metrics_that_is_none_is_told_before_requests_end_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", named)
    monkeypatch.setattr(server_module, "load_models", lambda *given: pytest.fail("it goes on"))
    told = rf"PROMETHEUS_MULTIPROC_DIR is '{named}', which is no folder to write metrics in; make it one, or unset it"
    with pytest.raises(RunError, match=told):
        serve([folder / "shop"], port=0, engine="torch")


def test_metrics_that_processes_share_have_their_room_before_the_disk_is_full(tmp_path: Path) -> None:
    program = """
from pathlib import Path
from multigate.serve.shared_metrics import take_room
take_room()
from multigate.serve.metrics import Metrics
metrics = Metrics()
for model in range(60):
    metrics.add(f"model {model}", "predict", 200, 1, 0.01)
for path in Path().glob("*.db"):
    here = path.stat()
    print(path.name.partition("_")[0], here.st_blocks * 512 >= here.st_size)
print(sum(line.startswith("multigate_rows_total") for line in metrics.page().decode().splitlines()))
"""
    named = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    said = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=named, stdout=subprocess.PIPE, check=True)
    assert sorted(said.stdout.decode().splitlines()) == ["60", "counter True", "histogram True"]


def test_of_two_that_start_at_once_one_gets_the_port(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one is bound to it as well, while neither listens, and listens first."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        loading = server_module.load_models

        def load_while_it_listens(*given: Any) -> Any:
            other.listen()
            return loading(*given)

        monkeypatch.setattr(server_module, "load_models", load_while_it_listens)
        with pytest.raises(
            RunError, match=rf"cannot listen at port {port} of '127.0.0.1' \(Address already in use\); "
        ):
            serve([folder / "shop"], port=port, engine="torch")


def test_models_are_named_by_their_folders_or_by_hand(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    named = name_models([tmp_path / "x" / ".." / "runs", f"mine={tmp_path / 'a=b'}", tmp_path / "a=b"])
    assert named == {
        "runs": tmp_path / "x" / ".." / "runs",
        "mine": tmp_path / "a=b",
        "a=b": tmp_path / "a=b",
    }
    for wrong, told in (
        ((), "nothing to serve"),
        (("/",), "no name of its own"),
        (("m=a", "m=b"), "named 'm'; give one of them another: NAME=b$"),
        (("..=a",), r"named '\.\.' has no address"),
    ):
        with pytest.raises(RunError, match=told):
            name_models(wrong)


def test_a_missing_package_comes_with_its_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(RunError, match=r"serving needs the package uvicorn; pip install 'multigate\[serve\]'"):
        serve([folder / "shop"])
