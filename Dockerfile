# mixer_finetune on a CPU. What stands behind the image's name is what stands behind mixer-finetune elsewhere:
#
#   docker build --tag mixer_finetune .
#   docker run --rm --user "$(id -u)" --volume "$PWD:/work" mixer_finetune             # the first command: digits
#   docker run --rm --user "$(id -u)" --volume "$PWD:/work" mixer_finetune predict RUN photos/
#
# /work is where runs are written; --volume keeps them, and --user makes them yours. What is downloaded is kept by
# --volume mixer_cache:/cache.
FROM python:3.12-slim

# torch compiles by g++ where --compile asks for it; nothing else needs it.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

# First, so that a change of the sources does not fetch it again. torch for CPUs alone is a tenth of the size: give
# --build-arg TORCH_INDEX=ADDRESS, that of the CPU wheels by torch's installation page.
ARG TORCH_INDEX=
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision

COPY pyproject.toml README.md LICENSE /source/
COPY mixer_finetune /source/mixer_finetune
COPY recipes /source/recipes
RUN pip install --no-cache-dir "/source[export]" && rm -rf /source

# Whoever --user names may write here.
RUN mkdir /work /cache && chmod 777 /work /cache
USER 1000
ENV HOME=/cache HF_HOME=/cache USER=user
VOLUME ["/work", "/cache"]
WORKDIR /work
ENTRYPOINT ["mixer-finetune"]
CMD ["fit", "--recipe", "digits"]
