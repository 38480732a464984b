"""Locust: one user class for each model of the server, built when the run starts from what the server says of itself.

    python -m locust -f loadtests/locustfile.py --host http://127.0.0.1:8000 --headless -u 8 -t 60s

`make load` runs it with a server of its own. Importing Locust patches the standard library (gevent); no other module of
this package imports it.
"""

import json
import logging
import random
import sys
from pathlib import Path
from typing import Any

from gevent.event import Event
from locust import FastHttpUser, constant, events, task
from locust.env import Environment
from locust.runners import WorkerRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # Locust adds only the folder of this file.

from loadtests.objectives import Measured, Objectives
from loadtests.shapes import SHAPES, users_at
from loadtests.workload import (
    ModelWorkload,
    Server,
    WorkloadError,
    discover,
    parse_pairs,
    parse_server_timing,
    with_weights,
)

_LOG = logging.getLogger("loadtests")
_STAGE = "stage"
_SHAPE_USERS, _SHAPE_S = 16, 120.0
_BUILT = Event()
"""The classes of users exist. A worker gets the order to start before that, if the server is slow to answer."""


def _add_options(parser: Any) -> None:
    group: Any = parser.add_argument_group("Sevenfold")
    group.add_argument("--weights", default="", env_var="LOAD_WEIGHTS", help="traffic per model: clothing=3,all=1")
    group.add_argument("--only", default="", env_var="LOAD_ONLY", help="send to these models only: clothing,adult")
    group.add_argument("--files", default="", env_var="LOAD_FILES", help="folder of pictures and texts to send")
    group.add_argument(
        "--shape", default="", choices=["", *SHAPES], env_var="LOAD_SHAPE", help="how the number of users changes"
    )
    group.add_argument(
        "--shape-users", type=int, default=0, env_var="LOAD_SHAPE_USERS", help="most users of a shape; 0: -u, or 16"
    )
    group.add_argument(
        "--shape-seconds", type=float, default=0.0, env_var="LOAD_SHAPE_SECONDS", help="its duration; 0: -t, or 120"
    )
    group.add_argument("--wait-s", type=float, default=0.0, help="pause of a user after each answer; default: none")
    group.add_argument("--p99-ms", default="", env_var="LOAD_P99_MS", help="objective: 250, or clothing=100,all=250")
    group.add_argument("--max-error-ratio", type=float, default=0.001, env_var="LOAD_MAX_ERROR_RATIO", help="objective")
    group.add_argument("--timeout-ms", type=float, default=0.0, help="deadline that each request states; 0: none")
    group.add_argument("--insecure", action="store_true", help="do not check the certificate of an https host")
    parser.add_argument(
        "--api-key", default="", env_var="SEVENFOLD_API_KEY", is_secret=True, help="sent as Authorization: Bearer"
    )


class PredictUser(FastHttpUser):
    """A client that sends one request after the other to one model; subclasses name the model.

    Locust wants a user class before it knows the host, so this one stands for them until the run starts.
    """

    workload: ModelWorkload
    headers: dict[str, str] = {}

    @task
    def predict(self) -> None:
        """Send a body from the pool and wait for the answer."""
        body = random.choice(self.workload.bodies)
        headers = {**self.headers, "Content-Type": body.content_type}
        client: Any = self.client  # Its types know texts only; it sends bytes as they are.
        path, name = self.workload.path, self.workload.name
        with client.post(path, data=body.content, headers=headers, name=name, catch_response=True) as response:
            if response.status_code == 200:
                self._count_stages(response.headers.get("server-timing") or "")
            else:
                response.failure(_failure(response.status_code, response.content))

    def _count_stages(self, header: str) -> None:
        """Add the server's stages as rows of their own, which do not count as requests in the total."""
        for stage, milliseconds in parse_server_timing(header).items():
            row: Any = self.environment.stats.get(f"{self.workload.name} {stage}", _STAGE)
            row.log(milliseconds, 0)


def _failure(status: int, content: bytes | None) -> str:
    """Return the text by which failures are counted: it must not differ from request to request."""
    if status == 0:
        return "no response"
    try:
        return f"{status} {json.loads(content or b'')['error']['code']}"
    except (ValueError, KeyError, TypeError):
        return str(status)


def _build_users(environment: Environment, **_: Any) -> None:
    """Replace the placeholder by a class for each model, and choose the shape."""
    options: Any = environment.parsed_options
    try:
        server = Server(environment.host or "", options.api_key, verify=not options.insecure)
        files = Path(options.files) if options.files else None
        only = tuple(filter(None, options.only.split(",")))
        workloads = with_weights(discover(server, files=files, only=only), options.weights)
        objectives = Objectives(parse_pairs(options.p99_ms, "--p99-ms"), options.max_error_ratio)
    except WorkloadError as error:
        _LOG.error("%s", error)
        environment.process_exit_code = 2
        sys.exit(2)
    headers = server.headers | ({"X-Request-Timeout-Ms": f"{options.timeout_ms:g}"} if options.timeout_ms else {})
    environment.user_classes[:] = [
        type(
            workload.name,
            (PredictUser,),
            {
                "workload": workload,
                "headers": headers,
                "weight": max(1, round(100 * workload.weight)),
                "insecure": options.insecure,
                "wait_time": constant(options.wait_s),
                "__module__": __name__,
            },
        )
        for workload in workloads
    ]
    if options.shape:
        users = options.shape_users or options.num_users or _SHAPE_USERS
        environment.shape_class = _shape(options.shape, users, options.shape_seconds or options.run_time or _SHAPE_S)
        options.run_time = None  # The shape ends the run; Locust's own timer would end it as well.
    _report_at_end(environment, objectives)
    _BUILT.set()


def _shape(name: str, users: int, seconds: float) -> Any:
    from locust import LoadTestShape  # In this module's names, Locust would take the base class for a shape.

    class Shape(LoadTestShape):
        def tick(self: Any) -> tuple[int, float] | None:
            count = users_at(SHAPES[name], self.get_run_time() / seconds, users)
            return None if count is None else (count, max(1.0, float(users)))

    make: Any = Shape
    return make()


def _report_at_end(environment: Environment, objectives: Objectives) -> None:
    """Set the exit code by the objectives, where the statistics of all workers come together."""
    if isinstance(environment.runner, WorkerRunner):
        return

    def judge(environment: Environment, **_: Any) -> None:
        verdict = objectives.judge(
            [
                Measured(
                    entry.name, entry.num_requests, entry.num_failures, entry.get_response_time_percentile(0.99) or 0.0
                )
                for entry in environment.stats.entries.values()
                if entry.method != _STAGE
            ]
        )
        print(verdict.table())
        if environment.runner is not None and getattr(environment.runner, "cpu_warning_emitted", False):
            print("The load generator used more than 90 % of a core: add workers, these figures are its own limit.")
        environment.process_exit_code = 0 if verdict.kept else 1

    hooks: Any = environment.events
    hooks.quitting.add_listener(judge)


_hooks: Any = events
_hooks.init_command_line_parser.add_listener(_add_options)
_hooks.init.add_listener(_build_users)
_hooks.test_start.add_listener(lambda **_: _BUILT.wait())
