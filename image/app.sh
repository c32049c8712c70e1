#!/bin/sh
# First stage, for one program: its packages into /opt/venv, and its command.
#
#   app.sh PROGRAM SOURCE
set -eu
program=$1 source=$2
packages=$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
for name in kubecore "$program"; do
  cp -r "$source/$name" "$packages/"
  find "$packages/$name" -name __pycache__ -prune -exec rm -rf {} +
  /opt/venv/bin/python -m compileall -q "$packages/$name"
done
printf '#!/opt/venv/bin/python\nimport sys\nfrom %s.__main__ import main\nsys.exit(main())\n' "$program" >"/opt/venv/bin/$program"
chmod 755 "/opt/venv/bin/$program"
"/opt/venv/bin/$program" --version
