"""Faults on purpose: what must hold when a process, a disk, a clock or a file fails.

Scenarios are functions that take a seed, a count or a moment. `crashes`: SIGKILL at a file operation. `full_disk`: no
room at any kind of write. `damage`: flipped bits, and paths that lead out. `two_drivers`: a driver that stands still
while another takes its run over. `clocks`: clocks that jump. `locks`: a store that another program has locked.
"""
