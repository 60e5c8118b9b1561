"""Completion for bash, zsh and fish, made from what the command line understands (`manual`).

Owns the three scripts. What is completed: commands, options, their choices, PIDs, hosts (from ~/.ssh/config and what
else the shell knows), files, obstacles, topics, and the migrations that left a journal. Nothing is started for it but
`ps` and `ls`: a completion must not be slower than typing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from migrator import catalogue, topics
from migrator.manual import COMMANDS, MAIN, Command, Word

JOURNALS = "/var/lib/migrate"
_MIGRATIONS = f"ls {JOURNALS} 2>/dev/null | grep '^[A-Za-z0-9-]*$'"
_SSH_HOSTS = (
    "sed -n 's/^[[:space:]]*[Hh]ost[[:space:]]\\{1,\\}//p' ~/.ssh/config 2>/dev/null | tr -s ' ' '\\n' "
    "| grep '^[A-Za-z0-9_.:-]*$'"
)
"""Names alone: patterns are no hosts, and bash expands what it is given."""


def script(shell: str, commands: Mapping[str, Command]) -> str:
    """The script for this shell: bash, zsh or fish."""
    return "\n".join({"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](commands)) + "\n"


def _words(word: Word, commands: Mapping[str, Command]) -> list[str]:
    """The words that a value is one of, where they are known beforehand."""
    if word.kind == "check":
        return list(catalogue.KINDS)
    if word.kind == "topic":
        options = dict.fromkeys(option.name.lstrip("-") for command in commands.values() for option in command.options)
        return [COMMANDS, *topics.OPTIONS, *topics.PROSE, *commands, *options, "all"]
    return list(word.choices)


def _names(options: Iterable[Word]) -> list[str]:
    return [name for option in options for name in option.names]


# --- bash ------------------------------------------------------------------------------------------------------------

_BASH_VALUE = {
    "pid": "$(ps -eo pid=)",
    "host": f"$({_SSH_HOSTS}; compgen -A hostname)",
    "migration": f"$({_MIGRATIONS})",
}
_BASH_START = """\
# completion of migrate for bash, made by `migrate completion bash`
_migrate() {
    # readline parts words at = : and @, which belong to ours: so they are taken from the line itself
    local line=${COMP_LINE:0:COMP_POINT} command=migrate position=0 option= takes= lead= known= words word cur
    local full breaks
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    cur=${words[-1]}
    case ${words[1]} in"""
_BASH_MIDDLE = """\
    for word in "${words[@]:1:${#words[@]}-2}"; do
        if [[ -n $option ]]; then
            option=
        elif [[ $takes == *" $word "* ]]; then
            option=$word
        elif [[ $word != -* ]]; then
            (( position += 1 ))
        fi
    done
    full=$cur
    if [[ -z $option && $cur == --*=* && $takes == *" ${cur%%=*} "* ]]; then
        option=${cur%%=*} lead=${cur%%=*}= cur=${cur#*=}
    fi
    if [[ -z $option && $cur == -* ]]; then
        option=-
    fi
    case "$command ${option:-$position}" in"""
_BASH_END = """\
    esac
    if [[ $known == file ]]; then
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        return
    fi
    if [[ $known == host* ]]; then
        known=${known#host}
        [[ $cur == *@* ]] && lead+=${cur%@*}@ cur=${cur##*@}
    fi
    mapfile -t COMPREPLY < <(compgen -P "$lead" -W "$known" -- "$cur" | sort -u)
    breaks=${COMP_WORDBREAKS//[^=:@]}
    [[ -n $breaks ]] && COMPREPLY=("${COMPREPLY[@]#"${full%"${full##*[$breaks]}"}"}")
}
complete -F _migrate migrate"""


def _bash(commands: Mapping[str, Command]) -> Iterator[str]:
    others = [name for name in commands if name != MAIN]
    yield _BASH_START
    yield f"    {'|'.join(others)})"
    yield '        (( ${#words[@]} > 2 )) && command=${words[1]} && words=("${words[0]}" "${words[@]:2}") ;;'
    yield "    esac"
    yield "    case $command in"
    for name, command in commands.items():
        yield f"    {name}) takes=' {' '.join(_names(option for option in command.options if option.value))} ' ;;"
    yield "    esac"
    yield _BASH_MIDDLE
    for name, command in commands.items():
        yield f"    '{name} -') known='{' '.join([*_names(command.options), '--help'])}' ;;"
        for position, word in enumerate(command.arguments):
            more = others if name == MAIN and position == 0 else []
            yield f"    '{name} {position}') {_bash_known(word, commands, more)} ;;"
        for option in command.options:
            if option.value:
                patterns = "|".join(f"'{name} {each}'" for each in option.names)
                yield f"    {patterns}) {_bash_known(option, commands)} ;;"
    yield _BASH_END


def _bash_known(word: Word, commands: Mapping[str, Command], more: Sequence[str] = ()) -> str:
    if word.kind == "file":
        return "known=file"
    kind = "host" if word.kind == "host" else ""
    found = " ".join([*_words(word, commands), *more])
    known = f"{kind}{_BASH_VALUE.get(word.kind, '')} {found}".strip()
    return f'known="{known}"' if known else ":"


# --- zsh -------------------------------------------------------------------------------------------------------------

_ZSH_VALUE = {
    "pid": "_migrate_pids",
    "host": "_migrate_hosts",
    "file": "_files",
    "migration": "_migrate_migrations",
}
_ZSH_START = f"""\
#compdef migrate
# completion of migrate for zsh, made by `migrate completion zsh`
_migrate_pids() {{ _pids }}
_migrate_hosts() {{
    local -a known
    known=(${{(f)"$({_SSH_HOSTS})"}})
    compset -P '*@'
    _alternative 'aliases:alias:compadd -a known' 'hosts:host:_hosts'
}}
_migrate_migrations() {{
    local -a known
    known=(${{(f)"$({_MIGRATIONS})"}})
    compadd -a known
}}"""


def _zsh(commands: Mapping[str, Command]) -> Iterator[str]:
    others = {name: command for name, command in commands.items() if name != MAIN}
    yield _ZSH_START
    yield "_migrate_first() {"
    yield "    local -a known"
    yield "    known=("
    for name, command in others.items():
        yield f"        {_zsh_quoted(f'{name}:{command.summary}')}"
    yield "    )"
    yield "    _describe command known"
    yield "    _migrate_pids"
    yield "}"
    yield "_migrate() {"
    yield "    local context state line"
    yield "    typeset -A opt_args"
    yield f"    if (( CURRENT > 2 )) && [[ ${{words[2]}} == ({'|'.join(others)}) ]]; then"
    yield "        shift words"
    yield "        (( CURRENT -= 1 ))"
    yield "    fi"
    yield "    case ${words[1]} in"
    for name, command in [*others.items(), (MAIN, commands[MAIN])]:
        yield f"    {'*' if name == MAIN else name})"
        yield "        _arguments -s -S \\"
        for option in command.options:
            for each in option.names:
                yield f"            {_zsh_option(each, option, commands)} \\"
        for position, word in enumerate(command.arguments, 1):
            action = "_migrate_first" if name == MAIN and position == 1 else _zsh_action(word, commands)
            optional = ":" if word.optional else ""
            yield f"            {_zsh_quoted(f'{position}:{optional}{_zsh_plain(word.metavar)}:{action}')} \\"
        yield "            '(- *)--help[show what there is]' ;;"
    yield "    esac"
    yield "}"
    yield '_migrate "$@"'


def _zsh_option(name: str, option: Word, commands: Mapping[str, Command]) -> str:
    star = "*" if option.repeats else ""
    others = " ".join(other.replace("=", "\\=") for other in option.names if other != name)
    exclusive = f"({others})" if others and not option.repeats else ""
    text = f"{exclusive}{star}{name.replace('=', chr(92) + '=')}"
    if option.value:
        text += "=" if name.startswith("--") else "+"
    text += f"[{_zsh_plain(option.help)}]"
    if option.value:
        text += f":{_zsh_plain(option.metavar)}:{_zsh_action(option, commands)}"
    return _zsh_quoted(text)


def _zsh_action(word: Word, commands: Mapping[str, Command]) -> str:
    known = _words(word, commands)
    return f"({' '.join(known)})" if known else _ZSH_VALUE.get(word.kind, " ")


def _zsh_plain(text: str) -> str:
    for mark in ("\\", "[", "]", ":"):
        text = text.replace(mark, f"\\{mark}")
    return text


def _zsh_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# --- fish ------------------------------------------------------------------------------------------------------------

_FISH_VALUE = {
    "pid": "(__fish_complete_pids)",
    "host": "(__fish_complete_user_at_hosts)",
    "migration": f"({_MIGRATIONS})",
}


def _fish(commands: Mapping[str, Command]) -> Iterator[str]:
    others = [name for name in commands if name != MAIN]
    taking = dict.fromkeys(
        each for command in commands.values() for option in command.options if option.value for each in option.names
    )
    yield "# completion of migrate for fish, made by `migrate completion fish`"
    yield "function __migrate_at --description 'COMMAND [POSITION]: is this where the cursor is?'"
    yield "    set -l words (commandline -opc)[2..]"
    yield "    set -l command migrate"
    yield f"    if set -q words[1]; and contains -- $words[1] {' '.join(others)}"
    yield "        set command $words[1]"
    yield "        set -e words[1]"
    yield "    end"
    yield "    test $command = $argv[1]; or return 1"
    yield "    set -q argv[2]; or return 0"
    yield "    set -l position 0"
    yield "    set -l value 0"
    yield "    for word in $words"
    yield "        if test $value = 1"
    yield "            set value 0"
    yield f"        else if contains -- $word {' '.join(taking)}"
    yield "            set value 1"
    yield "        else if not string match -q -- '-*' $word"
    yield "            set position (math $position + 1)"
    yield "        end"
    yield "    end"
    yield "    test $position = $argv[2]"
    yield "end"
    yield "complete -c migrate -f"
    for name in others:
        yield f"complete -c migrate -n '__migrate_at migrate 0' -a {name} -d {_fish_quoted(commands[name].summary)}"
    for name, command in commands.items():
        for position, word in enumerate(command.arguments):
            found = _fish_value(word, commands)
            if found:
                yield f"complete -c migrate -n '__migrate_at {name} {position}' {found}"
        for option in command.options:
            plain = [each for each in option.names if "=" not in each]
            names = " ".join(f"-l {each[2:]}" if each.startswith("--") else f"-s {each[1:]}" for each in plain)
            if names:
                value = f" -r {_fish_value(option, commands) or '-f'}" if option.value else ""
                yield f"complete -c migrate -n '__migrate_at {name}' {names}{value} -d {_fish_quoted(option.help)}"
            for each in set(option.names) - set(plain):
                yield f"complete -c migrate -n '__migrate_at {name}' -a {each} -d {_fish_quoted(option.help)}"


def _fish_value(word: Word, commands: Mapping[str, Command]) -> str:
    if word.kind == "file":
        return "-F"
    known = " ".join(_words(word, commands)) or _FISH_VALUE.get(word.kind, "")
    return f"-f -a {_fish_quoted(known)}" if known else ""


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
