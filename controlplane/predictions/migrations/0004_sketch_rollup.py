from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("predictions", "0003_feedback_blind")]

    operations = [
        migrations.CreateModel(
            name="SketchRollup",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("deployment_id", models.UUIDField()),
                ("version_id", models.UUIDField()),
                ("version", models.IntegerField()),
                ("role", models.CharField(max_length=8)),
                ("source", models.CharField(max_length=8)),
                ("kind", models.CharField(max_length=10)),
                ("bucket", models.DateTimeField(help_text="start of the bucket, a multiple of `width_s` since 1970")),
                ("width_s", models.IntegerField()),
                (
                    "form",
                    models.SmallIntegerField(
                        choices=[(1, "sketches that more may be added to"), (2, "digests of a bucket that is over")]
                    ),
                ),
                ("packed", models.BinaryField()),
            ],
            options={
                "db_table": "sketch_rollup",
                "indexes": [
                    models.Index(fields=["deployment_id", "kind", "bucket"], name="sketch_deployment_bucket"),
                    models.Index(fields=["width_s", "bucket"], name="sketch_width_bucket"),
                    models.Index(condition=models.Q(("form", 1)), fields=["bucket"], name="sketch_open"),
                ],
            },
        ),
        # Sketches do not compress; trying costs more than reading them.
        migrations.RunSQL(
            "ALTER TABLE sketch_rollup ALTER COLUMN packed SET STORAGE EXTERNAL", migrations.RunSQL.noop
        ),
    ]
