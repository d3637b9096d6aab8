#!/bin/sh
# Install what the tests on a real Slurm need, where this machine lets us; the tests say why where it does not.
PATH="$PATH:/usr/sbin:/sbin"
for name in slurmctld slurmd munged sbatch; do
    command -v "$name" >/dev/null || missing=1
done
[ "$missing" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || exit 0
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 # RUNLEVEL=1: the packages' own daemons are not started
{ apt-get update -qq && apt-get install -qq -y --no-install-recommends slurm-wlm munge; } >/dev/null 2>&1 ||
    echo "slurm-wlm and munge could not be installed with apt-get"
