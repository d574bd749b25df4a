"""The pages of the dashboard. The store is an object that they are given; they import no torch and no SQL."""
