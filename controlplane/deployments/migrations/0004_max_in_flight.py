from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("deployments", "0003_batching")]

    operations = [
        migrations.AddField(
            model_name="deployment",
            name="max_in_flight",
            field=models.PositiveIntegerField(default=128, help_text="calls in progress in one serving process"),
        ),
        migrations.AddConstraint(
            model_name="deployment",
            constraint=models.CheckConstraint(
                condition=models.Q(("max_in_flight__gte", 1)), name="deployment_max_in_flight"
            ),
        ),
    ]
