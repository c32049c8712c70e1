#!/bin/sh
# Last stage: what a program needs of the system, and nothing that only builds.
#
#   system.sh PROGRAM
set -eu
program=$1
export DEBIAN_FRONTEND=noninteractive
case $program in
  # nft programs the kernel, modprobe loads what it lacks, iptables takes away what a kube-proxy left.
  ipvsproxy) packages="nftables kmod iptables" ;;
  dnsserver) packages="" ;;
  *) echo "system.sh: no program $program" >&2; exit 2 ;;
esac
apt-get update -qq
# shellcheck disable=SC2086 # several words
apt-get install -y -qq --no-install-recommends python3 ca-certificates $packages >/dev/null
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/log/* /usr/share/doc/* /usr/share/man/* /usr/share/locale/*
# Mount points, for the root is read-only.
mkdir -p /lib/modules /etc/ipvsproxy /etc/coredns /var/lib/kube-proxy /var/lib/dnsserver
echo 'nonroot:x:65532:65532:nonroot:/:/usr/sbin/nologin' >>/etc/passwd
echo 'nonroot:x:65532:' >>/etc/group
