from django.apps import AppConfig


class PredictionsConfig(AppConfig):
    name = "controlplane.predictions"
    label = "predictions"

    def ready(self) -> None:
        from controlplane.deployments.periodic import register
        from controlplane.predictions import matching, partitions, rollups, shipping, sketch_rollups

        register("predictions.make_partitions", 600, partitions.make_ahead)
        register("predictions.drop_expired_days", 3600, partitions.drop_expired)
        register("predictions.delete_expired_rows", 300, partitions.delete_expired)
        register("predictions.compact_rollups", 60, rollups.compact)
        register("predictions.compact_sketches", 20, sketch_rollups.compact)
        register("predictions.match_pending_feedback", 2, matching.match_pending)
        register("predictions.forget_old_bookmarks", 3600, shipping.forget_old_bookmarks)
