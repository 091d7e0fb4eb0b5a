"""The peers: which, at which versions, how each is started; each lives in a virtual environment of its own.

A peer that cannot be installed or started is told as "not run" with the reason. Each gets one process or worker where
it knows such a number, and all of its processes share the first processor, where Signalbox's serving process is, too.
"""

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from benchmarks.calls import Case, call_of
from benchmarks.load import Target, on_first_core
from benchmarks.models import Model
from benchmarks.subjects import answers
from tests.services import REPOSITORY, clean_environment, free_port

CACHE = Path("~/.cache/signalbox-bench")
PROGRAMS = REPOSITORY / "benchmarks" / "peer_servers"
MOST_MB = 2_000
_INSTALL_S, _START_S = 1_800, 120
_MARK = "SIGNALBOX_BENCH_PEER"
# The same runtime as the product's own in each.
_RUNTIME = "onnxruntime==1.31.1"


class NotRunError(Exception):
    """A peer could not be installed or started; the text says why."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a peer's command is made of; `file` and `port` are in its environment too, as MODEL and PORT."""

    python: Path
    file: Path
    port: int
    folder: Path

    def beside(self, program: str) -> str:
        """A program of the peer's virtual environment."""
        return str(self.python.with_name(program))


@dataclass(frozen=True, slots=True)
class Peer:
    """One peer: its virtual environment's folder and packages, the command that starts it, its path by form."""

    name: str
    folder: str
    how: str
    pins: tuple[str, ...]
    command: Callable[[Start], Sequence[str]]
    forms: dict[str, str]
    python: str = sys.executable

    def home(self, cache: Path) -> Path:
        return cache.expanduser() / self.folder

    def install(self, cache: Path) -> dict[str, str]:
        """Makes its virtual environment where it is missing or has other pins; returns the versions in it by package.

        Raises NotRunError.
        """
        home = self.home(cache)
        stamp = home / "installed"
        # By version where it is the product's own, which lies elsewhere in another checkout.
        python = f"Python {platform.python_version()}" if self.python == sys.executable else self.python
        wanted = "\n".join((python, *self.pins))
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(home, ignore_errors=True)
            home.parent.mkdir(parents=True, exist_ok=True)
            _run([self.python, "-m", "venv", str(home)], "its virtual environment could not be made")
            pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            _run([*pip, "--no-input", *self.pins], "its packages could not be installed")
            size_mb = sum(file.lstat().st_size for file in home.rglob("*") if file.is_file()) / 1e6
            if size_mb > MOST_MB:
                shutil.rmtree(home, ignore_errors=True)
                raise NotRunError(f"its packages have {size_mb:,.0f} MB, more than {MOST_MB:,}")
            stamp.write_text(wanted)
        listed = _run([str(home / "bin" / "python"), "-m", "pip", "list", "--format=json"], "pip failed")
        packages = {one["name"].lower(): one["version"] for one in json.loads(listed)}
        names = (pin.partition("==")[0].partition("[")[0].lower() for pin in self.pins)
        return {name: packages[name] for name in names if name in packages}


@dataclass(frozen=True, slots=True)
class RunningPeer:
    """A peer that answers for one model."""

    name: str
    forms: dict[str, str]
    model: Model
    base_url: str

    def target(self, case: Case) -> Target | None:
        if case.form not in self.forms or case.model.name != self.model.name:
            return None
        call = call_of(case)
        return Target(self.name, self.base_url + self.forms[case.form], call.headers, call.body)


@contextmanager
def serving(peer: Peer, model: Model, cache: Path) -> Iterator[RunningPeer]:
    """The peer, started with the model's first version and ended afterwards, whatever it started itself included.

    Raises NotRunError where it does not answer in time.
    """
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="sb-peer-"))
    home = peer.home(cache).absolute()
    mark = uuid4().hex
    environment = {
        **clean_environment(),
        _MARK: mark,
        "MODEL": str(model.file()),
        "PORT": str(port),
        "PYTHONPATH": str(PROGRAMS),
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(home),
        "OMP_NUM_THREADS": "1",
        "BENTOML_HOME": str(folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),
        "PYTRITON_HOME": str(folder / "pytriton"),
    }
    output = folder / "output"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            on_first_core(list(peer.command(Start(home / "bin" / "python", model.file(), port, folder)))),
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    running = RunningPeer(peer.name, peer.forms, model, f"http://127.0.0.1:{port}")
    try:
        target = running.target(Case(model, next(iter(peer.forms)), 1))
        assert target is not None
        give_up_at = time.monotonic() + _START_S
        while not answers(target):
            if process.poll() is not None or time.monotonic() > give_up_at:
                state = "ended" if process.poll() is not None else f"did not answer in {_START_S} s"
                raise NotRunError(f"it {state}: {_last_line(output.read_text(errors='replace'))}")
            time.sleep(0.2)
        yield running
    finally:
        _end(process, mark)
        shutil.rmtree(folder, ignore_errors=True)


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(15)
    # What left its group, or did not heed.
    while left := _marked(mark):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
        time.sleep(0.05)


def _marked(mark: str) -> list[int]:
    """Processes that were started with this mark in their environment and are not mere entries for a parent to read."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if f"{_MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def _run(command: list[str], what: str) -> str:
    """What the command printed. Raises NotRunError with `what` and the last line that it complained in."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotRunError(f"{what}: {error}") from error
    if done.returncode:
        raise NotRunError(f"{what}: {_last_line(done.stderr)}")
    return done.stdout


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if "rror" in line] or lines or ["it said nothing"]
    return told[-1][:200]


def _mlserver(start: Start) -> list[str]:
    settings = {
        "host": "127.0.0.1",
        "http_port": start.port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "parallel_workers": 0,
    }
    (start.folder / "settings.json").write_text(json.dumps(settings))
    model = {"name": "bench", "implementation": "mlserver_runtime.OnnxRuntime"}
    (start.folder / "model-settings.json").write_text(json.dumps(model))
    return [start.beside("mlserver"), "start", str(start.folder)]


def _fastapi(start: Start) -> list[str]:
    # The program of `make bench`, with this peer's own packages.
    return [str(start.python), str(REPOSITORY / "benchmarks" / "bare.py"), "fastapi", str(start.file), str(start.port)]


def _flask(start: Start) -> list[str]:
    address = f"--bind=127.0.0.1:{start.port}"
    return [start.beside("gunicorn"), "--workers=1", "--threads=8", address, "flask_app:app"]


def _bentoml(start: Start) -> list[str]:
    address = ["--host=127.0.0.1", f"--port={start.port}"]
    return [start.beside("bentoml"), "serve", "bentoml_service:Predict", *address, f"--working-dir={PROGRAMS}"]


def _program(name: str) -> Callable[[Start], list[str]]:
    return lambda start: [str(start.python), str(PROGRAMS / name)]


_V1 = {"v1": "/v1"}
_V2 = "/v2/models/bench/infer"
_UVICORN = ("uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0", "orjson==3.13.0")

PEERS = (
    Peer(
        "FastAPI",
        "fastapi",
        "async def, typed body, uvicorn with uvloop and httptools",
        ("fastapi==0.163.2", *_UVICORN, _RUNTIME),
        _fastapi,
        _V1,
    ),
    Peer(
        "Flask",
        "flask",
        "gunicorn, one worker of 8 threads",
        ("flask==3.1.3", "gunicorn==27.0.1", _RUNTIME),
        _flask,
        _V1,
    ),
    Peer(
        "MLServer",
        "mlserver",
        "a custom runtime, without parallel workers",
        ("mlserver==1.7.1", _RUNTIME),
        _mlserver,
        {"v2": _V2},
    ),
    Peer(
        "BentoML",
        "bentoml",
        "a service of one worker, batching off",
        ("bentoml==1.4.39", _RUNTIME),
        _bentoml,
        _V1,
    ),
    Peer(
        "LitServe",
        "litserve",
        "one API server, one worker, batching off",
        ("litserve==0.2.19", _RUNTIME),
        _program("litserve_app.py"),
        _V1,
    ),
    Peer(
        "Ray Serve",
        "ray",
        "one replica behind its proxy",
        ("ray[serve]==2.60.0", _RUNTIME),
        _program("ray_app.py"),
        _V1,
    ),
    Peer(
        "Triton",
        "triton",
        "through PyTriton, its dynamic batching as by default",
        ("nvidia-pytriton==0.7.0", _RUNTIME),
        _program("triton_app.py"),
        {"v2": _V2, "v2-binary": _V2},
        # Its server is linked against the distribution's Python.
        python="/usr/bin/python3",
    ),
)
