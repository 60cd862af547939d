FROM python:3.13-slim

# As nobody in particular: a gateway needs no file and no port below 1024.
RUN useradd --system --no-create-home gateway
WORKDIR /app

# Dependencies in a layer of their own: they change seldom, our source often.
COPY pyproject.toml .
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
      > requirements.txt \
 && pip install --no-cache-dir --requirement requirements.txt

COPY README.md .
COPY docs docs
COPY gateway gateway
RUN pip install --no-cache-dir --no-deps .

USER gateway
# Behind a container's own address; compose.yaml publishes none of it.
ENV GATEWAY_HOST=0.0.0.0 PYTHONUNBUFFERED=1
EXPOSE 9000

# Alive, not ready: a node that has lost Redis must wait for it and not be restarted. The image has no curl.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --start-interval=1s \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ.get('GATEWAY_PORT') or 9000}/healthz\", timeout=2)"]

# Without a shell in between, which would keep SIGTERM, and with it the drain, to itself.
CMD ["gateway", "serve"]
