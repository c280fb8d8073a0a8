"""MLflow's scoring server: one pyfunc model that holds all Keras models; a parameter names the one to ask."""

import base64

import mlflow


class Models(mlflow.pyfunc.PythonModel):
    def load_context(self, context) -> None:
        from keras_models import load

        self._models = load()

    def predict(self, context, model_input, params=None):
        model = self._models[params["model"]]
        if model_input.dtype.kind in "OSU":
            return model.picture(base64.b64decode(model_input.ravel()[0]))
        return model(model_input)


mlflow.models.set_model(Models())
