"""Whether an answer had been computed for an earlier call. With a default in the database no row is rewritten."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("predictions", "0007_index_the_log")]

    operations = [
        migrations.AddField(
            model_name='prediction',
            name='cached',
            field=models.BooleanField(db_default=False, default=False, help_text='answered with what an earlier call got'),
        ),
        migrations.AddField(
            model_name='rollup',
            name='cached',
            field=models.BigIntegerField(db_default=0, default=0, help_text='calls answered with what an earlier one got'),
        ),
    ]
