# unsupseg in a container; docs/getting-started.md has the calls.
#
#   docker build -t unsupseg:cpu .
#   docker build -t unsupseg:cuda --build-arg TORCH= .
FROM python:3.12-slim

# The index that torch and torchvision come from: PyTorch's own has CPU builds; those of PyPI (empty) bring CUDA.
ARG TORCH=https://download.pytorch.org/whl/cpu

WORKDIR /opt/unsupseg
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt torch torchvision ${TORCH:+--index-url ${TORCH}}
COPY pyproject.toml README.md LICENSE ./
COPY samples/scenes samples/scenes
COPY unsupseg_cli unsupseg_cli
RUN pip install --no-cache-dir -c constraints.txt ".[geo,video,onnx,tensorboard]"

# Calls run as the user of the host (--user), who has no home here: caches of weights and fonts go where anyone may write.
ENV HOME=/tmp
WORKDIR /data
ENTRYPOINT ["unsupseg"]
CMD ["--help"]
