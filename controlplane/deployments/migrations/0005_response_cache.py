from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("deployments", "0004_max_in_flight")]

    operations = [
        migrations.AddField(
            model_name='deployment',
            name='cache_ttl_s',
            field=models.FloatField(default=0.0, help_text='how long an answer may be given again; 0: never'),
        ),
        migrations.AddField(
            model_name='deployment',
            name='cache_bytes',
            field=models.PositiveIntegerField(default=16777216, help_text='of answers kept by one process'),
        ),
        migrations.AddConstraint(
            model_name='deployment',
            constraint=models.CheckConstraint(condition=models.Q(('cache_ttl_s__gte', 0)), name='deployment_cache_ttl_s'),
        ),
    ]
