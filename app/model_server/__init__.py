"""Slipway's model server: compiles Keras models and serves the compiled models over HTTP.

compile/           the compiler, run in the toolchain image: reads model cards and Keras files, writes compiled models
manifest.py        what a compiled model is; all that the compiler and the server share besides the next three modules
engines.py         runs a compiled model: tensors in, tensors out
inputs.py          turns rows and pictures into tensors
answers.py         turns tensors into answers, and compares them with what an example expects

app.py             the Flask application, which puts the modules below together
routes/            one module per protocol that the server speaks
requests.py        records, counts and times each request; the headers of every answer
records.py         what is known of a request
metrics.py         what Prometheus reads
schemas.py         JSON Schemas and examples of a model's rows and answers, for the OpenAPI document
bodies.py          reads request bodies and writes JSON
arrays.py          reads large arrays in JSON
catalogue.py       the models that a process serves
calls.py           a model's calls: their queue, deadlines and batches
threads.py         where a process runs slow calls
settings.py        the environment variables MODEL_SERVER_*

gunicorn_conf.py   gunicorn's configuration, which runs the application with
worker.py          our worker class and request log
healthcheck.py     the command of the image's HEALTHCHECK
frontend/          the pages' files
"""

__version__ = "0.1.0"
