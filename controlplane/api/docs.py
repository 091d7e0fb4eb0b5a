"""/api/docs/: the control API's schema and every deployment's own, in Swagger UI, without a line of inline script."""

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import path, reverse
from django.views.decorators.http import require_safe

from controlplane.accounts.models import User
from controlplane.deployments.models import Deployment


@require_safe
@login_required
def docs(request: HttpRequest) -> HttpResponse:
    """The page; which documents it offers travels as JSON, which a content security policy lets pass."""
    assert isinstance(request.user, User)
    names = Deployment.objects.for_user(request.user).current().order_by("name").values_list("name", flat=True)
    documents = [{"name": "Control API", "url": reverse("schema")}]
    documents += [{"name": f"Prediction API: {name}", "url": reverse("prediction-api", args=[name])} for name in names]
    wanted = request.GET.get("deployment", "")
    context = {
        "setup": {
            "urls": documents,
            "primary": f"Prediction API: {wanted}" if wanted in names else "Control API",
            "csrfCookie": settings.CSRF_COOKIE_NAME,
        }
    }
    return render(request, "api/docs.html", context)


urlpatterns = [path("docs/", docs, name="docs")]
