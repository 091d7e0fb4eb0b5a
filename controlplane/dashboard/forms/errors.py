"""Puts a service's refusal where the person can mend it: at the field that caused it."""

from django import forms

from controlplane.errors import DomainError


def show(form: forms.Form, error: DomainError, **renamed: str) -> None:
    """Adds each located message to the field its path begins with (`renamed` maps path -> field), else to the form."""
    placed = False
    for located in error.errors:
        first = str(located["loc"][0]) if located["loc"] else ""
        name = renamed.get(first, first)
        if name in form.fields:
            form.add_error(name, located["msg"])
            placed = True
    if not placed:
        form.add_error(None, error.message)
