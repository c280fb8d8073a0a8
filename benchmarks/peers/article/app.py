"""The server of "Deploy Keras models to production level easily": Flask, gevent's WSGIServer, model.predict.

As written, but for what TensorFlow 2 no longer has (sessions and graphs), the model's name in the form and in the JSON
that the article's server does not take. `python app.py function` calls a concrete function instead of model.predict.
"""

import os
import sys
import tempfile
import uuid

import numpy as np
from flask import Flask, jsonify, request
from flask_cors import CORS
from gevent.pywsgi import WSGIServer
from keras.models import load_model
from keras.utils import img_to_array, load_img
from werkzeug.utils import secure_filename

from keras_models import FOLDER, NAMES, NUMBERS_OF_A_PICTURE, Model

FAST = sys.argv[1:] == ["function"]
UPLOADS = tempfile.mkdtemp(prefix="uploads-")
MODELS = {}

app = Flask(__name__)
CORS(app)


def load_single_model(name):
    MODELS[name] = load_model(FOLDER / name / f"{name}.keras")


def load_models():
    for name in NAMES:
        if FAST:
            MODELS[name] = Model(name)
        else:
            load_single_model(name)


def models_predict(name, rows):
    return (MODELS[name](rows) if FAST else MODELS[name].predict(rows, verbose=0)).tolist()


@app.route("/predict", methods=["POST"])
def upload():
    file_to_predict = request.files["file"]
    name = request.form["model"]
    # The article saves under the client's name for the file; two clients at once then read each other's picture.
    local_file_path = os.path.join(UPLOADS, uuid.uuid4().hex + secure_filename(file_to_predict.filename))  # noqa: PTH118
    file_to_predict.save(local_file_path)
    size = {"cnn": (64, 64), "mobilenet": (224, 224)}[name]
    scale, offset = NUMBERS_OF_A_PICTURE[name]
    picture = img_to_array(load_img(local_file_path, target_size=size)) * scale + offset
    predictions = models_predict(name, np.expand_dims(picture, 0))
    os.remove(local_file_path)  # noqa: PTH107
    return jsonify(predictions)


@app.route("/rows", methods=["POST"])
def rows():
    asked = request.get_json()
    return jsonify(models_predict(asked["model"], np.array(asked["instances"], "float32")))


if __name__ == "__main__":
    load_models()
    wsgi_server = WSGIServer(("127.0.0.1", int(os.environ["PORT"])), app, log=None)
    wsgi_server.serve_forever()
