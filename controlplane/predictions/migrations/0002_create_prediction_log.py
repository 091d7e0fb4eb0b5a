"""The prediction log: partitioned by day on the UUIDv7 id itself; partitions are made by predictions/partitions.py."""

from django.db import migrations, models

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
    counted boolean NOT NULL,
    digest bigint
) PARTITION BY RANGE (id);
CREATE INDEX prediction_deployment ON prediction (deployment_id, id DESC);
CREATE INDEX prediction_client ON prediction (deployment_id, client_id, id DESC) WHERE client_id <> '';
CREATE INDEX prediction_idempotency ON prediction (deployment_id, idempotency_key) WHERE idempotency_key <> '';
CREATE INDEX prediction_shadow ON prediction (shadow_of) WHERE shadow_of IS NOT NULL;
"""


class Migration(migrations.Migration):
    dependencies = [("predictions", "0001_initial")]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[migrations.RunSQL(sql=CREATE, reverse_sql="DROP TABLE prediction")],
            state_operations=[
                migrations.CreateModel(
                    name='Prediction',
                    fields=[
                        ('id', models.UUIDField(primary_key=True, serialize=False)),
                        ('at', models.DateTimeField()),
                        ('deployment_id', models.UUIDField()),
                        ('version_id', models.UUIDField()),
                        ('version', models.IntegerField()),
                        ('revision', models.IntegerField()),
                        ('routes_generation', models.BigIntegerField()),
                        ('key_id', models.UUIDField(null=True)),
                        ('client_id', models.TextField()),
                        ('retry_of', models.UUIDField(null=True)),
                        ('shadow_of', models.UUIDField(null=True)),
                        ('idempotency_key', models.TextField()),
                        ('source', models.CharField(choices=[('live', 'live'), ('shadow', 'shadow'), ('test', 'test'), ('demo', 'demo')], max_length=8)),
                        ('role', models.CharField(choices=[('live', 'live'), ('shadow', 'shadow')], max_length=8)),
                        ('lane', models.CharField(choices=[('auto', 'auto'), ('inline', 'inline'), ('executor', 'executor'), ('job', 'job')], max_length=10)),
                        ('pinned', models.BooleanField()),
                        ('queue_ms', models.FloatField()),
                        ('compute_ms', models.FloatField()),
                        ('total_ms', models.FloatField()),
                        ('rows', models.IntegerField()),
                        ('outcome', models.CharField(choices=[('ok', 'ok'), ('client_error', 'client_error'), ('server_error', 'server_error'), ('shed', 'shed'), ('timeout', 'timeout')], max_length=12)),
                        ('status', models.SmallIntegerField()),
                        ('code', models.TextField()),
                        ('loc', models.TextField()),
                        ('inputs', models.JSONField(null=True)),
                        ('outputs', models.JSONField(null=True)),
                        ('scores', models.JSONField(null=True)),
                        ('context', models.JSONField(null=True)),
                        ('pictures', models.JSONField(null=True)),
                        ('warnings', models.JSONField(null=True)),
                        ('counted', models.BooleanField()),
                        ('digest', models.BigIntegerField(null=True)),
                    ],
                    options={
                        'db_table': 'prediction',
                        'ordering': ['-id'],
                    },
                ),
            ],
        )
    ]
