"""The Django processes' ASGI entry point; uvicorn serves it on a Unix socket behind the front door."""

import os
import tempfile

from django.core.asgi import get_asgi_application
from django.urls import get_resolver

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")

django_application = get_asgi_application()

from controlplane.api.bodies import BodyLimits  # noqa: E402 - needs Django's apps
from controlplane.catalog.storage import drafts_folder  # noqa: E402
from inference.runtime import collector  # noqa: E402

# Django spools a large body to a nameless file; /tmp may be small, or memory.
tempfile.tempdir = str(drafts_folder())
application = BodyLimits(django_application)

# The pages are imported here and not by the first call, which need not wait for them then.
_ = get_resolver().url_patterns
collector.settle()
