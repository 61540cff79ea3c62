# Runs the study of the README, and is the image of a node of a Ray cluster: docs/clusters.md.
FROM python:3.12-slim
# git: records name the commit; wget: KubeRay asks the node with it whether it is well.
RUN apt-get update && apt-get install -y --no-install-recommends git wget && rm -rf /var/lib/apt/lists/*
WORKDIR /kdbench
COPY . .
RUN pip install --no-cache-dir -e ".[ray]"
ENV RAY_USAGE_STATS_ENABLED=0
CMD ["python", "-u", "bench.py", "--methods", "kd,crd,icd", "--pairs", "all", "--dataset", "digits"]
