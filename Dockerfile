# lightning_ddpm with all that it needs, for a CPU or for NVIDIA GPUs; docs/how-to/containers.md has the commands.
#
# DEVICE: the build of torch, a folder of https://download.pytorch.org/whl: cpu, or a version of CUDA such as cu128.
# EXTRAS: extras of pyproject.toml, separated by commas.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY lightning_ddpm lightning_ddpm
COPY configs configs
COPY checkpoints/pretrained checkpoints/pretrained
# template/run.sbatch is a link to a script
COPY scripts scripts
COPY template template
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:${PYTHON}-slim-bookworm
ARG DEVICE=cpu
ARG EXTRAS=demo,hub
COPY --from=build /wheel /wheel
# The newest torch of that build on the day; a tag of the image keeps it.
# The wheel by its path: an index could offer another program of that name.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir torch torchvision --index-url "https://download.pytorch.org/whl/${DEVICE}" \
    && set -- /wheel/*.whl \
    && pip install --no-cache-dir "${1}[${EXTRAS}]" \
    && useradd --create-home --uid 1000 ddpm \
    && mkdir /work \
    && chown ddpm /work
USER 1000
WORKDIR /work
ENTRYPOINT ["lightning-ddpm"]
CMD ["--help"]
