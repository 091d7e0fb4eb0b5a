"""Writes docs/errors.md from the one table of error codes."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from inference.errors import TABLE  # noqa: E402

PAGE = ROOT / "docs" / "errors.md"
HEAD = """# Errors

Made from `inference/errors.py` by `python scripts/errors_page.py`. The prediction API answers
`{"error", "code", "errors": [{"loc", "msg"}], "retryable", "request_id"}`; the control API answers RFC 9457 problem
JSON with the same `code`, `errors` and `request_id`. A retryable error may succeed when tried again later; 429 and 503
say when in `Retry-After`.

| status | code | meaning | retry |
|---|---|---|---|
"""


def page() -> str:
    """The page's text: one row per code, by status."""
    rows = sorted(TABLE.items(), key=lambda item: (item[1].status, item[0]))
    return HEAD + "".join(
        f"| {kind.status} | `{code}` | {kind.meaning} | {'yes' if kind.retryable else ''} |\n" for code, kind in rows
    )


if __name__ == "__main__":
    PAGE.write_text(page())
