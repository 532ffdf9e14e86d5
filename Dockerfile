# An image with this project installed, for the manifests in docs/cluster.md.
#
#     docker build --build-arg REVISION="$(git rev-parse HEAD)" -t latency-budget-grpo .
#
# It runs training, evaluation and the server, on CPUs and on NVIDIA GPUs: PyTorch's wheels bring the
# CUDA libraries, so the node only needs the driver and the container toolkit.
FROM python:3.12-slim-bookworm

# KubeRay's probes call wget; procps lets Ray describe the node's processes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget procps \
    && rm -rf /var/lib/apt/lists/*

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    OMP_NUM_THREADS=1

WORKDIR /app

# Dependencies first: this layer is built again only when they change.
COPY pyproject.toml constraints.txt README.md ./
COPY envs/__init__.py envs/
COPY policy/__init__.py policy/
COPY rollout/__init__.py rollout/
COPY learner/__init__.py learner/
COPY launch/__init__.py launch/
RUN pip install -c constraints.txt '.[serve,data]' && pip uninstall --yes latency-budget-grpo

COPY . .
RUN pip install --no-deps -c constraints.txt . \
    && useradd --create-home --uid 1000 ray \
    && mkdir -p /shared \
    && chown ray:ray /shared

# Which commit this is, for checkpoints: the image has no repository.
ARG REVISION=unknown
ENV LBG_REVISION=$REVISION

USER 1000
WORKDIR /home/ray

# The server is reached from outside the container, so it demands a token: see docs/serving.md.
EXPOSE 8000
CMD ["joint-grpo-serve", "--host", "0.0.0.0"]
