import gc
import logging
import os
import signal
import threading
import time
from argparse import ArgumentParser
from pathlib import Path
from types import FrameType
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.db import Error, connection

from controlplane.predictions.shipping import Ingester

logger = logging.getLogger(__name__)

PAUSE_S = 0.25
PAUSE_AFTER_FAILURE_S = 2.0
REPORT_S = 1.0


class Command(BaseCommand):
    help = "Ships the prediction spool to the log, until SIGTERM."
    # It answers no request: checking the URLs would load every page.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--folder", type=Path, default=settings.SIGNALBOX_SPOOL, help="the spool's folder")
        parser.add_argument("--once", action="store_true", help="ship what is there and end")

    def handle(self, *args: Any, **options: Any) -> None:
        ingester = Ingester(options["folder"])
        if options["once"]:
            while ingester.do_one():
                pass
            ingester.report()
            return
        os.nice(19)
        # A batch is hundreds of thousands of small lists that die together: collecting after every 700th of them
        # took half of the time.
        gc.freeze()
        gc.set_threshold(1_000_000, 20, 20)
        stop = threading.Event()

        def end(signum: int, frame: FrameType | None) -> None:
            stop.set()

        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, end)
        reported_at = 0.0
        failure = ""
        while not stop.is_set():
            try:
                ingester.do_one()
                if time.monotonic() - reported_at >= REPORT_S:
                    ingester.report(failure)
                    reported_at, failure = time.monotonic(), ""
                # A step costs the same for one row as for a thousand: what trickles in is shipped together.
                if not ingester.has_more:
                    stop.wait(PAUSE_S)
            except Error as error:
                # The database is away or refused a step: the spool keeps everything, and the step is repeated.
                failure = f"{type(error).__name__}: {error}"
                logger.error("ingest failed and is repeated: %s", failure)
                connection.close()
                stop.wait(PAUSE_AFTER_FAILURE_S)
            except Exception as error:  # the loop is a boundary: a bad step must not end the ingester
                failure = type(error).__name__
                logger.exception("ingest failed unexpectedly and is repeated")
                connection.close()
                stop.wait(PAUSE_AFTER_FAILURE_S)
