"""Django settings, from the environment alone. Every variable is described in docs/operate.md."""

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from csp.constants import NONE, SELF, UNSAFE_INLINE
from django.core.exceptions import ImproperlyConfigured

from controlplane import environment

BASE_DIR = Path(__file__).resolve().parent.parent
VERSION = "0.1.0"

# Where everything lives
SIGNALBOX_HOME = Path(environment.text("SIGNALBOX_HOME") or BASE_DIR / "var").absolute()
SIGNALBOX_RUN = SIGNALBOX_HOME / "run"
SIGNALBOX_ARTIFACTS = SIGNALBOX_HOME / "artifacts"
SIGNALBOX_SPOOL = SIGNALBOX_HOME / "spool"
SIGNALBOX_PICTURES = SIGNALBOX_HOME / "pictures"
SIGNALBOX_HOST = environment.text("SIGNALBOX_HOST", "127.0.0.1")
SIGNALBOX_PORT = environment.integer("SIGNALBOX_PORT", 8000, 0, 65535)
SIGNALBOX_DEMO = environment.flag("SIGNALBOX_DEMO", default=False)
SIGNALBOX_PUBLIC_URL = environment.text("SIGNALBOX_PUBLIC_URL").rstrip("/")
SIGNALBOX_TRUSTED_PROXIES = [p.strip() for p in environment.text("SIGNALBOX_TRUSTED_PROXIES").split(",") if p.strip()]
SIGNALBOX_MAX_MODEL_BYTES = environment.integer("SIGNALBOX_MAX_MODEL_MB", 2000, 1, 2047) * 1024 * 1024
SIGNALBOX_MAX_PICTURE_BYTES = environment.integer("SIGNALBOX_MAX_PICTURE_MB", 64, 1, 1024) * 1024 * 1024
# The worker runs this many pictures of one version at once.
SIGNALBOX_JOB_BATCH = environment.integer("SIGNALBOX_JOB_BATCH", 8, 1, 256)
SIGNALBOX_WORKER_DEVICE = environment.text("SIGNALBOX_WORKER_DEVICE", "auto")

SECRET_KEY = environment.generated_secret("SIGNALBOX_SECRET_KEY", SIGNALBOX_HOME / "secret-key")
# Wraps the per-object keys of stored pictures; kept outside the database on purpose.
SIGNALBOX_MASTER_KEY = environment.generated_secret("SIGNALBOX_MASTER_KEY", SIGNALBOX_HOME / "master-key")

DEBUG = False
_public = urlsplit(SIGNALBOX_PUBLIC_URL)
if SIGNALBOX_PUBLIC_URL and (_public.scheme not in ("http", "https") or not _public.hostname):
    raise ImproperlyConfigured(
        f"SIGNALBOX_PUBLIC_URL={SIGNALBOX_PUBLIC_URL!r} is not an address: use the form https://signalbox.example.org."
    )
SERVED_OVER_TLS = _public.scheme == "https"
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]"]
if _public.hostname:
    ALLOWED_HOSTS.append(_public.hostname)
elif SIGNALBOX_HOST not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
    ALLOWED_HOSTS.append(SIGNALBOX_HOST)
else:
    ALLOWED_HOSTS = ["*"]  # reached only with SIGNALBOX_INSECURE_HTTP=1, which `up` and the front door demand
CSRF_TRUSTED_ORIGINS = [SIGNALBOX_PUBLIC_URL] if SIGNALBOX_PUBLIC_URL else []

INSTALLED_APPS = [
    "controlplane.dashboard",
    "controlplane.api",
    "controlplane.monitoring",
    "controlplane.studies",
    "controlplane.jobs",
    "controlplane.predictions",
    "controlplane.deployments",
    "controlplane.catalog",
    "controlplane.accounts",
    "controlplane.audit",
    "controlplane.local",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "django.contrib.postgres",
    "django.forms",
    "allauth",
    "allauth.account",
    "allauth.socialaccount",
    "allauth.socialaccount.providers.openid_connect",
    "allauth.mfa",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "django_htmx",
    "csp",
]
MIDDLEWARE = [
    "controlplane.audit.middleware.RequestIdMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "servestatic.middleware.ServeStaticMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    # Deny by default: a page without a signed-in person must say so (sign-in pages do; the API answers for itself).
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]
ROOT_URLCONF = "controlplane.urls"
ASGI_APPLICATION = "controlplane.asgi.application"
APPEND_SLASH = False
TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "controlplane.dashboard.context.frame",
            ]
        },
    }
]
FORM_RENDERER = "django.forms.renderers.TemplatesSetting"

# PostgreSQL


def _database(url: str, pooled: bool) -> dict[str, Any]:
    """Settings for a postgresql:// URL. `pooled` is for web processes: a small pool each, none in forked children."""
    parts = urlsplit(url)
    if parts.scheme not in ("postgres", "postgresql"):
        raise ImproperlyConfigured(
            "DATABASE_URL is not a PostgreSQL address: use the form postgresql://user:password@host:5432/name."
        )
    options: dict[str, Any] = {}
    host = unquote(parts.hostname or "")
    for pair in filter(None, parts.query.split("&")):
        name, _, value = pair.partition("=")
        if name == "host":
            host = unquote(value)
        else:
            options[name] = unquote(value)
    if pooled:
        options["pool"] = {"min_size": 1, "max_size": 10, "timeout": 10}
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.lstrip("/")) or "signalbox",
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": host,
        "PORT": str(parts.port or ""),
        "OPTIONS": options,
    }


# Without DATABASE_URL commands reach the embedded server of this home, whose address `up` writes there.
_url_file = SIGNALBOX_HOME / "run" / "database-url"
DATABASE_URL = environment.text("DATABASE_URL") or (_url_file.read_text().strip() if _url_file.exists() else "")
DATABASES = {
    "default": _database(
        DATABASE_URL or "postgresql://signalbox@localhost/signalbox", environment.flag("SIGNALBOX_DATABASE_POOL")
    )
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Redis carries Celery's messages, and counts what keys with a limit post as jobs.
_redis_file = SIGNALBOX_HOME / "run" / "redis-url"
REDIS_URL = environment.text("REDIS_URL") or (_redis_file.read_text().strip() if _redis_file.exists() else "")

# People
AUTH_USER_MODEL = "accounts.User"
AUTHENTICATION_BACKENDS = ["allauth.account.auth_backends.AuthenticationBackend"]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.Argon2PasswordHasher"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "/accounts/login/"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "/accounts/login/"
ACCOUNT_ADAPTER = "controlplane.accounts.adapter.AccountAdapter"
ACCOUNT_LOGIN_METHODS = {"username", "email"}
ACCOUNT_SIGNUP_FIELDS = ["username*", "email", "password1*", "password2*"]
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_LOGOUT_ON_GET = False
ACCOUNT_RATE_LIMITS = {"login_failed": "10/5m/key,50/5m/ip"}
ALLAUTH_TRUSTED_PROXY_COUNT = 1  # the front door, which sets X-Forwarded-For itself from the peer it sees
MFA_SUPPORTED_TYPES = ["totp", "recovery_codes", "webauthn"]
MFA_PASSKEY_LOGIN_ENABLED = False
SOCIALACCOUNT_ONLY = False
CACHES = {"default": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "cache"}}

# Browsers
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_AGE = 12 * 3600
SESSION_SAVE_EVERY_REQUEST = False
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SERVED_OVER_TLS
SESSION_COOKIE_NAME = "__Host-session" if SERVED_OVER_TLS else "signalbox-session"
CSRF_COOKIE_NAME = "__Host-csrf" if SERVED_OVER_TLS else "signalbox-csrf"
CSRF_FAILURE_VIEW = "controlplane.dashboard.views.failures.csrf_failed"
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SECURE_SSL_REDIRECT = SERVED_OVER_TLS
SECURE_HSTS_SECONDS = 31_536_000 if SERVED_OVER_TLS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = SERVED_OVER_TLS
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "script-src": [SELF],
        # Plotly sets style attributes on what it draws.
        "style-src": [SELF, UNSAFE_INLINE],
        "img-src": [SELF, "data:", "blob:"],
        "object-src": [NONE],
        "base-uri": [NONE],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
    }
}

# Uploads stay in memory: the default handler would spill pictures of patients into clear temporary files.
# Model uploads are streamed past it (controlplane/catalog/uploads.py).
FILE_UPLOAD_HANDLERS = ["django.core.files.uploadhandler.MemoryFileUploadHandler"]
FILE_UPLOAD_MAX_MEMORY_SIZE = SIGNALBOX_MAX_PICTURE_BYTES
DATA_UPLOAD_MAX_MEMORY_SIZE = SIGNALBOX_MAX_PICTURE_BYTES
DATA_UPLOAD_MAX_NUMBER_FILES = 20

STATIC_URL = "/static/"
STATICFILES_DIRS = [BASE_DIR / "static"]
STATIC_ROOT = SIGNALBOX_HOME / "static"
STATICFILES_FINDERS = [
    "django.contrib.staticfiles.finders.FileSystemFinder",
    "django.contrib.staticfiles.finders.AppDirectoriesFinder",
    "controlplane.dashboard.finders.PackageFilesFinder",
]
SERVESTATIC_USE_FINDERS = True
SERVESTATIC_AUTOREFRESH = False

LANGUAGE_CODE = "en-us"
USE_TZ = True
TIME_ZONE = "UTC"
USE_I18N = False

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "controlplane.api.authentication.ApiKeyAuthentication",
        "controlplane.api.authentication.SessionWithCsrfAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_PARSER_CLASSES": [
        "controlplane.api.parsers.StrictJSONParser",
        "rest_framework.parsers.FormParser",
        "rest_framework.parsers.MultiPartParser",
    ],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PAGINATION_CLASS": "controlplane.api.pagination.CursorPagination",
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "controlplane.api.problems.problem_handler",
    "PAGE_SIZE": 50,
    "UNAUTHENTICATED_USER": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Signalbox control API",
    "VERSION": VERSION,
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    # Two fields are called `state`: a version's and a split revision's.
    "ENUM_NAME_OVERRIDES": {
        "VersionStateEnum": "controlplane.catalog.models.VersionState",
        "RevisionStateEnum": "controlplane.deployments.models.RevisionState",
    },
    "SERVE_PERMISSIONS": ["rest_framework.permissions.IsAuthenticated"],
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": "INFO"},
    "loggers": {"django.request": {"level": "ERROR"}, "celery": {"level": "INFO"}},
}
SILENCED_SYSTEM_CHECKS: list[str] = []
