"""How allauth treats people here: nobody signs up by themselves, an admin invites."""

from allauth.account.adapter import DefaultAccountAdapter
from django.http import HttpRequest


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]  # allauth carries no types
    """Closes the sign-up form; an admin makes people in /admin/, or an OpenID provider brings them."""

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False
