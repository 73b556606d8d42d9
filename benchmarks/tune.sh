#!/usr/bin/env bash
# The learning rates of the comparisons: bash benchmarks/tune.sh [DATA]; writes benchmarks/results/tune-METHOD-BATCH.json.
# For every method and batch the rate that reaches 97 % on MNIST with the fewest gradient evaluations, mean of the seeds.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
data=${1:-data/mnist}
export OMP_NUM_THREADS=1
search() { # search METHOD BATCH RATES [OPTIONS]
    local method=$1 batch=$2 rates=$3 folder=runs/tune-$1-$2
    shift 3
    mpiexec -n 2 python -m apts_mpi tune --method "$method" --data.path "$data" --model.name paper-mnist --data.batch "$batch" \
        --stop.epochs 4 --stop.target_accuracy 97 --run.evaluate_iterations $((6400 / batch)) --run.dir "$folder" \
        --lrs "$rates" --seeds 0,1 --by target "$@"
    cp -- "$folder/tune.json" "benchmarks/results/tune-$method-$batch.json"
}
for batch in 128 512 1024; do
    search sgd "$batch" 0.01,0.03,0.1,0.2,0.4 --baseline.nesterov true
    search adam "$batch" 0.0003,0.001,0.003,0.01
done
search local-sgd 128 0.01,0.03,0.1,0.2,0.4 --run.evaluate_iterations 7
