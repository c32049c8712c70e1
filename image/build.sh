#!/bin/sh
# First stage: a virtual environment in /opt/venv with the locked dependencies, for every program.
#
#   build.sh REQUIREMENTS_LOCK
#
# Runs in a bare Debian root. pip stays outside of the environment. PIP_* variables are pip's own.
set -eu
lock=$1
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends python3 python3-venv >/dev/null
python3 -m venv --without-pip /opt/venv
python3 -m venv /tmp/installer
/tmp/installer/bin/pip --python /opt/venv/bin/python install --quiet --no-cache-dir --no-compile \
  --require-hashes --only-binary :all: --requirement "$lock"
rm -rf /tmp/installer

# Of the Kubernetes client only configuration, credentials and transport are used; models and calls are 110 MB.
packages=$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
for half in client aio/client; do
  find "$packages/kubernetes/$half/models" "$packages/kubernetes/$half/api" -name '*.py' ! -name '__init__.py' -delete
done
/opt/venv/bin/python -m compileall -q -j 0 "$packages"
# What the programs take from it must still be there.
HOME=/ /opt/venv/bin/python -c '
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config.kube_config import KubeConfigLoader, KubeConfigMerger'
