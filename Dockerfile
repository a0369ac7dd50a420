# The light package: encode, decode and the command line on a CPU.
#
#   docker build -t dca-fast . && docker run --rm -v "$PWD:/work" dca-fast encode photo.jpg
FROM python:3.13-slim AS build
# The compiler is that of the image.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --wheel-dir /wheels .

FROM python:3.13-slim
# The version is that of the wheel above.
# hadolint ignore=DL3013
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links /wheels dca-fast
WORKDIR /work
USER 1000:1000
ENTRYPOINT ["dca-fast"]
