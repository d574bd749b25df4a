"""The science of Lethe, without browser and database.

corpus + target -> documents -> windows -> batches -> Method.loss -> gradient -> RetainSubspace.project_out -> optimizer
step -> StepRecord. `worker.py` drives it from a thread; `app.py` and `cli.py` write down what it says.
"""
