# Completion of manhole-cli for bash: options, and the processes that have a manhole.

_manhole_cli() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    case $previous in
    -s | --signal)
        mapfile -t COMPREPLY < <(compgen -A signal -- "$current")
        return
        ;;
    -f)
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        return
        ;;
    --host)
        mapfile -t COMPREPLY < <(compgen -A hostname -- "$current")
        return
        ;;
    -c | -t | --timeout | --match | --exec)
        return
        ;;
    esac
    if [[ $current == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(manhole-cli --help |
            sed -n 's/^  \(-.*\)/\1/p' | grep -oE -- '(^|[ ,])--?[A-Za-z0-9-]+')" -- "$current")
    else
        mapfile -t COMPREPLY < <(compgen -W "$(manhole-cli --list 2>/dev/null |
            awk '$1 ~ /^[0-9]+$/ && $3 != "-" {print $1}')" -- "$current")
    fi
}
complete -o default -F _manhole_cli manhole-cli
