# shellcheck shell=bash
# How often a job may try; sourced by common.sh. An attempt that brings the run no further checkpoint is one in vain:
# after NFT_MAX_ATTEMPTS of them in a row (3) the job fails instead of taking its nodes again. The count lies in
# $NFT_JOB_LOG/attempts ("COUNT STEP"), so that a requeue keeps it, Slurm's own after a lost node, too.

# newest_step: of the checkpoints in the run's folder, which preflight has written down; 0 without any.
newest_step() {
    local run folder name newest=0
    if [[ -r $NFT_LOG/run_folder ]]; then
        run=$(<"$NFT_LOG/run_folder")
        for folder in "$run"/checkpoints/step_*; do
            name=${folder##*/step_}
            if [[ $name =~ ^[0-9]+$ ]] && ((name > newest)); then newest=$name; fi
        done
    fi
    echo "$newest"
}

attempts='' step='' # in a row that have begun at this step, with this one
count_attempt() {
    local before=
    attempts=0 step=$(newest_step)
    if [[ -r $NFT_JOB_LOG/attempts ]]; then read -r attempts before <"$NFT_JOB_LOG/attempts"; fi
    if [[ $before != "$step" ]]; then attempts=0; fi
    attempts=$((attempts + 1))
    echo "$attempts $step" >"$NFT_JOB_LOG/attempts"
}

# begin_attempt: before training; not 0 if the time is up already, or if enough attempts have been in vain.
begin_attempt() {
    local most=${NFT_MAX_ATTEMPTS:-3}
    if [[ -n $warned ]]; then
        say "the warning of the time limit came before training could begin: give more --time, or a later --signal"
        return 1
    fi
    count_attempt
    if ((attempts > most)); then
        say "$((attempts - 1)) attempts in a row have brought no checkpoint after step $step (NFT_MAX_ATTEMPTS=$most): not trying again"
        return 1
    fi
}

# may_requeue: whether another attempt may bring more than this one.
may_requeue() {
    local most=${NFT_MAX_ATTEMPTS:-3}
    if [[ -z $attempts ]]; then count_attempt; fi
    if [[ $(newest_step) == "$step" ]] && ((attempts >= most)); then
        say "not requeued: $attempts attempts in a row have brought no checkpoint after step $step (NFT_MAX_ATTEMPTS=$most)." \
            "Give an attempt more --time, save more often (checkpoint.every), and submit it again: it goes on from there"
        return 1
    fi
}

# seconds_of TIME: of "30", "30:00", "1:30:00", "2-01:30:00", as squeue prints a time limit; nothing for UNLIMITED.
seconds_of() {
    local days=0 rest=$1 parts
    if [[ $rest == *-* ]]; then days=${rest%%-*} rest=${rest#*-}; fi
    IFS=: read -r -a parts <<<"$rest"
    while ((${#parts[@]} < 3)); do parts=(0 "${parts[@]}"); done
    if [[ "${parts[*]} $days" =~ ^[0-9\ ]+$ ]]; then
        echo $((10#$days * 86400 + 10#${parts[0]} * 3600 + 10#${parts[1]} * 60 + 10#${parts[2]}))
    fi
}

# check_warning: a time limit no longer than what --signal leaves before it would be warned of at once, time after time.
# Slurm tells neither on request; the script's own line, or SBATCH_SIGNAL, has it, sbatch's command line is not to be seen.
check_warning() {
    local limit signal=${SBATCH_SIGNAL:-}
    if [[ -n ${NFT_PREFLIGHT_ONLY:-} ]]; then return; fi # saves nothing, and goes on in spite of a warning
    if [[ -z $signal ]]; then signal=$(sed -n 's/^#SBATCH --signal=//p' "$0" | tail -1); fi
    if [[ $signal == *@* ]]; then signal=${signal#*@}; elif [[ -n $signal ]]; then signal=60; fi
    limit=$(seconds_of "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%l)")
    if [[ -n $limit && -n $signal ]] && ((limit <= signal)); then
        die "--time is $limit s, and --signal warns $signal s before that: training would be told to stop before it begins;" \
            "give more --time, or SBATCH_SIGNAL=B:USR1@60 sbatch ... (60 s, enough for the step under way and a checkpoint)"
    fi
}
