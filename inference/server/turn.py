"""The calls that one turn of the event loop brought, computed together: under load a model runs once for all of them.

A run of one row costs mostly what a run costs: the kernels' set-up, and a model's nodes and this interpreter's code
driving each other out of the processor's caches. So calls of the inline lane are decoded as they are read, and computed
when the loop has read all that was there. Nobody waits for company: the turn ends before the loop waits for anything.
"""

from collections.abc import Callable, Sequence
from time import monotonic

from inference.errors import InferenceError
from inference.registry import LoadedModel
from inference.runs import Answer, Share
from inference.server.asking import Ask
from inference.server.held import HeldRoutes
from inference.server.protocols import Call
from inference.server.replies import HeaderList
from inference.spool import SpoolWriter

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

    @classmethod
    def of(cls, ask: Ask, routes: HeldRoutes, call: Call, body: bytes, reply: Reply, kept: Answer | None) -> "Gathered":
        """A call whose version is chosen; `kept`: what was computed for one like it."""
        return cls(
            inputs=call.inputs,
            rows=call.rows,
            most_rows=ask.chosen()[1].bounds.max_rows,
            outcome=kept,
            ask=ask,
            routes=routes,
            call=call,
            body=body,
            reply=reply,
        )

    def answer(self) -> Answer:
        """The answer of a call that was run. Raises what the run raised."""
        if isinstance(self.outcome, Answer):
            return self.outcome
        assert self.outcome is not None
        raise self.outcome


def run_turn(turn: Sequence[Gathered]) -> None:
    """Set the outcome of every call that has none yet; answers are kept where their deployment says so."""
    now = monotonic()
    by_model: dict[int, tuple[LoadedModel, list[Gathered]]] = {}
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
        for gathered in shares:
            cache = gathered.ask.chosen()[1].cache
            if cache is not None and isinstance(gathered.outcome, Answer):
                try:
                    cache.keep(gathered.call, gathered.outcome)
                except Exception as error:  # boundary: one call's fault is not to keep the others from their answers
                    gathered.outcome = error


def write_turn(turn: Sequence[Gathered], spool: SpoolWriter) -> None:
    """Write the lines of a turn; what could not be written becomes the outcome of its call."""
    computed = [gathered for gathered in turn if gathered.line]
    for gathered, fault in zip(computed, spool.append_lines([each.line for each in computed]), strict=True):
        if fault is not None:
            gathered.outcome = fault
