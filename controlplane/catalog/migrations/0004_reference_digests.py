import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("catalog", "0003_version_progress")]

    operations = [
        migrations.CreateModel(
            name="ReferenceDigests",
            fields=[
                (
                    "version",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="reference_digests",
                        serialize=False,
                        to="catalog.modelversion",
                    ),
                ),
                ("packed", models.BinaryField()),
            ],
            options={"db_table": "catalog_reference_digests"},
        ),
    ]
