import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = [("deployments", "0002_purpose")]

    operations = [
        migrations.CreateModel(
            name="DriftVerdict",
            fields=[
                (
                    "deployment",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="drift_verdict",
                        serialize=False,
                        to="deployments.deployment",
                    ),
                ),
                ("checked_at", models.DateTimeField()),
                ("compared", models.IntegerField()),
                ("moved", models.IntegerField()),
                ("most", models.TextField(blank=True)),
                (
                    "prediction",
                    models.BooleanField(
                        help_text="None where there is nothing to compare its answers with", null=True
                    ),
                ),
                ("since", models.DateTimeField(null=True)),
                ("baseline", models.CharField(blank=True, max_length=10)),
            ],
            options={
                "db_table": "drift_verdict",
                "indexes": [models.Index(fields=["checked_at"], name="drift_verdict_checked")],
            },
        ),
    ]
