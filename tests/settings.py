"""The product's settings, pointed at the test run's own services before they are read.

Every process of a run shares one folder: the first makes it and tells the xdist workers through the environment.
"""

import os
import tempfile
from pathlib import Path

ROOT_VARIABLE = "SIGNALBOX_TEST_ROOT"
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")

if ROOT_VARIABLE not in os.environ:
    made = Path(tempfile.mkdtemp(prefix="signalbox-test-"))
    # As root the embedded PostgreSQL runs as another account, which has to walk through.
    made.chmod(0o711)
    os.environ[ROOT_VARIABLE] = str(made)
TEST_ROOT = Path(os.environ[ROOT_VARIABLE])

for name in [name for name in os.environ if name.startswith(("SIGNALBOX_", "DATABASE_URL", "REDIS_URL"))]:
    # A developer's own settings must not reach the tests.
    if name != ROOT_VARIABLE:
        del os.environ[name]
os.environ["SIGNALBOX_HOME"] = str(TEST_ROOT / f"home-{WORKER}")
os.environ["SIGNALBOX_SECRET_KEY"] = "the-secret-of-the-tests-is-long-enough-to-be-one-0123456789"
os.environ["SIGNALBOX_MASTER_KEY"] = "the-master-key-of-the-tests-is-long-enough-0123456789"
# The cluster's files are made by tests.services with these very names.
os.environ["DATABASE_URL"] = (
    f"postgresql://signalbox:tests-only@/signalbox_{WORKER}?host={TEST_ROOT}/cluster/postgres/run"
)
os.environ["REDIS_URL"] = f"redis+socket://{TEST_ROOT}/redis-{WORKER}/redis.sock?virtual_host=0"

from controlplane.settings import *  # noqa: E402, F403

# WhiteNoise warns of a folder that is not there, and warnings are errors.
STATIC_ROOT.mkdir(parents=True, exist_ok=True)  # noqa: F405
