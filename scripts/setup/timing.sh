# shellcheck shell=sh
# Time for downloads and time for set-up, kept apart: the first is the network's, the second ours.

downloads_ms=0
setup_ms=0

now_ms() {
    now=$(date +%s%N)
    case $now in
        *N) echo "$(date +%s)000" ;; # a date without nanoseconds
        *) echo "${now%??????}" ;;
    esac
}

# timed downloads|setup COMMAND...: run it and add its time to that account.
timed() {
    timed_account=$1
    timed_from=$(now_ms)
    shift
    timed_status=0
    "$@" || timed_status=$?
    timed_took=$(($(now_ms) - timed_from))
    case $timed_account in
        downloads) downloads_ms=$((downloads_ms + timed_took)) ;;
        setup) setup_ms=$((setup_ms + timed_took)) ;;
    esac
    return "$timed_status"
}

# seconds 12345 -> 12.3
seconds() {
    echo "$(($1 / 1000)).$(($1 % 1000 / 100))"
}
