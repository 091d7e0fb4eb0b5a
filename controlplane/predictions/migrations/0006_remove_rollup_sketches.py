from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("predictions", "0005_move_sketches")]

    operations = [migrations.RemoveField(model_name="rollup", name="sketches")]
