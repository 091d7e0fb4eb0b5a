from django.apps import AppConfig


class PredictionsConfig(AppConfig):
    name = "controlplane.predictions"
    label = "predictions"
