"""The example row of a version's own data, where the file's reader gives none."""

import msgspec
import pytest

from controlplane.catalog import samples
from inference.contracts import Signature
from inference.errors import InferenceError
from inference.runtime.samples import SampleRequest
from inference.runtime.sandbox import SandboxKilled

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "failure", [msgspec.ValidationError("no sample"), InferenceError("bad_reference"), SandboxKilled("crash")]
)
def test_a_reader_that_fails_in_any_way_gives_no_example_and_no_error(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(samples, "sample_in_sandbox", fail)
    assert samples._read("0" * 64, SampleRequest(Signature(inputs=(), outputs=()))) == {}
