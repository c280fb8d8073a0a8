"""Saves the model of serve.py where `mlflow models serve` finds it."""

import os
import shutil
from pathlib import Path

import mlflow
from mlflow.models import ModelSignature
from mlflow.types import ParamSchema, ParamSpec

folder = Path(os.environ["BENCHMARK_WORK"]) / "mlflow-model"
shutil.rmtree(folder, ignore_errors=True)
signature = ModelSignature(params=ParamSchema([ParamSpec("model", "string", "xor")]))
mlflow.pyfunc.save_model(folder, python_model="serve.py", signature=signature, pip_requirements=[])
