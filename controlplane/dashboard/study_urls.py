"""The doctor's pages, and the pictures that they fetch."""

from django.urls import path

from controlplane.dashboard.views import drafts, pictures, reading, studies

urlpatterns = [
    path("deployments/<slug:name>/purpose/", reading.save_purpose, name="purpose_save"),
    path("deployments/<slug:name>/reading/", reading.save_policy, name="policy_save"),
    path("studies/", studies.worklist, name="studies"),
    path("studies/new/", drafts.new, name="study_new"),
    path("studies/preview/", drafts.preview, name="study_preview"),
    path("studies/<uuid:study_id>/", studies.study, name="study"),
    path("studies/<uuid:study_id>/state/", studies.state, name="study_state"),
    path("studies/<uuid:study_id>/add/", drafts.add, name="study_add"),
    path("studies/<uuid:study_id>/send/", drafts.send, name="study_send"),
    path("studies/<uuid:study_id>/discard/", drafts.discard, name="study_discard"),
    path("studies/<uuid:study_id>/verdict/", studies.verdict, name="study_verdict"),
    path("studies/<uuid:study_id>/erase/", studies.erase, name="study_erase"),
    path("studies/<uuid:study_id>/pictures/<uuid:picture_id>/remove/", drafts.remove, name="study_remove"),
    path("studies/<uuid:study_id>/pictures/<uuid:picture_id>/pixels/", pictures.pixels, name="picture_pixels"),
    path("studies/<uuid:study_id>/pictures/<uuid:picture_id>/thumbnail/", pictures.thumbnail, name="picture_thumbnail"),
    path("studies/<uuid:study_id>/pictures/<uuid:picture_id>/model/", pictures.model_view, name="picture_model_view"),
    path("studies/<uuid:study_id>/pictures/<uuid:picture_id>/heat/", pictures.heat_map, name="picture_heat_map"),
]
