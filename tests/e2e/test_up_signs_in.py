"""What `manage.py up` made can be used: the admin signs in, a command's key is known to the front door."""

import re
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.services import Product, wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.mark.browser
def test_the_admin_signs_in_with_the_password_of_the_installation(page: "Page", product: Product) -> None:
    page.goto("/")
    page.wait_for_url(re.compile("/accounts/login/"))
    page.fill("input[name=login]", "admin")
    page.fill("input[name=password]", product.admin_password)
    page.press("input[name=password]", "Enter")
    page.wait_for_url(product.base_url + "/")
    assert "sessionid" not in {cookie["name"] for cookie in page.context.cookies()}


def test_a_key_of_the_command_is_known_to_the_front_door_within_five_seconds(product: Product) -> None:
    key = product.issue_key("from the command", "--scope", "predict")
    with product.http(key) as client:
        wait_for(lambda: client.get("/v2/models/none").status_code == 404, 5, "the key at the front door")


def test_a_call_without_a_key_is_refused(http: httpx.Client) -> None:
    assert http.get("/v2/models/none").status_code == 401
