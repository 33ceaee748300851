"""The shipped torch model, read once."""

import pytest

from convert.torch_model import TorchModel, read_model
from tests.convert.samples import MINI


@pytest.fixture(scope="session")
def mini() -> TorchModel:
    return read_model(MINI)
