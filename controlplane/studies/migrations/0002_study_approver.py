from django.db import migrations, models

# Of studies that were sent before: who approves now is the best that is known.
COPY = """
UPDATE studies_study SET approver = deployments_deployment.approver FROM deployments_deployment
WHERE deployments_deployment.id = studies_study.deployment_id AND studies_study.purpose = 'clinical'
"""


class Migration(migrations.Migration):
    dependencies = [("studies", "0001_initial"), ("deployments", "0002_purpose")]

    operations = [
        migrations.AddField(
            model_name="study",
            name="approver",
            field=models.CharField(blank=True, default="", help_text="likewise; who had approved clinical use", max_length=200),
            preserve_default=False,
        ),
        migrations.RunSQL(COPY, migrations.RunSQL.noop),
    ]
