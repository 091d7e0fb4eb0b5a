# One image for every part of Signalbox; docker-compose.yml says what each container runs.
FROM python:3.12-slim-bookworm

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    DJANGO_SETTINGS_MODULE=controlplane.settings SIGNALBOX_HOME=/var/lib/signalbox

RUN groupadd --gid 10001 signalbox \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/signalbox --shell /usr/sbin/nologin signalbox \
    && install -d -o signalbox -g signalbox -m 0700 /var/lib/signalbox /var/lib/signalbox/run \
       /var/lib/signalbox/spool /var/lib/signalbox/artifacts /var/lib/signalbox/pictures

WORKDIR /opt/signalbox
COPY requirements.lock ./
# The product's part of the lock; the rest is for tests.
RUN sed '/^# ---- tests and checks only/,$d' requirements.lock > /tmp/product.txt \
    && pip install --require-hashes --no-deps -r /tmp/product.txt \
    && rm /tmp/product.txt
COPY manage.py pyproject.toml ./
COPY inference inference
COPY controlplane controlplane
COPY templates templates
COPY static static
COPY examples examples
# The account that runs them may not write here, so each start would compile them again.
RUN python -m compileall -q manage.py inference controlplane examples

USER signalbox
VOLUME ["/var/lib/signalbox"]
