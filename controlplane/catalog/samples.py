"""The row of a version's own data that examples show, without what the log would not keep either."""

import logging
from functools import lru_cache

import msgspec

from controlplane.catalog.models import ModelVersion
from controlplane.catalog.storage import path_of
from inference.contracts import VersionRoute
from inference.errors import InferenceError
from inference.runtime.plans import plan_of
from inference.runtime.sample_calls import Sample
from inference.runtime.samples import SampleRequest, sample_in_sandbox
from inference.runtime.sandbox import Sandbox, SandboxKilled

logger = logging.getLogger(__name__)


def sample_row(version: VersionRoute) -> Sample:
    """Values of one row by column name, or by input name where the cells have no names; {} where there is no data.

    Of the reference set, else of the golden inputs. Columns whose capture policy is `hash` or `drop` are left out.
    One query; the first time in a process a file is read in a throw-away child, which takes up to a second.
    """
    names = plan_of(version).columns
    hidden = {column.name for column in version.columns if column.keep != "keep"}
    if version.task.takes_pictures or (hidden and not names):
        return {}
    files = ModelVersion.objects.filter(pk=version.id).values_list("reference_artifact_id", "golden_artifact_id")
    nullable = frozenset(column.name for column in version.columns if column.nullable)
    for golden, sha256 in enumerate(files.first() or ()):
        found = _read(sha256, SampleRequest(version.signature, names, nullable, bool(golden))) if sha256 else {}
        if found:
            return {name: values for name, values in found.items() if name not in hidden}
    return {}


def _read(sha256: str, request: SampleRequest) -> Sample:
    """An example is worth no error page: where the file gives no row, the caller's neutral values stand."""
    try:
        return _read_once(sha256, request)
    except (SandboxKilled, InferenceError, msgspec.MsgspecError, OSError, RuntimeError) as error:
        logger.warning("no example from the file %s: %s", sha256[:12], error)
        return {}


@lru_cache(maxsize=256)
def _read_once(sha256: str, request: SampleRequest) -> Sample:
    # Asked for once a version and process: not worth a warm parent of its own.
    with Sandbox() as sandbox:
        return sample_in_sandbox(sandbox, path_of(sha256), request)
