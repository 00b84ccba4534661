"""A real Slurm cluster of four nodes on one Debian machine: for tests, and for trying a sweep at home.

    sudo python -m slurm.cluster up | status | down

`up` installs Slurm where it is missing, starts munge, MariaDB, slurmdbd, slurmctld and four slurmd, and points
/etc/slurm/slurm.conf at itself, so that sinfo, sbatch, srun and sacct work from any shell. `down` removes all of it
but the packages. Every host is a network namespace with its own name and address on one bridge: a job that meets on
the wrong address fails here as it would between machines. The GPUs are declared, not real.
"""
