"""The benchmark of `vagrant/lab bench`: whole migrations on the lab's two hosts, beside the usual ways of doing it.

| module | |
|---|---|
| `rows` | what is measured, what it must be, and what a result looks like |
| `moves` | one process moved: by hand, p.haul's way, by `migrate` |
| `measures` | the rows: which moves each takes, and what it makes of them |
| `table`, `picture` | results for people |
| `__main__` | `python -m tests.bench measure` and `show`; `vagrant/lab bench` calls both |
| `programs/` | what runs on the hosts |
"""
