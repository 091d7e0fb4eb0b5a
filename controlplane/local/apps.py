from django.apps import AppConfig


class LocalConfig(AppConfig):
    name = "controlplane.local"
    label = "local"
