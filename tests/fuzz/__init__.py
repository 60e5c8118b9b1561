"""What reads bytes that somebody else has written, against any bytes at all: no traceback, no hang, no large
allocation, nothing written outside its directory.

`table` names the parsers, a function of bytes for each; `test_fuzz` gives them hypothesis's bytes among the fast tests,
`python -m tests.fuzz` (or `vagrant/lab fuzz`) gives them atheris's, which are led by what the parsers do with them.
"""
