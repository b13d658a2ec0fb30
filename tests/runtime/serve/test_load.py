"""One model, many clients: batches, a bounded queue, clients that leave, time limits, and the figures of it all."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serve_messages import SAID, about_clip, data_url, httpx, png, user

# An answer that goes on for seconds: it may not end before so many characters.
LONG = {
    "max_tokens": 3000,
    "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "string", "minLength": 9000}}},
}


@pytest.fixture(scope="module")
def client(serve: Callable[..., str]) -> Iterator[Any]:
    """Of a server with two rows and two more places."""
    with httpx.Client(base_url=serve(batch=2, queue=2, patience_s=60), timeout=60) as client:
        yield client


def figures(client: Any) -> dict[str, float]:
    lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def post(client: Any, messages: Any, **fields: Any) -> Any:
    return client.post("/v1/chat/completions", json={"messages": messages, **fields})


def endless(client: Any) -> Any:
    """A streamed answer that goes on for long."""
    return client.stream("POST", "/v1/chat/completions", json={"messages": [user("?")], "stream": True, **LONG})


def test_answers_of_many_clients_are_not_mixed_up(client: Any) -> None:
    """Each about media of its own, in batches of two; alone each gets the same."""
    questions = [about_clip(), *[[user("Describe this image.", ("image", data_url(png(n))))] for n in (10, 90, 170)]]

    def ask(number: int) -> str:
        while True:
            answer = post(client, questions[number])
            if answer.status_code == 200:
                return answer.json()["choices"][0]["message"]["content"]
            assert answer.status_code == 429
            time.sleep(0.05)

    alone = [ask(number) for number in range(4)]
    assert alone[0] == SAID
    with ThreadPoolExecutor(12) as pool:
        for number, said in zip([*range(4)] * 6, pool.map(ask, [*range(4)] * 6), strict=True):
            assert said == alone[number]


def test_beyond_the_queue_there_is_a_429_that_says_when(client: Any) -> None:
    with ThreadPoolExecutor(4) as pool:

        def occupy(_: int) -> None:
            with endless(client) as answer:
                lines = answer.iter_lines()  # which closes the connection when it is forgotten
                next(lines)
                taken.wait(60)

        taken = threading.Event()
        occupied = [pool.submit(occupy, n) for n in range(4)]
        until(lambda: figures(client)["vl3edge_requests_admitted"] == 4)
        refused = post(client, [user("?")])
        assert client.get("/health").status_code == 200
        taken.set()
        for one in occupied:
            one.result()
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "busy"
    until(lambda: figures(client)["vl3edge_requests_admitted"] == 0)
    assert post(client, about_clip()).json()["choices"][0]["message"]["content"] == SAID


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row(client: Any, stream: bool) -> None:
    before = figures(client)["vl3edge_generated_tokens_total"]
    fields = {"messages": [user("?")], "stream": stream, **LONG}
    if stream:
        with client.stream("POST", "/v1/chat/completions", json=fields) as answer:
            next(answer.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/chat/completions", json=fields, timeout=0.3)
    until(lambda: figures(client)["vl3edge_requests_answering"] == 0)
    assert figures(client)["vl3edge_generated_tokens_total"] - before < 2900
    assert figures(client)["vl3edge_requests_admitted"] == 0


def test_figures_for_prometheus(client: Any) -> None:
    post(client, about_clip())
    found = figures(client)
    assert found['vl3edge_visual_tokens_total{pruned="yes"}'] > 0
    assert 0 < found["vl3edge_pruned_share"] < 1
    assert found["vl3edge_first_token_seconds_count"] >= 1
    assert found["vl3edge_between_tokens_seconds_count"] > 5
    assert found["vl3edge_resident_memory_bytes"] > 1e7
    assert found["vl3edge_places"] == 4
    assert found['vl3edge_requests_total{path="/v1/chat/completions",status="200"}'] >= 1
    assert found["vl3edge_tokens_per_second"] > 0


def test_an_answer_may_take_so_long(serve: Callable[..., str]) -> None:
    with httpx.Client(base_url=serve(answer_limit_s=0.4), timeout=60) as client:
        answer = post(client, [user("?")], **LONG)
        assert answer.status_code == 504
        assert "longer than the server's limit of 0.4 s" in answer.json()["error"]["message"]
        with endless(client) as stream:
            events = [line[6:] for line in stream.iter_lines() if line.startswith("data: ")]
    assert json.loads(events[-2])["error"]["type"] == "timeout_error"
    assert events[-1] == "[DONE]"


def test_a_file_that_is_deleted_or_expires_leaves_nothing(serve: Callable[..., str]) -> None:
    with httpx.Client(base_url=serve(keep_uploads_s=1.0), timeout=60) as client:

        def upload() -> str:
            return client.post("/v1/files", files={"file": ("a.png", png())}).json()["id"]

        file_id = upload()
        assert client.get(f"/v1/files/{file_id}/frames", params={"kind": "image"}).json()["kept"] == 64
        assert figures(client)["vl3edge_clip_cache_bytes"] > 0
        assert client.delete(f"/v1/files/{file_id}").json()["deleted"]
        until(lambda: figures(client)["vl3edge_clip_cache_bytes"] == 0)
        assert client.get(f"/v1/files/{file_id}").status_code == 404
        file_id = upload()
        time.sleep(1.1)
        assert client.get(f"/v1/files/{file_id}").status_code == 404
        assert figures(client)["vl3edge_upload_bytes"] == 0


def test_what_the_model_sees_of_an_upload(client: Any) -> None:
    from vl3edge.runtime.serve.settings import ServeSettings

    clip = Path(__file__).resolve().parents[2] / "fixtures" / "demo_clip.mp4"
    file_id = client.post("/v1/files", files={"file": ("clip.mp4", clip.read_bytes())}).json()["id"]
    seen = client.get(f"/v1/files/{file_id}/frames").json()
    asked = post(client, about_clip(url=file_id)).json()["clips"][0]
    assert [frame["time_s"] for frame in seen["frames"]] == asked["timestamps_s"]
    assert [frame["kept"] for frame in seen["frames"]] == asked["tokens_per_frame"]
    assert seen["pruned"] == asked["num_pruned"]
    assert all(re.match("data:image/jpeg;base64,", frame["picture"]) for frame in seen["frames"])
    assert client.get(f"/v1/files/{file_id}/frames", params={"fps": "quick"}).status_code == 400
    assert client.get(f"/v1/files/{file_id}/frames", params={"max_frames": 2}).json()["frames"][1]["time_s"] == 8.0
    assert ServeSettings().host == "127.0.0.1"
