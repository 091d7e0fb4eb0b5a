from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("catalog", "0002_version_performance")]

    operations = [
        migrations.AddField(
            model_name="modelversion",
            name="progress",
            field=models.JSONField(default=list, help_text="contracts.ReportCheck as JSON: the checks done so far"),
        )
    ]
