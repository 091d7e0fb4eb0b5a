"""What people look for in the log and seldom find: calls that failed, and those of a version that few got."""

from django.db import migrations

CREATE = """
CREATE INDEX prediction_failed ON prediction (deployment_id, id DESC) WHERE outcome <> 'ok';
CREATE INDEX prediction_version ON prediction (deployment_id, version, id DESC);
"""
DROP = "DROP INDEX prediction_failed; DROP INDEX prediction_version;"


class Migration(migrations.Migration):
    dependencies = [("predictions", "0006_remove_rollup_sketches")]

    operations = [migrations.RunSQL(sql=CREATE, reverse_sql=DROP)]
