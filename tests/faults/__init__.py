"""Faults: what a run and its home outlive. Scenarios are functions: in short in the tests here, at length by hand.

`two_drivers`: a driver that stands still while another takes its run over. `clocks`: clocks that jump. `locks`: a store
that another program has locked.
"""
