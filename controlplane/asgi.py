"""The Django processes' ASGI entry point; uvicorn serves it on a Unix socket behind the front door."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")

application = get_asgi_application()
