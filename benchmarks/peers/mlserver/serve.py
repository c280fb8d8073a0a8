"""MLServer with a custom runtime and an inference worker a core, without adaptive batching."""

import asyncio
import os

import numpy as np
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Keras(MLModel):
    async def load(self) -> bool:
        from keras_models import Model

        self._model = Model(self.name)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        [asked] = payload.inputs
        if asked.datatype == "BYTES":
            [file] = Base64Codec.decode_input(asked)
            answer = self._model.picture(file)
        else:
            answer = self._model(NumpyCodec.decode_input(asked))
        output = NumpyCodec.encode_output("output", np.asarray(answer))
        return InferenceResponse(model_name=self.name, outputs=[output])


async def main() -> None:
    port = int(os.environ["PORT"])
    settings = Settings(
        debug=False,
        host="127.0.0.1",
        http_port=port,
        grpc_port=port + 1,
        metrics_port=port + 2,
        parallel_workers=int(os.environ["CPUS"]),
        use_structured_logging=False,
    )
    names = ("cnn", "lstm", "mobilenet", "xor")
    await MLServer(settings).start([ModelSettings(name=name, implementation="serve.Keras") for name in names])


if __name__ == "__main__":
    asyncio.run(main())
