# The sidecar, for CPU. For a GPU build with --build-arg LOCK=gpu: the wheels bring CUDA 13 and cuDNN,
# so the base image needs neither.
FROM python:3.13-slim AS build
ARG LOCK=runtime
WORKDIR /src
RUN python -m venv /venv
COPY requirements/${LOCK}.txt requirements/${LOCK}.txt
RUN /venv/bin/pip install --no-cache-dir --require-hashes -r requirements/${LOCK}.txt
COPY pyproject.toml README.md LICENSE ./
COPY semroute_extproc semroute_extproc
COPY models models
COPY lab lab
# Only the image of the simulated pools (LOCK=demo) contains the lab.
RUN /venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    $(test "${LOCK}" = demo && echo ./lab)

FROM python:3.13-slim
# Envoy's image runs as 101: both share the socket's volume through group 65532.
RUN groupadd --gid 65532 semroute \
 && useradd --uid 65532 --gid 65532 --no-create-home --shell /usr/sbin/nologin semroute \
 && install --directory --owner 65532 --group 65532 --mode 2770 /run/semroute
COPY --from=build /venv /venv
COPY semroute_extproc/cli/example.yaml /etc/semroute/semroute.yaml
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    SEMROUTE_CONFIG=/etc/semroute/semroute.yaml
USER 65532:65532
VOLUME /run/semroute
EXPOSE 9090
ENTRYPOINT ["semroute"]
CMD ["serve"]
