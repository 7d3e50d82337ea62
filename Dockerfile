# The sidecar: `docker build .` for CPU, `--target gpu` for CUDA (the wheels bring CUDA 13 and cuDNN, so the base image
# needs neither), `--target demo` for the simulated pools. A target builds only the stages that it needs.
ARG BASE=python:3.13-slim-trixie@sha256:9d2e5553305c7c7b0097999bb17187c69b921ccd6bc9d40e4bb5ebe652c00285

FROM ${BASE} AS venv
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# The image's own pip installs into it, so the environment needs none.
RUN python -m venv --without-pip /venv

# Ours in a tree of its own: what builds it stays out of the image, and a change of it leaves the packages' layer as it is.
FROM venv AS sources
COPY requirements/build.txt requirements/
RUN pip --python /venv/bin/python install --require-hashes -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY semroute_extproc semroute_extproc
COPY models models

FROM sources AS own-cpu
RUN pip --python /venv/bin/python install --no-deps --no-build-isolation --root /own .

FROM sources AS own-gpu
RUN pip --python /venv/bin/python install --no-deps --no-build-isolation --root /own . ./models

FROM sources AS own-demo
COPY lab lab
RUN pip --python /venv/bin/python install --no-deps --no-build-isolation --root /own . ./lab

FROM venv AS packages-cpu
COPY requirements/runtime.txt requirements/
RUN pip --python /venv/bin/python install --require-hashes -r requirements/runtime.txt

FROM venv AS packages-gpu
COPY requirements/gpu.txt requirements/
RUN pip --python /venv/bin/python install --require-hashes -r requirements/gpu.txt

FROM venv AS packages-demo
COPY requirements/demo.txt requirements/
RUN pip --python /venv/bin/python install --require-hashes -r requirements/demo.txt

FROM ${BASE} AS runtime
# Envoy's image runs as 101: both share the socket's volume through group 65532.
RUN groupadd --gid 65532 semroute \
 && useradd --uid 65532 --gid 65532 --no-create-home --shell /usr/sbin/nologin semroute \
 && install --directory --owner 65532 --group 65532 --mode 2770 /run/semroute
# The base image has no bytecode of the standard library, and nothing may write it later.
RUN python -m compileall -q -x site-packages "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
COPY --chmod=0644 semroute_extproc/cli/example.yaml /etc/semroute/semroute.yaml
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    SEMROUTE_CONFIG=/etc/semroute/semroute.yaml
USER 65532:65532
VOLUME /run/semroute
EXPOSE 9004 9090
ENTRYPOINT ["semroute"]
CMD ["serve"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="semroute-extproc" \
      org.opencontainers.image.description="An Envoy external processor that routes each LLM request to a vLLM pool" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/python:3.13-slim-trixie"

FROM runtime AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-gpu /venv /venv
COPY --from=own-gpu /own/venv /venv

FROM runtime AS demo
COPY --from=packages-demo /venv /venv
COPY --from=own-demo /own/venv /venv
CMD ["demo"]

FROM runtime AS cpu
COPY --from=packages-cpu /venv /venv
COPY --from=own-cpu /own/venv /venv
