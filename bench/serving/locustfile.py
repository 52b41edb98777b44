"""What each user of the load generator does: short chats, one in two streamed; run by locust, not by us."""

import time

from locust import HttpUser, task

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "What is a pipe?"}], "max_tokens": 24}


class Caller(HttpUser):
    """Asks again as soon as it has its answer."""

    @task
    def whole(self) -> None:
        self.client.post("/v1/chat/completions", json=BODY, name="chat, whole")

    @task
    def streamed(self) -> None:
        began, first = time.perf_counter(), None
        body = BODY | {"stream": True}
        with self.client.post("/v1/chat/completions", json=body, stream=True, name="chat, streamed") as response:
            for line in response.iter_lines():
                if first is None and b'"content":"' in line.replace(b" ", b"") and b'"content":""' not in line:
                    first = time.perf_counter() - began
        if first is not None:
            self.environment.events.request.fire(
                request_type="POST", name="chat, first token", response_time=first * 1e3, response_length=0,
                exception=None, context={},
            )  # fmt: skip
