"""The pages."""

from django.urls import path

from controlplane.dashboard import study_urls
from controlplane.dashboard.views import (
    accuracy,
    audit,
    deployments,
    drift,
    frame,
    jobs,
    keys,
    models,
    overview,
    predictions,
    split,
    system,
    tryit,
)

app_name = "pages"

urlpatterns = [
    path("", overview.overview, name="overview"),
    path("theme/", frame.theme, name="theme"),
    path("deployments/", deployments.deployments, name="deployments"),
    path("deployments/new/", deployments.new, name="deployment_new"),
    path("deployments/create/", deployments.create, name="deployment_create"),
    path("deployments/<slug:name>/", deployments.traffic, name="traffic"),
    path("deployments/<slug:name>/head/", deployments.head_live, name="head_live"),
    path("deployments/<slug:name>/traffic/", deployments.traffic_live, name="traffic_live"),
    path("deployments/<slug:name>/errors/", deployments.errors_live, name="errors_live"),
    path("deployments/<slug:name>/history/", deployments.history_live, name="history_live"),
    path("deployments/<slug:name>/split/", split.apply, name="split_apply"),
    path("deployments/<slug:name>/return/", split.return_to, name="split_return"),
    path("deployments/<slug:name>/latency/", deployments.latency, name="latency"),
    path("deployments/<slug:name>/accuracy/", accuracy.accuracy, name="accuracy"),
    path("deployments/<slug:name>/drift/", drift.drift, name="drift"),
    path("deployments/<slug:name>/predictions/", predictions.predictions, name="predictions"),
    path("deployments/<slug:name>/predictions/<uuid:prediction_id>/", predictions.prediction, name="prediction"),
    path("deployments/<slug:name>/try/", tryit.try_it, name="try_it"),
    path("deployments/<slug:name>/settings/", deployments.settings, name="settings"),
    path("deployments/<slug:name>/settings/save/", deployments.save_settings, name="settings_save"),
    path("deployments/<slug:name>/label/", deployments.save_label, name="label_save"),
    path("deployments/<slug:name>/retire/", deployments.retire, name="retire"),
    path("models/", models.models, name="models"),
    path("models/register/", models.register, name="model_register"),
    path("models/<slug:name>/", models.model, name="model"),
    path("models/<slug:name>/upload/", models.upload, name="upload"),
    path("models/<slug:name>/versions/<int:number>/", models.version, name="version"),
    path("models/<slug:name>/versions/<int:number>/complete/", models.complete, name="version_complete"),
    path("models/<slug:name>/versions/<int:number>/archive/", models.archive, name="version_archive"),
    path("jobs/", jobs.jobs, name="jobs"),
    path("jobs/<uuid:job_id>/", jobs.job, name="job"),
    path("jobs/<uuid:job_id>/cancel/", jobs.cancel, name="job_cancel"),
    *study_urls.urlpatterns,
    path("keys/", keys.keys, name="keys"),
    path("keys/issue/", keys.issue, name="key_issue"),
    path("keys/<uuid:key_id>/", keys.key, name="key"),
    path("keys/<uuid:key_id>/revoke/", keys.revoke, name="key_revoke"),
    path("audit/", audit.audit, name="audit"),
    path("system/", system.system, name="system"),
]
