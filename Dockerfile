# For a reproducible image, name the base by its digest: --build-arg PYTHON=python:3.13-slim@sha256:...
ARG PYTHON=python:3.13-slim
FROM ${PYTHON}

# An unprivileged user: a gateway writes no file and needs no port below 1024.
RUN useradd --system --no-create-home gateway
WORKDIR /app

# Dependencies have their own layer: they change seldom, the source often.
COPY constraints.txt .
RUN pip install --no-cache-dir --requirement constraints.txt

COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
RUN pip install --no-cache-dir --constraint constraints.txt '.[server]'

USER gateway
# Listen on the container's address; compose.yaml does not publish the port.
ENV GATEWAY_HOST=0.0.0.0 PYTHONUNBUFFERED=1
EXPOSE 9000

# Check /healthz, not /readyz: a node without Redis must wait for it and not be restarted. The image has no curl.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --start-interval=1s \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ.get('GATEWAY_PORT') or 9000}/healthz\", timeout=2)"]

# No shell: it would not forward SIGTERM, which starts the drain.
CMD ["gateway", "serve"]
