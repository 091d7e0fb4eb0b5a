"""The calls that one turn of the event loop brought, computed together: under load a model runs once for all of them.

A run of one row costs mostly what a run costs: the kernels' set-up, and a model's nodes and this interpreter's code
driving each other out of the processor's caches. So calls of the inline lane are decoded as they are read, and computed
when the loop has read all that was there. Nobody waits for company: the turn ends before the loop waits for anything.
"""

from collections.abc import Callable, Iterable
from time import monotonic

from inference.errors import InferenceError
from inference.registry import LoadedModel
from inference.runs import Answer, Share
from inference.server.asking import Ask
from inference.server.held import HeldRoutes
from inference.server.protocols import Call
from inference.server.replies import HeaderList

# More calls are computed and answered at once: so the first of many does not wait for the last to be read.
MOST_GATHERED = 64

# An answer: status, headers but for the length, body.
Whole = tuple[int, HeaderList, bytes]
Reply = Callable[[int, HeaderList, bytes], None]


class Gathered(Share, kw_only=True):
    """A decoded call of the inline lane. `line` and `whole`: what goes to the log and to the caller, once computed."""

    ask: Ask
    routes: HeldRoutes
    call: Call
    body: bytes
    reply: Reply
    line: bytes = b""
    whole: Whole = (500, [], b"")

    def answer(self) -> Answer:
        """The answer of a call that was run. Raises what the run raised."""
        if isinstance(self.outcome, Answer):
            return self.outcome
        assert self.outcome is not None
        raise self.outcome


def run_turn(turn: Iterable[Gathered]) -> None:
    """Set the outcome of every call that has none yet."""
    now = monotonic()
    by_model: dict[int, tuple[LoadedModel, list[Share]]] = {}
    for gathered in turn:
        if gathered.outcome is not None:
            continue
        if now >= gathered.ask.deadline:
            gathered.outcome = InferenceError("deadline_exceeded")
            continue
        model = gathered.ask.chosen()[1].loaded()
        by_model.setdefault(id(model), (model, []))[1].append(gathered)
    for model, shares in by_model.values():
        model.run_together(shares)
