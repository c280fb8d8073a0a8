"""Slipway's model server: compiles Keras models and serves the compiled models over HTTP.

compile/           the compiler, run in the toolchain image: reads model cards and Keras files, writes compiled models
manifest.py        what a compiled model is; all that the compiler and the server share besides the next three modules
engines.py         runs a compiled model: tensors in, tensors out
inputs.py          turns rows and pictures into tensors
answers.py         turns tensors into answers, and compares them with what an example expects

app.py             the Flask application, which puts the modules below together
routes/            one module per protocol that the server speaks
bodies.py          reads request bodies and writes JSON
catalogue.py       the models that a process serves
threads.py         where a process runs slow calls
settings.py        the environment variables MODEL_SERVER_*

gunicorn_conf.py   gunicorn's configuration, which runs the application with
worker.py          our worker class and access log
healthcheck.py     the command of the image's HEALTHCHECK
frontend/          the page's files
"""
