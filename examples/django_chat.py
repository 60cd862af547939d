"""A chat in Django: messages are saved in the database, and published when the transaction commits.

GATEWAY_ORIGINS=http://127.0.0.1:8000 gateway dev           prints the Redis URL
REDIS_URL=unix:///tmp/… python examples/django_chat.py runserver 8000
"""

import os
import sys

from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from gateway.contrib.django import publish_on_commit

GATEWAY_URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8080")
settings.configure(
    DEBUG=True,
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["gateway.contrib.django"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ.get("DATABASE", "chat.sqlite3")}},
    GATEWAY={"REDIS_URL": os.environ["REDIS_URL"]},
)
PAGE = """<!doctype html><title>Chat</title>
<ul id=messages></ul><form><input id=text autofocus><button>Say</button></form>
<script type=module>
  import { Gateway } from "%(gateway)s/gateway.js";
  const show = (text) => messages.append(Object.assign(document.createElement("li"), { textContent: text }));
  const gateway = new Gateway("%(gateway)s/ws".replace("http", "ws"));
  gateway.subscribe("chat", { onData: ({ data }) => show(data.text) });
  document.querySelector("form").onsubmit = async (event) => {
    event.preventDefault();
    await fetch("/say", { method: "POST", body: new URLSearchParams({ text: text.value }) });
    text.value = "";
  };
  await gateway.connect();
  document.body.dataset.ready = "yes";
</script>"""


def page(_request: HttpRequest) -> HttpResponse:
    return HttpResponse(PAGE % {"gateway": GATEWAY_URL})


@csrf_exempt  # for a short example; a real page sends the token
def say(request: HttpRequest) -> JsonResponse:
    text = request.POST["text"]
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS message (text TEXT)")
        cursor.execute("INSERT INTO message VALUES (%s)", [text])
        publish_on_commit("chat", {"text": text})
    return JsonResponse({})


urlpatterns = [path("", page), path("say", say)]
application = get_wsgi_application()

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
