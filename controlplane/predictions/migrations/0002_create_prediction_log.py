"""The prediction log: partitioned by day on the UUIDv7 id itself; partitions are made by predictions/partitions.py."""

from django.db import migrations

CREATE = """
CREATE TABLE prediction (
    id uuid PRIMARY KEY,
    at timestamptz NOT NULL,
    deployment_id uuid NOT NULL,
    version_id uuid NOT NULL,
    version integer NOT NULL,
    revision integer NOT NULL,
    routes_generation bigint NOT NULL,
    key_id uuid,
    client_id text NOT NULL,
    retry_of uuid,
    shadow_of uuid,
    idempotency_key text NOT NULL,
    source text NOT NULL,
    role text NOT NULL,
    lane text NOT NULL,
    pinned boolean NOT NULL,
    queue_ms real NOT NULL,
    compute_ms real NOT NULL,
    total_ms real NOT NULL,
    rows integer NOT NULL,
    outcome text NOT NULL,
    status smallint NOT NULL,
    code text NOT NULL,
    loc text NOT NULL,
    inputs jsonb,
    outputs jsonb,
    scores jsonb,
    context jsonb,
    pictures jsonb,
    warnings jsonb,
    counted boolean NOT NULL
) PARTITION BY RANGE (id);
CREATE INDEX prediction_deployment ON prediction (deployment_id, id DESC);
CREATE INDEX prediction_client ON prediction (deployment_id, client_id, id DESC) WHERE client_id <> '';
CREATE INDEX prediction_retry ON prediction (retry_of) WHERE retry_of IS NOT NULL;
CREATE INDEX prediction_shadow ON prediction (shadow_of) WHERE shadow_of IS NOT NULL;
"""


class Migration(migrations.Migration):
    dependencies = [("predictions", "0001_initial")]

    operations = [migrations.RunSQL(sql=CREATE, reverse_sql="DROP TABLE prediction")]
