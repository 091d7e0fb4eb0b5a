"""The one failure of this room: something that a person has to change before Signalbox can start."""


class CannotStart(Exception):
    """Its text is one sentence that says what is wrong and what to type; the runner prints it and exits with 1."""
