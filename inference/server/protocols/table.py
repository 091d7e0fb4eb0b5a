"""Which protocols are spoken. A further one is a module beside these, as the package describes it, and a line here."""

from types import ModuleType

from inference.server.protocols import sagemaker, v1, v2

# By the first segment of their paths. V1, V2 and /invocations have paths of their own (inference.server.addresses); of
# any other, POST /SEGMENT/DEPLOYMENT[/versions/N or /labels/L] is a prediction. No page or API has such a segment.
PROTOCOLS: dict[str, ModuleType] = {
    "v1": v1,
    "v2": v2,
    "invocations": sagemaker,
}
