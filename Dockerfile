# unsupseg in a container; docs/getting-started.md has the calls.
#
#   docker build -t unsupseg:cuda .
#   docker build -t unsupseg:cpu --build-arg TORCH=ADDRESS .
FROM python:3.12-slim

# Where torch and torchvision come from. PyPI's builds (the default) bring CUDA; PyTorch's page "Get started" names the
# address of its CPU builds.
ARG TORCH=

WORKDIR /opt/unsupseg
COPY constraints.txt ./
RUN PIP_INDEX_URL="${TORCH}" pip install --no-cache-dir -c constraints.txt torch torchvision
COPY pyproject.toml README.md LICENSE ./
COPY samples/scenes samples/scenes
COPY unsupseg_cli unsupseg_cli
RUN pip install --no-cache-dir -c constraints.txt ".[geo,video,onnx,tensorboard]"

# Calls run as the user of the host (--user), who has no home here: caches of weights and fonts go where anyone may write.
ENV HOME=/tmp
WORKDIR /data
ENTRYPOINT ["unsupseg"]
CMD ["--help"]
