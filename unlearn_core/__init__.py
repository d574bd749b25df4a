"""Unlearning without browser and database: corpus, model, methods, guard rails, training.

corpus + target -> documents -> windows -> batches -> Method.loss -> gradient -> RetainSubspace.project_out -> optimizer
step -> StepRecord. `worker.py` drives it from a thread; `app.py` and `cli.py` write down what it says.
"""
