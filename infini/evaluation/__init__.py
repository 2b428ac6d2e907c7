"""Evaluation of models on test text: protocols, standard errors, baselines, cost."""
