# Sourced by the job scripts, in the folder the job was submitted from: Python, modules, threads and MPI of this job.
#
#   JOB_MODULES="gcc openmpi"   modules to load first
#   JOB_VENV=/path/to/venv      the Python environment (default: .venv here, else the python of the submitting shell)

for name in ${JOB_MODULES:-}; do module load "$name"; done

venv=${JOB_VENV:-$PWD/.venv}
if [ -x "$venv/bin/python" ]; then
    export PATH=$venv/bin:$PATH
elif [ -n "${JOB_VENV:-}" ]; then
    echo "error: JOB_VENV=$JOB_VENV holds no bin/python" >&2
    exit 4
fi

# One thread per core of the rank. Slurm 22.05 and newer hand --cpus-per-task to srun by the second variable alone.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

# An MPI from PyPI speaks one PMI only, and with another every rank would be a world of its own. With the MPI of the
# site Slurm's default is right. SLURM_MPI_TYPE is srun's --mpi.
site=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
if [ -n "${SLURM_MPI_TYPE:-}" ]; then
    :
elif compgen -G "$site/mpich-*.dist-info" >/dev/null; then
    export SLURM_MPI_TYPE=pmi2
elif compgen -G "$site/openmpi-*.dist-info" >/dev/null; then
    export SLURM_MPI_TYPE=pmix
fi

# More ranks than real cores, as on a laptop's Slurm: waiting must not take a core from those that compute.
ranks=${SLURM_TASKS_PER_NODE:-1}
if [ "${ranks%%[!0-9]*}" -gt "$(nproc --all)" ]; then
    export MPIR_CVAR_ENABLE_HEAVY_YIELD=1 OMPI_MCA_mpi_yield_when_idle=1
fi

# When the job ends, for the ranks, which stop in time; as Slurm says it now, for limits change, and 22.05 does not set this itself.
end=$(date +%s -d "$(squeue -h -j "${SLURM_JOB_ID:-}" -o %e 2>/dev/null)" 2>/dev/null) || end=0
[ "$end" -le "$(date +%s)" ] || export SLURM_JOB_END_TIME=$end
unset name venv site ranks end
