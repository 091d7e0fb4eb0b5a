from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("accounts", "0002_cache_table")]

    operations = [
        migrations.AddField(
            model_name="apikey",
            name="quota_per_day",
            field=models.PositiveBigIntegerField(blank=True, help_text="calls a day of UTC", null=True),
        ),
        migrations.CreateModel(
            name="QuotaUse",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("key_id", models.UUIDField()),
                ("day", models.DateField()),
                ("calls", models.BigIntegerField()),
            ],
            options={
                "db_table": "quota_use",
                "constraints": [models.UniqueConstraint(fields=("key_id", "day"), name="quota_use_day")],
            },
        ),
    ]
