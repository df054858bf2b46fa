"""The paper's experiments as recipes: ``python -m benchmarks.training run`` and ``... report``.

recipe.py holds every knob, activations.py the rivals, vision.py and language.py the models, data.py
and text.py what they learn from, loop.py the one training loop of both, dpo.py trl's instead of it;
study.py runs cells (model × dataset × activation × seed) and keeps their results, report.py and
plots.py show them beside the published figures. dynamic.py brings dynamic EAFO into the loop,
controls.py what it is held against, premise.py measures what it supposes. docs/training.md tells
how to use it.
"""
