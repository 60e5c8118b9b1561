"""The two-host lab: builds it, boots it, takes it away, and runs the project's tests on it.

Everything here is standard library only, because this is what installs the rest.
"""
