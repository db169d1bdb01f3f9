# One image for Prefect's server, MLflow, gateway and workers: the versions that were tested together.
FROM python:3.11-slim-bookworm AS build
WORKDIR /app
RUN python -m venv /venv
COPY requirements.lock ./
# uv is pinned with hashes in the lock file like everything else: pip installs it, it installs the rest.
RUN python -c 'import re; print(re.search(r"(?ms)^uv==.*?(?=^\S|\Z)", open("requirements.lock").read()).group())' > uv.lock \
    && /venv/bin/python -m pip install --no-cache-dir --require-hashes --no-deps -r uv.lock \
    && VIRTUAL_ENV=/venv /venv/bin/uv pip sync --no-cache --require-hashes requirements.lock
COPY . .
RUN VIRTUAL_ENV=/venv /venv/bin/uv pip install --no-cache --no-deps --no-build-isolation -e .

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --create-home touchstone \
    && mkdir /state /artifacts && chown touchstone /state /artifacts
COPY --from=build /venv /venv
COPY --from=build --chown=root:root /app /app
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 DO_NOT_TRACK=1
WORKDIR /app
USER 10001
VOLUME ["/state", "/artifacts"]
CMD ["touchstone", "doctor"]
