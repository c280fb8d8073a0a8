"""Makes the models that are measured, and questions about them with the right answers, as Keras gives them.

Run as a train.py in the toolchain image, with the folder of models at /models. The weights are random, from a fixed
seed: speed is measured, not accuracy. Only those of xor are trained, so that its example means something.
"""

import base64
import io
import json
from pathlib import Path

import keras
import numpy as np
from PIL import Image

MODELS = Path("/models")
QUESTIONS = 4
TOLERANCE = 1e-3
NUMBERS_OF_A_PICTURE = {"cnn": (1 / 255, 0.0), "mobilenet": (1 / 127.5, -1.0)}
COLOUR = (200, 90, 30)  # of the pictures whose size in bytes grows

CARDS = {
    "xor": 'examples: [{name: "1 0", input: [1, 0], expect: 1, tolerance: 0.1}]',
    "cnn": "inputs: {picture: {kind: image, color: rgb, scale: 1/255}}\noutputs: {cat: {kind: binary}}",
    "mobilenet": "inputs: {picture: {kind: image, color: rgb, scale: 1/127.5, offset: -1}}",
    "lstm": "title: LSTM",
}


def xor() -> keras.Model:
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype="float32")
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1, activation="sigmoid")]
    )
    model.compile(keras.optimizers.Adam(0.05), "binary_crossentropy")
    model.fit(x, x[:, :1] != x[:, 1:], batch_size=4, epochs=300, verbose=0)
    return model


def cnn() -> keras.Model:
    """Cats and dogs, as beginners' guides have it."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((64, 64, 3), name="picture"),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(1, activation="sigmoid", name="cat"),
        ]
    )


def mobilenet() -> keras.Model:
    picture = keras.Input((224, 224, 3), name="picture")
    body = keras.applications.MobileNetV2(weights=None, input_tensor=picture, classifier_activation=None)
    return keras.Model(picture, body.output)


def lstm() -> keras.Model:
    return keras.Sequential([keras.Input((50, 8)), keras.layers.LSTM(64), keras.layers.Dense(5)])


def slow() -> keras.Model:
    """One number in, 18 billion operations: one layer, again and again."""
    layers = keras.layers
    number = keras.Input((1,))
    picture = layers.UpSampling2D(16)(layers.Reshape((4, 4, 64))(layers.Dense(4 * 4 * 64)(number)))
    again = layers.Conv2D(64, 3, padding="same", activation="relu")
    for _ in range(60):
        picture = again(picture)
    return keras.Model(number, layers.Dense(1)(layers.GlobalAveragePooling2D()(picture)))


def spread(model: keras.Model, numbers: np.ndarray) -> None:
    """Scale the last layer's weights so that answers to different questions differ by far more than TOLERANCE."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(numbers, training=True)  # else random layers fade the numbers out, as nothing is normal yet
    last = model.layers[-1]
    before = keras.Model(model.inputs, last.input)(numbers).numpy()
    weights, bias = last.get_weights()
    last.set_weights([weights / max(np.std(before @ weights, axis=0).mean(), 1e-9), bias])


def picture(random: np.random.Generator, size: int) -> bytes:
    """A JPEG file as detailed as a photo of that size."""
    coarse = random.integers(0, 256, (size // 6, size // 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
    return file.getvalue()


def numbers_of(name: str, file: bytes) -> np.ndarray:
    scale, offset = NUMBERS_OF_A_PICTURE[name]
    return np.asarray(Image.open(io.BytesIO(file)), "float32") * scale + offset


def main() -> None:
    random = np.random.default_rng(7)
    questions: dict[str, dict[str, list]] = {}
    for make in (xor, cnn, mobilenet, lstm):
        keras.utils.set_random_seed(7)
        name, model = make.__name__, make()
        asked = questions[name] = {"rows": [], "pictures": []}
        if name in NUMBERS_OF_A_PICTURE:
            size = model.input_shape[1]
            files = [picture(random, size) for _ in range(QUESTIONS)]
            tensors = np.stack([numbers_of(name, file) for file in files])
            spread(model, tensors)
            solid = np.asarray(Image.new("RGB", (size, size), COLOUR), "float32")
            scale, offset = NUMBERS_OF_A_PICTURE[name]
            answers = model(np.concatenate([tensors, [solid * scale + offset]])).numpy()
            for file, answer in zip(files, answers[:-1], strict=True):
                asked["pictures"].append({"file": base64.b64encode(file).decode(), "answer": answer.tolist()})
            asked["solid"] = [{"colour": COLOUR, "answer": answers[-1].tolist()}]
            rows = [tensors[index : index + 1] for index in range(QUESTIONS)]
        elif name == "xor":
            pairs = [[1, 0], [1, 1]], [[0, 0], [0, 1]], [[0, 0], [1, 1]], [[0, 1], [1, 0]]
            rows = [np.array(pair, "float32") for pair in pairs]
        else:
            rows = [random.normal(size=(1, *model.input_shape[1:])) for _ in range(QUESTIONS)]
            spread(model, np.concatenate(rows).astype("float32"))
        if name != "mobilenet":
            for tensor in (np.round(tensor.astype("float64"), 2) for tensor in rows):
                answer = model(tensor.astype("float32")).numpy()
                asked["rows"].append({"rows": tensor.tolist(), "answer": answer.ravel().tolist()})
        for kind in ("rows", "pictures"):
            answers = [np.array(question["answer"]) for question in asked[kind]]
            for number, answer in enumerate(answers):
                if any(np.abs(answer - other).max() < 10 * TOLERANCE for other in answers[:number]):
                    raise SystemExit(f"{name}: two questions have the same answer, so a mix-up would go unnoticed")
        folder = MODELS / name
        folder.mkdir(exist_ok=True)
        model.save(folder / f"{name}.keras")
        (folder / "model.yml").write_text(CARDS[name] + "\n")
        print(f"{name}: {model.count_params():,} weights")
    (MODELS / "slow").mkdir(exist_ok=True)
    slow().save(MODELS / "slow/slow.h5")  # for growth.py alone: the peers look for .keras files
    (MODELS / "slow/model.yml").write_text("title: Slow\n")
    (MODELS / ".questions.json").write_text(json.dumps(questions))


if __name__ == "__main__":
    main()
