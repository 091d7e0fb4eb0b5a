"""How allauth treats people here: nobody signs up by themselves."""

import logging
from typing import Any

from allauth.account.adapter import DefaultAccountAdapter
from django.http import HttpRequest

logger = logging.getLogger(__name__)


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]  # allauth carries no types
    """Closes sign-up, by the form as by an identity provider (allauth asks for both): a site admin makes people."""

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False

    def send_mail(self, template_prefix: str, email: str, context: dict[str, Any]) -> None:
        """Sends, or logs that it could not: the page says the same either way, so nobody learns who has an account."""
        try:
            super().send_mail(template_prefix, email, context)
        except OSError as error:
            logger.error("a mail could not be sent: %s", type(error).__name__)
