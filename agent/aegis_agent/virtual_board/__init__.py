"""
A board without hardware: a process that esptool flashes and that runs what was flashed.

    chips     the table of chips                rom       the loader's commands, ROM and stub
    flash     a NOR flash that obeys physics    board     reset lines, boot, what runs
    port      who holds the UART, and its bytes server, pty   the ways to reach it
    faults    what goes wrong on request        process   all of it together; `__main__` starts it
    spawn     for tests and demos: the same in a child process

Files that the process loads are GPL-2.0-or-later, as it loads Unicorn; `spawn`, `cli` and
`control_words` only talk to it and are Apache-2.0, as the rest of Aegis is.
"""
