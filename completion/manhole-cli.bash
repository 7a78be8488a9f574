# Completion of manhole-cli for bash: options, and the processes that have a manhole.
# bash-completion finds it where it is installed below /usr or /usr/local; elsewhere, as in a virtual
# environment, it is to be read: . venv/share/bash-completion/completions/manhole-cli

# The signals that manhole-cli knows, whose names are given without SIG, or with it, in any case.
_manhole_cli_signals() {
    local names
    names=$(compgen -A signal | sed -n 's/^SIG\([A-Z0-9]*\)$/\1/p')
    [[ ${1^^} == S* ]] && names+=$'\n'SIG${names//$'\n'/$'\n'SIG}
    compgen -W "$names" -- "${1^^}"
}

_manhole_cli() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    if [[ $previous == = || $current == = ]]; then # of --option=value
        [[ $current == = ]] && current= || previous=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    case $previous in
    -s | --signal)
        mapfile -t COMPREPLY < <(_manhole_cli_signals "$current")
        return
        ;;
    -f | --module | --record)
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        return
        ;;
    --host)
        mapfile -t COMPREPLY < <(compgen -A hostname -- "$current")
        return
        ;;
    -c | -t | --timeout | --match | --exec | --log-level)
        return
        ;;
    esac
    if [[ $current == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(manhole-cli --help |
            sed -n 's/^  \(-.*\)/\1/p' | grep -oE -- '(^|[ ,])--?[A-Za-z0-9-]+')" -- "$current")
    else
        mapfile -t COMPREPLY < <(compgen -W "$( ((COMP_CWORD == 1)) && echo top; manhole-cli --list 2>/dev/null |
            awk '$1 ~ /^[0-9]+$/ && $3 != "-" {print $1}')" -- "$current")
    fi
}
complete -o default -F _manhole_cli manhole-cli
