"""Sketches move out of the rollups. They stay packed as they are: every kind in one; each kind's row reads its own."""

from django.db import migrations

# Buckets under ten minutes become those of ten minutes; the rest keeps its width. Compaction closes them all.
MOVE = """
INSERT INTO sketch_rollup
    (deployment_id, version_id, version, role, source, kind, bucket, width_s, form, packed)
SELECT deployment_id, version_id, version, role, source, kinds.kind,
    to_timestamp(floor(extract(epoch FROM bucket) / greatest(width_s, 600)) * greatest(width_s, 600)),
    greatest(width_s, 600), 1, sketches
FROM prediction_rollup, (VALUES ('features'), ('scores'), ('pictures')) AS kinds (kind)
WHERE deployment_id IS NOT NULL AND version_id IS NOT NULL AND sketches <> ''::bytea
"""


class Migration(migrations.Migration):
    dependencies = [("predictions", "0004_sketch_rollup")]

    operations = [migrations.RunSQL(MOVE, migrations.RunSQL.noop)]
